// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// dies runs an upload that ends, as a process would, once the registry has n
// bytes of it.
func (l *lab) dies(data []byte, n int64) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b := blobOf(data)
	open := b.Open
	b.Open = func(ctx context.Context, at int64) (io.ReadCloser, error) {
		r, err := open(ctx, at)
		return &mortal{r, at, n, cancel}, err
	}
	res, err := l.client.Upload(ctx, b)
	if !errors.Is(err, resume.ErrInterrupted) {
		l.t.Fatalf("got %v, want it to be interrupted", err)
	}
	if !res.Kept {
		l.t.Fatalf("nothing is kept: %+v\n%s", res, l.log.String())
	}
}

// mortal ends its context after so many bytes.
type mortal struct {
	io.ReadCloser
	at, end int64
	die     func()
}

func (m *mortal) Read(b []byte) (int, error) {
	if m.at >= m.end {
		time.Sleep(time.Second) // what was read is there
		m.die()
		return 0, errors.New("dead")
	}
	n, err := m.ReadCloser.Read(b[:min(int64(len(b)), m.end-m.at)])
	m.at += int64(n)
	return n, err
}

const kept = 1<<20 + 1000

func TestContinuesInAnotherProcess(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store, Reference: "reg.test/team/app:1"}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		l.events = nil
		res := l.delivers(data)
		if res.Continued != 600_000 || res.Sent != kept-600_000 || res.Restarts != 0 {
			t.Errorf("%+v", res)
		}
		l.wants(resume.Settled, resume.Resumed, resume.Settled, resume.Committing, resume.Committed)
		lease, err := store.Reserve(context.Background(), resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := lease.Load(context.Background()); !errors.Is(err, resume.ErrNoRecord) {
			t.Errorf("left behind: %v, %v", r, err)
		}
	})
}

// Small blobs are not worth a record.
func TestSmallBlobsAreNotKept(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{Store: broken{}, KeepFrom: resume.DefaultKeepFrom}, func(l *lab) {
		if res := l.delivers(content(1<<20 - 1)); res.Kept {
			t.Error("kept")
		}
		if strings.Contains(l.log.String(), "cannot be kept") {
			t.Errorf("the store was asked:\n%s", l.log.String())
		}
	})
}

// broken is a store on a disk that does not work.
type broken struct{}

var errDisk = errors.New("no space left on device")

func (broken) Reserve(context.Context, resume.Key) (resume.Lease, error) { return nil, errDisk }
func (broken) Forget(context.Context, resume.Key) error                  { return errDisk }

// fickle gives leases that fail.
type fickle struct{ load, save, remove, release error }

func (f *fickle) Reserve(context.Context, resume.Key) (resume.Lease, error) { return f, nil }
func (f *fickle) Forget(context.Context, resume.Key) error                  { return f.remove }
func (f *fickle) Load(context.Context) (resume.Record, error) {
	return resume.Record{}, errors.Join(f.load, resume.ErrNoRecord)
}
func (f *fickle) Save(context.Context, resume.Record) error { return f.save }
func (f *fickle) Remove(context.Context) error              { return f.remove }
func (f *fickle) Renew(context.Context) error               { return nil }
func (f *fickle) Release(context.Context) error             { return f.release }

// A store that fails gives one warning, and the blobs arrive.
func TestStoreNeverInTheWay(t *testing.T) {
	for name, s := range map[string]resume.Store{
		"no lease":   broken{},
		"no loading": &fickle{load: errDisk},
		"no saving":  &fickle{save: errDisk},
		"no end":     &fickle{remove: errDisk, release: errDisk},
		"nothing":    &fickle{save: errDisk, remove: errDisk, release: errDisk},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{}, resume.Options{Store: s}, func(l *lab) {
				l.net.BreakUpAt(500_000)
				l.delivers(content(kept))
				l.delivers(content(kept + 1))
				warnings := 0
				for _, e := range l.events {
					if e.Kind == resume.Warned && errors.Is(e.Err, errDisk) {
						warnings++
					}
				}
				if name != "no loading" && warnings != 1 || warnings > 1 {
					t.Errorf("%d warnings", warnings)
				}
			})
		})
	}
}

// The record is cut at every byte, and is of a later version: the blob arrives
// every time.
func TestRecordCutAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	inLab(t, scripted.Options{}, resume.Options{Store: resume.NewFileStore(dir), KeepFrom: 1}, func(l *lab) {
		data := content(3000)
		l.dies(data, 1000)
		files, err := filepath.Glob(filepath.Join(dir, "rpush-uploads", "*.json"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%v, %v", files, err)
		}
		whole, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		texts := [][]byte{bytes.Replace(whole, []byte(`"version": 1`), []byte(`"version": 2`), 1)}
		for cut := range whole {
			texts = append(texts, whole[:cut])
		}
		for _, text := range texts {
			// Another client, and a repository without the blob.
			l.reg.DropBlob("team/app", digest.FromBytes(data).String())
			if err := os.WriteFile(files[0], text, 0o600); err != nil {
				t.Fatal(err)
			}
			l.events = nil
			l.delivers(data)
		}
		if left, err := filepath.Glob(filepath.Join(dir, "rpush-uploads", "*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// A session of a record that is gone is forgotten, and a new one opened.
func TestDeadRecord(t *testing.T) {
	for name, spoil := range map[string]func(*resume.Record){
		"purged":             func(r *resume.Record) { r.Location = strings.Replace(r.Location, "session-0001", "session-0009", 1) },
		"no URL":             func(r *resume.Record) { r.Location = "::" },
		"another scheme":     func(r *resume.Record) { r.Location = "file:///etc/passwd" },
		"an unknown host":    func(r *resume.Record) { r.Location = "http://gone.test/v2/x" },
		"another size":       func(r *resume.Record) { r.Size++ },
		"an absurd offset":   func(r *resume.Record) { r.Offset = -1 },
		"too far":            func(r *resume.Record) { r.Acked = kept + 1 },
		"expired":            func(r *resume.Record) { r.Opened = r.Opened.Add(-71 * time.Hour) },
		"from the future":    func(r *resume.Record) { r.Opened = r.Opened.Add(1000 * time.Hour) },
		"another repository": func(r *resume.Record) { r.Repository = "other" },
		"another digest":     func(r *resume.Record) { r.Digest = digest.FromString("other") },
	} {
		t.Run(name, func(t *testing.T) {
			store := resume.MemoryStore()
			inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
				data := content(kept)
				l.dies(data, 600_000)
				lease, err := store.Reserve(context.Background(), resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)})
				if err != nil {
					t.Fatal(err)
				}
				r, err := lease.Load(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				spoil(&r)
				if err := errors.Join(lease.Save(context.Background(), r), lease.Release(context.Background())); err != nil {
					t.Fatal(err)
				}
				if res := l.delivers(data); res.Continued != 0 || res.Sent != kept {
					t.Errorf("%+v", res)
				}
			})
		})
	}
}

// An offset that is stored is a hint: the registry is asked before the first
// byte, and what it says counts.
func TestStoredOffsetIsAHint(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		k := resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)}
		lease, err := store.Reserve(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		r, err := lease.Load(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		r.Offset = 900_000
		if err := errors.Join(lease.Save(context.Background(), r), lease.Release(context.Background())); err != nil {
			t.Fatal(err)
		}
		before := len(l.reg.Requests())
		if res := l.delivers(data); res.Continued != 600_000 {
			t.Errorf("%+v", res)
		}
		if asked := l.reg.Requests()[before:]; asked[0].Kind != scripted.HeadBlob || asked[1].Kind != scripted.Status {
			t.Errorf("the first requests are %s %s, %s %s", asked[0].Method, asked[0].Path, asked[1].Method, asked[1].Path)
		}
	})
}

// The location that changes with every chunk is kept before the next chunk is
// sent.
func TestLocationIsKeptBeforeTheNextChunk(t *testing.T) {
	saves := &counting{Store: resume.MemoryStore()}
	ro := scripted.Options{Intercept: func(q scripted.Request) scripted.Action {
		if q.Kind == scripted.Patch || q.Kind == scripted.Put {
			loc, _ := saves.last.Load().(string)
			if _, path, ok := strings.Cut(loc, "reg.test"); !ok || !strings.HasPrefix(q.Path, path) {
				saves.late.Add(1)
			}
		}
		return scripted.Action{}
	}}
	d := resume.MemoryDialects()
	d.Save("http://reg.test:80", resume.Dialect{Class: resume.Boundary, Chunk: 1 << 20})
	inLab(t, ro, resume.Options{Store: saves, Dialects: d}, func(l *lab) {
		l.delivers(content(5 << 20))
		if n := saves.n.Load(); n != 6 || saves.late.Load() != 0 {
			t.Errorf("%d records for 5 chunks, %d locations not kept in time", n, saves.late.Load())
		}
	})
	// One PATCH costs two records, however long it takes: none on the hot path.
	saves = &counting{Store: resume.MemoryStore()}
	inLab(t, scripted.Options{}, resume.Options{Store: saves}, func(l *lab) {
		l.delivers(content(5 << 20))
		if n := saves.n.Load(); n != 2 {
			t.Errorf("%d records for one PATCH", n)
		}
	})
}

// counting notes what is saved.
type counting struct {
	resume.Store
	n, late atomic.Int64
	last    atomic.Value
}

func (c *counting) Reserve(ctx context.Context, k resume.Key) (resume.Lease, error) {
	l, err := c.Store.Reserve(ctx, k)
	return countingLease{l, c}, err
}

type countingLease struct {
	resume.Lease
	c *counting
}

func (l countingLease) Save(ctx context.Context, r resume.Record) error {
	err := l.Lease.Save(ctx, r)
	l.c.n.Add(1)
	l.c.last.Store(r.Location)
	return err
}

// second is another client of the same lab.
func (l *lab) second(o resume.Options) *resume.Client {
	l.t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		l.t.Fatal(err)
	}
	tr := wire.New(wire.Options{UserAgent: "rpush/second", Dial: l.net.Dial})
	l.t.Cleanup(tr.CloseIdleConnections)
	o.PlainHTTP, o.Transport, o.External = true, tr, tr
	c, err := resume.New(repo, o)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// Two push the same blob: one uploads, the other waits and finds it there.
func TestOneUploadsTheOtherWaits(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{Intercept: on(scripted.Patch, 1, scripted.Action{DelayBefore: 20 * time.Second})}, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		var held atomic.Int64
		done := make(chan error)
		go func() {
			time.Sleep(time.Second)
			c := l.second(resume.Options{Store: store, OnEvent: func(e resume.Event) {
				if e.Kind == resume.Held {
					held.Add(1)
				}
			}})
			b := blobOf(data)
			b.Missing = true // it was, a moment ago
			res, err := c.Upload(context.Background(), b)
			if err == nil && !res.Existed {
				err = errors.New("it was uploaded twice")
			}
			done <- err
		}()
		l.delivers(data)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if held.Load() != 1 || l.count(scripted.Post) != 1 {
			t.Errorf("%d times held, %d sessions", held.Load(), l.count(scripted.Post))
		}
	})
}

// The first one dies, the other takes over where the registry stands.
func TestTakesOver(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		done := make(chan error)
		go func() {
			time.Sleep(100 * time.Millisecond) // the first needs a second to die
			res, err := l.second(resume.Options{Store: store}).Upload(context.Background(), blobOf(data))
			if err == nil && res.Continued != 600_000 {
				err = errors.New("it did not go on with the first")
			}
			done <- err
		}()
		l.dies(data, 600_000)
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.has(data)
		if n := l.count(scripted.Post); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

// The first one does not end: after its budget the other uploads on its own,
// and leaves the record alone.
func TestWaitsNoLongerThanItsBudget(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store, RetryFor: 3 * time.Minute}, func(l *lab) {
		data := content(kept)
		k := resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)}
		lease, err := store.Reserve(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		l.delivers(data)
		if took := time.Since(began); took < 3*time.Minute || took > 4*time.Minute {
			t.Errorf("it waited %s", took)
		}
		if r, err := lease.Load(context.Background()); !errors.Is(err, resume.ErrNoRecord) {
			t.Errorf("it wrote %v, %v", r, err)
		}
	})
}

// A session that the registry cannot speak about is given up, if the registry
// answers otherwise.
func TestDamagedSession(t *testing.T) {
	store := resume.MemoryStore()
	ro := scripted.Options{Intercept: func(q scripted.Request) scripted.Action {
		if q.Kind == scripted.Status && q.Session == 1 {
			return scripted.Action{Before: http.StatusInternalServerError}
		}
		return scripted.Action{}
	}}
	inLab(t, ro, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		began := time.Now()
		if res := l.delivers(data); res.Sent != kept || res.Continued != 0 {
			t.Errorf("%+v", res)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

// The blob is there although its record is: nothing is sent.
func TestThereDespiteTheRecord(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{Store: resume.MemoryStore()}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
		if res := l.delivers(data); res.Sent != 0 || !res.Existed {
			t.Errorf("%+v", res)
		}
	})
}

// A panic of the source lets go of the lease.
func TestPanicReleases(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{Store: resume.MemoryStore()}, func(l *lab) {
		data := content(kept)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			b := blobOf(data)
			b.Open = func(context.Context, int64) (io.ReadCloser, error) { panic("oh") }
			l.client.Upload(context.Background(), b)
		}()
		began := time.Now()
		l.delivers(data)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it waited %s", took)
		}
	})
}

// A commit whose process died is waited for, not sent again.
func TestProcessDiesInTheCommit(t *testing.T) {
	store := resume.MemoryStore()
	ro := scripted.Options{Intercept: on(scripted.Put, 1, scripted.Action{DelayBefore: 8 * time.Second})}
	inLab(t, ro, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if res, err := l.client.Upload(ctx, blobOf(data)); !errors.Is(err, resume.ErrInterrupted) || !res.Kept {
			t.Fatalf("%+v, %v", res, err)
		}
		if res := l.delivers(data); res.Sent != 0 {
			t.Errorf("%+v", res)
		}
	})
}

// The record of a blob that is there is dropped when it is found to be.
func TestExistsForgets(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
		if ok, err := l.client.Exists(context.Background(), digest.FromBytes(data), kept); !ok || err != nil {
			t.Fatal(ok, err)
		}
		lease, err := store.Reserve(context.Background(), resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := lease.Load(context.Background()); !errors.Is(err, resume.ErrNoRecord) {
			t.Errorf("kept: %v, %v", r, err)
		}
	})
}

func TestCheckAndCancel(t *testing.T) {
	store := resume.MemoryStore()
	inLab(t, scripted.Options{}, resume.Options{Store: store}, func(l *lab) {
		data := content(kept)
		l.dies(data, 600_000)
		lease, err := store.Reserve(context.Background(), resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)})
		if err != nil {
			t.Fatal(err)
		}
		r, err := lease.Load(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if offset, alive, err := l.client.Check(context.Background(), r); offset != 600_000 || !alive || err != nil {
			t.Errorf("got %d, %v, %v", offset, alive, err)
		}
		if err := errors.Join(l.client.Cancel(context.Background(), r), l.client.Cancel(context.Background(), r)); err != nil {
			t.Error(err)
		}
		if _, alive, err := l.client.Check(context.Background(), r); alive || err != nil {
			t.Errorf("cancelled: got %v, %v", alive, err)
		}
		if l.reg.Uploads() != 0 {
			t.Error("the session is still there")
		}
		r.Repository = "team/other"
		if _, _, err := l.client.Check(context.Background(), r); !errors.Is(err, resume.ErrEndpoint) {
			t.Errorf("another repository: got %v", err)
		}
		if err := l.client.Cancel(context.Background(), r); !errors.Is(err, resume.ErrEndpoint) {
			t.Errorf("another repository: got %v", err)
		}
	})
}

// A record may be anybody's work. A location that is not one of an upload at
// the registry gets no request from a push, a check or a cancellation, and the
// push forgets it.
func TestPlantedRecord(t *testing.T) {
	for name, location := range map[string]string{
		"another host":       "http://other.test/v2/team/app/blobs/uploads/session-0001",
		"another port":       "http://reg.test:81/v2/team/app/blobs/uploads/session-0001",
		"a manifest":         "http://reg.test/v2/team/app/manifests/latest",
		"a blob":             "http://reg.test/v2/team/app/blobs/sha256:0000",
		"no registry's path": "http://reg.test/api/projects/1",
		"dots":               "http://reg.test/v2/team/app/blobs/uploads/../manifests/latest",
		"escaped dots":       "http://reg.test/v2/team/app/blobs/uploads/%2e%2e%2f%2e%2e%2fmanifests%2flatest",
		"all uploads":        "http://reg.test/v2/team/app/blobs/uploads/",
		"a long repository":  "http://reg.test/v2/team/app/blobs/uploads/x/manifests/latest",
	} {
		t.Run(name, func(t *testing.T) {
			store := resume.MemoryStore()
			var followed atomic.Int64
			ro := scripted.Options{OtherHost: "other.test", Intercept: func(q scripted.Request) scripted.Action {
				u, err := url.Parse(location)
				if err == nil && (q.Host == "other.test" || q.Path == u.Path && q.Method != http.MethodPost || q.Method == http.MethodDelete) {
					followed.Add(1)
					return scripted.Action{Before: http.StatusCreated}
				}
				return scripted.Action{}
			}}
			inLab(t, ro, resume.Options{Store: store, RetryFor: time.Minute}, func(l *lab) {
				data := content(kept)
				k := resume.Key{Registry: "http://reg.test:80", Repository: "team/app", Digest: digest.FromBytes(data)}
				lease, err := store.Reserve(context.Background(), k)
				if err != nil {
					t.Fatal(err)
				}
				r := resume.Record{Key: k, Location: location, Size: kept, Offset: kept, Acked: kept, Opened: time.Now(), Updated: time.Now()}
				if err := errors.Join(lease.Save(context.Background(), r), lease.Release(context.Background())); err != nil {
					t.Fatal(err)
				}
				if _, _, err := l.client.Check(context.Background(), r); !errors.Is(err, resume.ErrEndpoint) {
					t.Errorf("check: got %v", err)
				}
				if err := l.client.Cancel(context.Background(), r); !errors.Is(err, resume.ErrEndpoint) {
					t.Errorf("cancel: got %v", err)
				}
				if n := followed.Load(); n != 0 {
					t.Errorf("the planted location got %d requests", n)
				}
				if res := l.delivers(data); res.Continued != 0 || res.Sent != kept {
					t.Errorf("%+v", res)
				}
				l.has(data)
				if n := followed.Load(); n != 0 {
					t.Errorf("the planted location got %d requests", n)
				}
			})
		})
	}
}

// A commit counts if the registry answered it, or has the blob.
func TestCommitElsewhereIsConfirmed(t *testing.T) {
	lies := func(q scripted.Request) scripted.Action {
		if q.Kind == scripted.Put {
			return scripted.Action{Before: http.StatusCreated}
		}
		return scripted.Action{}
	}
	t.Run("another host", func(t *testing.T) {
		ro := scripted.Options{Location: scripted.OtherHost, OtherHost: "other.test", Intercept: lies}
		inLab(t, ro, resume.Options{RetryFor: time.Minute}, func(l *lab) {
			if _, err := l.client.Upload(context.Background(), blobOf(content(kept))); err == nil {
				t.Error("the upload succeeded, and the registry does not have the blob")
			}
		})
	})
	t.Run("a recorded session", func(t *testing.T) {
		ro := scripted.Options{Intercept: lies}
		inLab(t, ro, resume.Options{Store: resume.MemoryStore(), RetryFor: time.Minute}, func(l *lab) {
			data := content(kept)
			l.dies(data, 600_000)
			if _, err := l.client.Upload(context.Background(), blobOf(data)); err == nil {
				t.Error("the upload succeeded, and the registry does not have the blob")
			}
		})
	})
	t.Run("another host that is honest", func(t *testing.T) {
		ro := scripted.Options{Location: scripted.OtherHost, OtherHost: "other.test"}
		inLab(t, ro, resume.Options{Store: resume.MemoryStore()}, func(l *lab) {
			data := content(kept)
			l.dies(data, 600_000)
			if res := l.delivers(data); res.Continued != 600_000 {
				t.Errorf("a location of this process is not continued: %+v", res)
			}
			l.has(data)
		})
	})
}

// basic adds credentials to whatever goes through it.
type basic struct{ inner http.RoundTripper }

func (b *basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r.SetBasicAuth("me", "secret")
	return b.inner.RoundTrip(r)
}
