// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// far is a store on another machine, whose leases run out.
type far struct {
	mu       sync.Mutex
	now      *farLease
	record   resume.Record
	renewed  []time.Time
	down     bool        // no call gets an answer
	released []error     // what the contexts of Release said
	onSave   func(n int) // unless nil, before the nth save
	saves    int
	busy     func() error // unless nil, asked by Reserve
}

var errDown = errors.New("the store does not answer")

func (f *far) Reserve(context.Context, resume.Key) (resume.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.down:
		return nil, errDown
	case f.busy != nil && f.busy() != nil:
		return nil, f.busy()
	case f.now != nil:
		return nil, resume.ErrHeld
	}
	f.now = &farLease{f: f}
	return f.now, nil
}

func (f *far) Forget(context.Context, resume.Key) error { return nil }

// takeOver gives the lease to somebody else.
func (f *far) takeOver() *farLease {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = &farLease{f: f}
	return f.now
}

type farLease struct{ f *far }

// do calls call if the lease is held. It wants f.mu.
func (l *farLease) do(call func()) error {
	switch {
	case l.f.down:
		return errDown
	case l.f.now != l:
		return resume.ErrLeaseLost
	}
	call()
	return nil
}

func (l *farLease) Load(context.Context) (r resume.Record, err error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if err = l.do(func() { r = l.f.record }); err == nil && r.Location == "" {
		err = resume.ErrNoRecord
	}
	return r, err
}

func (l *farLease) Save(_ context.Context, r resume.Record) error {
	l.f.mu.Lock()
	l.f.saves++
	n := l.f.saves
	l.f.mu.Unlock()
	if l.f.onSave != nil {
		l.f.onSave(n)
	}
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	return l.do(func() { l.f.record = r })
}

func (l *farLease) Remove(context.Context) error {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	return l.do(func() { l.f.record = resume.Record{} })
}

func (l *farLease) Renew(context.Context) error {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.renewed = append(l.f.renewed, time.Now())
	return l.do(func() {})
}

func (l *farLease) Release(ctx context.Context) error {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.released = append(l.f.released, ctx.Err())
	if l.f.now == l {
		l.f.now = nil
	}
	return nil
}

// slowly makes the source of a blob give 1 KiB each second.
func slowly(b resume.Blob) resume.Blob {
	open := b.Open
	b.Open = func(ctx context.Context, at int64) (io.ReadCloser, error) {
		r, err := open(ctx, at)
		return &slowSource{r}, err
	}
	return b
}

type slowSource struct{ io.ReadCloser }

func (s *slowSource) Read(b []byte) (int, error) {
	time.Sleep(time.Second)
	return s.ReadCloser.Read(b[:min(len(b), 1<<10)])
}

// A lease is renewed during a single request that takes hours, and released with
// a context that has not ended.
func TestLeaseIsRenewed(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(5 << 20) // 5120 s
		began := time.Now()
		if _, err := l.client.Upload(context.Background(), slowly(blobOf(data))); err != nil {
			t.Fatal(err)
		}
		l.has(data)
		if l.count(scripted.Patch) != 1 {
			t.Errorf("%d PATCHes, want 1", l.count(scripted.Patch))
		}
		last := began
		for _, at := range append(slices.Clone(store.renewed), time.Now()) {
			if gap := at.Sub(last); gap > resume.LeaseRenewEvery {
				t.Errorf("not renewed for %s", gap)
			}
			last = at
		}
		if len(store.released) != 1 || store.released[0] != nil || store.now != nil {
			t.Errorf("released: %v", store.released)
		}
		n := len(store.renewed)
		time.Sleep(time.Hour)
		if len(store.renewed) != n {
			t.Error("renewed after it was released")
		}
	})
}

// A lease that says how long it lasts is renewed four times as often, and not
// believed for longer.
func TestTimedLease(t *testing.T) {
	store := &far{}
	timed := &timedStore{store}
	inLab(t, scripted.Options{}, resume.Options{Store: timed}, func(l *lab) {
		data := content(100 << 10)
		began := time.Now()
		go func() {
			time.Sleep(50 * time.Second)
			store.mu.Lock()
			defer store.mu.Unlock()
			store.down = true
		}()
		res, err := l.client.Upload(context.Background(), slowly(blobOf(data)))
		if err != nil {
			t.Fatalf("%v\n%s", err, l.log.String())
		}
		l.has(data)
		last := began
		for _, at := range store.renewed {
			if gap := at.Sub(last); gap > timedFor/4 {
				t.Errorf("not renewed for %s", gap)
			}
			last = at
		}
		first := res.Sent - int64(len(data)) // before it stopped
		if most := int64((50*time.Second+timedFor)/time.Second+5) << 10; first <= 0 || first > most {
			t.Errorf("sent %d bytes before it stopped, want at most %d", first, most)
		}
	})
}

const timedFor = 8 * time.Second

type timedStore struct{ *far }

type timedLease struct{ *farLease }

func (timedLease) Lasts() time.Duration { return timedFor }

func (s *timedStore) Reserve(ctx context.Context, k resume.Key) (resume.Lease, error) {
	l, err := s.far.Reserve(ctx, k)
	if err != nil {
		return nil, err
	}
	return timedLease{l.(*farLease)}, nil
}

// After its context has ended an upload still releases its lease.
func TestLeaseIsReleasedAfterTheContext(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
		defer cancel()
		_, err := l.client.Upload(ctx, slowly(blobOf(content(1<<20))))
		if !errors.Is(err, resume.ErrInterrupted) {
			t.Fatalf("got %v", err)
		}
		if len(store.released) != 1 || store.released[0] != nil {
			t.Errorf("released: %v", store.released)
		}
	})
}

// requestsAfter are the kinds of requests since a moment.
func (l *lab) requestsAfter(n int) (kinds []scripted.Kind) {
	for _, r := range l.reg.Requests()[n:] {
		kinds = append(kinds, r.Kind)
	}
	return kinds
}

// A writer whose lease was lost stops, and asks for the blob before it sends
// anything again. Here the other push has delivered it.
func TestLostLeaseStopsTheWriter(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(1 << 20)
		var before int
		go func() {
			time.Sleep(65 * time.Second)
			other := store.takeOver()
			time.Sleep(100 * time.Second) // more than LeaseRenewEvery
			before = len(l.reg.Requests())
			l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
			_ = other.Release(context.Background())
		}()
		res, err := l.client.Upload(context.Background(), slowly(blobOf(data)))
		if err != nil {
			t.Fatalf("%v\n%s", err, l.log.String())
		}
		l.has(data)
		// It was lost at 65 s and noticed at 90 s, when 90 KiB had been read.
		if limit := int64(95 << 10); res.Sent > limit {
			t.Errorf("sent %d bytes, want at most %d", res.Sent, limit)
		}
		if after := l.requestsAfter(before); len(after) == 0 || after[0] != scripted.HeadBlob || l.count(scripted.Patch) != 1 {
			t.Errorf("requests after the loss %v, %d PATCHes", after, l.count(scripted.Patch))
		}
		if len(store.released) != 3 { // the lost one, the other's, and the second
			t.Errorf("%d leases were released, want 3", len(store.released))
		}
	})
}

// If the other push ends without the blob, the upload goes on from its record.
func TestLostLeaseComesBack(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(1 << 20)
		go func() {
			time.Sleep(65 * time.Second)
			other := store.takeOver()
			time.Sleep(100 * time.Second)
			_ = other.Release(context.Background())
		}()
		res, err := l.client.Upload(context.Background(), slowly(blobOf(data)))
		if err != nil {
			t.Fatalf("%v\n%s", err, l.log.String())
		}
		l.has(data)
		if res.Restarts != 0 || res.Continued == 0 || l.count(scripted.Post) != 1 {
			t.Errorf("%+v, %d sessions, want one that goes on", res, l.count(scripted.Post))
		}
	})
}

// A store that tells of the loss when a record is saved stops the upload before
// the next request.
func TestLostLeaseStopsTheNextRequest(t *testing.T) {
	store := &far{}
	dialects := resume.MemoryDialects()
	dialects.Save("http://reg.test:80", resume.Dialect{MaxBody: 256 << 10})
	inLab(t, scripted.Options{}, resume.Options{Store: store, Dialects: dialects}, func(l *lab) {
		data := content(1 << 20)
		var patches int
		store.onSave = func(n int) {
			if n != 3 { // the first is that of the POST
				return
			}
			patches = l.count(scripted.Patch)
			other := store.takeOver()
			l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
			_ = other.Release(context.Background())
		}
		res, err := l.client.Upload(context.Background(), blobOf(data))
		if err != nil {
			t.Fatalf("%v\n%s", err, l.log.String())
		}
		if got := l.count(scripted.Patch); got != patches || patches == 0 || patches > 3 {
			t.Errorf("%d PATCHes, %d before the loss; %+v", got, patches, res)
		}
	})
}

// A store that cannot be reached may have given the lease away. The upload stops
// before that, and goes on without being kept.
func TestStoreThatIsNotReached(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(1 << 20)
		go func() {
			time.Sleep(65 * time.Second)
			store.mu.Lock()
			defer store.mu.Unlock()
			store.down = true
		}()
		res, err := l.client.Upload(context.Background(), slowly(blobOf(data)))
		if err != nil {
			t.Fatalf("%v\n%s", err, l.log.String())
		}
		l.has(data)
		// The last renewal was at 60 s. Then the blob is sent in a session of its own.
		first := res.Sent - int64(len(data))
		if most := int64(60+resume.LeaseFor/time.Second+5) << 10; first <= 0 || first > most {
			t.Errorf("sent %d bytes before it stopped, want at most %d", first, most)
		}
		if l.count(scripted.Post) != 2 {
			t.Errorf("%d sessions, want a second one", l.count(scripted.Post))
		}
	})
}

// A lease that runs out again and again does not keep an upload going for ever.
func TestLeaseThatNeverLasts(t *testing.T) {
	store := &far{}
	inLab(t, scripted.Options{}, resume.Options{Store: store, RetryFor: time.Minute}, func(l *lab) {
		store.onSave = func(int) { _ = store.takeOver().Release(context.Background()) }
		_, err := l.client.Upload(context.Background(), blobOf(content(1<<20)))
		if !errors.Is(err, resume.ErrInterrupted) {
			t.Fatalf("got %v, want it to be interrupted", err)
		}
	})
}

// A session that is lost says nothing about the blob: another client may have
// delivered it meanwhile. The registry is asked before the blob is sent again.
func TestLostSessionAsksForTheBlob(t *testing.T) {
	data := content(kept)
	o := scripted.Options{Store: scripted.Fragile, Intercept: on(scripted.Patch, 1, scripted.Action{BreakBody: true, BodyLimit: 600_000})}
	inLab(t, o, resume.Options{}, func(l *lab) {
		l.onEvent = func(e resume.Event) {
			if e.Kind == resume.Lost {
				l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
			}
		}
		res := l.delivers(data)
		if res.Restarts != 1 || res.Sent >= kept || l.count(scripted.Post) != 1 {
			t.Errorf("%+v after %d sessions, want nothing sent again", res, l.count(scripted.Post))
		}
	})
}
