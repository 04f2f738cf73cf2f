// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a client and a scripted registry on a network in memory, on virtual
// time.
type lab struct {
	t      *testing.T
	reg    *scripted.Registry
	net    *memnet.Network
	client *resume.Client
	events []resume.Event
	// onEvent, unless nil, is called for each event.
	onEvent func(resume.Event)
	log     bytes.Buffer
}

const repository = "reg.test/team/app"

// inLab runs f in a bubble of its own and checks what must hold always.
func inLab(t *testing.T, ro scripted.Options, o resume.Options, f func(*lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, net: memnet.New()}
		l.net.Latency = latency
		ro.UserAgent = "rpush"
		l.reg = scripted.New(ro)
		srv := &http.Server{Handler: l.reg}
		for _, host := range []string{"reg.test:80", "other.test:80"} {
			ln, err := l.net.Listen(host)
			if err != nil {
				t.Fatal(err)
			}
			go srv.Serve(ln)
		}
		tr := wire.New(wire.Options{UserAgent: "rpush/test", Dial: l.net.Dial})
		external := wire.New(wire.Options{UserAgent: "rpush/test", Dial: l.net.Dial})
		repo, err := name.NewRepository(repository)
		if err != nil {
			t.Fatal(err)
		}
		switch r := o.Transport.(type) {
		case *renewing:
			r.inner = tr
		case *basic:
			r.inner = tr
		default:
			o.Transport = tr
		}
		logger := logrus.New()
		logger.SetOutput(&l.log)
		logger.SetLevel(logrus.DebugLevel)
		o.PlainHTTP, o.External, o.Logger = true, external, logger
		o.Random = rand.New(rand.NewPCG(1, 2)).Float64
		if o.KeepFrom == 0 {
			o.KeepFrom = 1 // small blobs too are sent as large ones are
		}
		o.OnEvent = func(e resume.Event) {
			l.events = append(l.events, e)
			if l.onEvent != nil {
				l.onEvent(e)
			}
		}
		if l.client, err = resume.New(repo, o); err != nil {
			t.Fatal(err)
		}
		defer func() {
			tr.CloseIdleConnections()
			external.CloseIdleConnections()
			srv.Close()
			l.reg.Close()
			time.Sleep(time.Hour)
			synctest.Wait()
		}()
		f(l)
		for _, v := range l.reg.Violations() {
			t.Errorf("violation: %s", v)
		}
		if s := l.log.String(); strings.Contains(s, "_state") || strings.Contains(s, "session-0") {
			t.Errorf("an upload location was logged:\n%s", s)
		}
	})
}

// content is n bytes that differ at every place one would mix up.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8*31)
	}
	return b
}

// few returns the first and the last case of a list with -short, and all of them
// without. The race detector makes every byte that is copied expensive.
func few[T any](all []T) []T {
	if !testing.Short() || len(all) < 3 {
		return all
	}
	return []T{all[0], all[len(all)-1]}
}

func blobOf(data []byte) resume.Blob {
	return resume.Blob{Digest: digest.FromBytes(data), Size: int64(len(data)), Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[offset:])), nil
	}}
}

// delivers uploads data, and fails unless the registry has it then.
func (l *lab) delivers(data []byte) resume.Result {
	l.t.Helper()
	before := len(l.events)
	res, err := l.client.Upload(context.Background(), blobOf(data))
	if err != nil {
		l.t.Fatalf("upload: %v\n%s", err, l.log.String())
	}
	l.has(data)
	l.ended(l.events[before:], res, resume.Existed, resume.Mounted, resume.Committed)
	return res
}

// ended checks that the events of an upload say what it sent, and end with one of
// the kinds.
func (l *lab) ended(events []resume.Event, res resume.Result, kinds ...resume.EventKind) {
	l.t.Helper()
	last, ends := resume.Event{}, 0
	for _, e := range events {
		if slices.Contains(kinds, e.Kind) {
			ends++
		}
		if e.Sent == 0 {
			continue
		}
		if e.Sent < last.Sent {
			l.t.Errorf("%d bytes sent in %s, %d in %s before", e.Sent, e.Kind, last.Sent, last.Kind)
		}
		last = e
	}
	if end := events[len(events)-1].Kind; ends != 1 || !slices.Contains(kinds, end) || last.Sent != res.Sent {
		l.t.Errorf("%d of %v, the last event is %s, the last that says so has %d bytes sent, the result %d", ends, kinds, end, last.Sent, res.Sent)
	}
}

func (l *lab) has(data []byte) {
	l.t.Helper()
	if got := l.reg.Blob("team/app", digest.FromBytes(data).String()); !bytes.Equal(got, data) || got == nil {
		l.t.Fatalf("the registry has %d bytes, want %d", len(got), len(data))
	}
}

// fails uploads data and wants an error of the given kind, nil for any, and no blob.
func (l *lab) fails(blob resume.Blob, kind error) *resume.Error {
	l.t.Helper()
	before := len(l.events)
	res, err := l.client.Upload(context.Background(), blob)
	l.ended(l.events[before:], res, resume.Failed)
	var e *resume.Error
	if kind != nil && !errors.Is(err, kind) || !errors.As(err, &e) {
		l.t.Fatalf("got %v, want %v", err, kind)
	}
	n := 0
	for _, k := range kinds {
		if errors.Is(err, k) {
			n++
		}
	}
	if n != 1 {
		l.t.Fatalf("%v is of %d kinds", err, n)
	}
	if got := l.reg.Blob("team/app", blob.Digest.String()); got != nil {
		l.t.Fatalf("failed with %v, and the registry has %d bytes", err, len(got))
	}
	return e
}

func (l *lab) kinds() (ks []resume.EventKind) {
	for _, e := range l.events {
		if e.Kind != resume.Sent && e.Kind != resume.Waiting {
			ks = append(ks, e.Kind)
		}
	}
	return ks
}

func (l *lab) count(k scripted.Kind) int {
	n := 0
	for _, r := range l.reg.Requests() {
		if r.Kind == k {
			n++
		}
	}
	return n
}

func (l *lab) wants(kinds ...resume.EventKind) {
	l.t.Helper()
	if got := l.kinds(); !slices.Equal(got, kinds) {
		l.t.Errorf("events:\ngot  %v\nwant %v", got, kinds)
	}
}

// on makes an Intercept that acts on the nth request of a kind.
func on(k scripted.Kind, n int, a scripted.Action) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		if r.Kind == k && r.Seq == n {
			return a
		}
		return scripted.Action{}
	}
}

// all joins several.
func all(fs ...func(scripted.Request) scripted.Action) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		for _, f := range fs {
			if a := f(r); !reflect.DeepEqual(a, scripted.Action{}) {
				return a
			}
		}
		return scripted.Action{}
	}
}
