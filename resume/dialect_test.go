// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

const (
	mib  = 1 << 20
	host = "http://reg.test:80"
)

// dying makes every connection die after n bytes sent.
func (l *lab) dying(n int64) {
	l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: n, Down: -1} }
}

func (l *lab) patches() (ps []scripted.Request) {
	for _, r := range l.reg.Requests() {
		if r.Kind == scripted.Patch {
			ps = append(ps, r)
		}
	}
	return ps
}

func (l *lab) received() (n int64) {
	for _, p := range l.patches() {
		n += p.Body
	}
	return n
}

// learns wants a class to have been learnt.
func learns(t *testing.T, ds resume.Dialects, class resume.Class) resume.Dialect {
	t.Helper()
	d, _ := ds.Load(host)
	if d.Class != class {
		t.Errorf("learnt %+v, want class %q", d, class)
	}
	return d
}

// A proxy that buffers requests hands over whole PATCHes only. Chunks become
// smaller than what a connection survives, and the loss small.
func TestBoundary(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{Store: scripted.Boundary, StaleIsGone: true, LooseRange: true}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.dying(7 * mib)
		res := l.delivers(content(40 * mib))
		if res.Restarts != 0 || l.received() > 40*mib*2 {
			t.Errorf("result %+v, received %.1f MiB", res, float64(l.received())/mib)
		}
		learns(t, ds, resume.Boundary)
	})
	// The next one starts with what was learnt.
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.dying(7 * mib)
		l.delivers(content(20 * mib))
		if p := l.patches()[0]; p.Length > 5*mib {
			t.Errorf("the first PATCH has %d bytes", p.Length)
		}
	})
}

// A registry that loses the session with the connection: after the first loss
// each chunk goes on a connection of its own, shorter than what the lost one
// survived, and nothing is lost any more.
func TestFragile(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{Store: scripted.Fragile, StaleIsGone: true, LooseRange: true}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.dying(8 * mib)
		res := l.delivers(content(30 * mib))
		if res.Restarts != 1 || l.received() > 39*mib {
			t.Errorf("result %+v, received %.1f MiB", res, float64(l.received())/mib)
		}
		if d := learns(t, ds, resume.Fragile); d.Chunk > 5*mib {
			t.Errorf("chunks of %d bytes", d.Chunk)
		}
	})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.dying(8 * mib)
		if res := l.delivers(content(30 * mib)); res.Restarts != 0 || res.Breaks != 0 {
			t.Errorf("the next blob: %+v", res)
		}
		if n := len(l.patches()); l.net.Conns() < n {
			t.Errorf("%d PATCHes over %d connections", n, l.net.Conns())
		}
	})
}

// Where the chunks are lost as well, they become smaller until they get
// through.
func TestFragileHalves(t *testing.T) {
	o := scripted.Options{Store: scripted.Fragile, StaleIsGone: true, LooseRange: true}
	inLab(t, o, resume.Options{}, func(l *lab) {
		l.net.Plan = func(n int) memnet.Limits {
			if n < 3 {
				return memnet.Limits{Up: 10 * mib, Down: -1}
			}
			return memnet.Limits{Up: 3 * mib, Down: -1}
		}
		if res := l.delivers(content(12 * mib)); res.Restarts < 2 || res.Restarts > 4 {
			t.Errorf("result %+v", res)
		}
	})
}

// No way through: the error says what would help, by type.
func TestFragileForEver(t *testing.T) {
	o := scripted.Options{Store: scripted.Fragile}
	inLab(t, o, resume.Options{RetryFor: 24 * time.Hour}, func(l *lab) {
		l.dying(100_000)
		e := l.fails(blobOf(content(5*mib)), resume.ErrInterrupted)
		var lost *resume.LostError
		if !errors.As(e, &lost) || lost.Times != 8 {
			t.Errorf("got %v, want a LostError", e)
		}
	})
}

func TestBodyLimit(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{MaxBody: 3 * mib}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		res := l.delivers(content(20 * mib))
		if res.Breaks+res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
		if d, _ := ds.Load(host); d.MaxBody > 3*mib || d.MaxBody < mib {
			t.Errorf("learnt %+v", d)
		}
	})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(20 * mib))
		for _, p := range l.patches() {
			if p.Status != http.StatusAccepted {
				t.Errorf("the next blob got %d", p.Status)
			}
		}
	})
	// A limit that nothing passes is an error.
	inLab(t, scripted.Options{MaxBody: 10}, resume.Options{}, func(l *lab) {
		l.fails(blobOf(content(mib)), resume.ErrRefused)
	})
}

func TestMonolithic(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{OnePatch: true, Intercept: brokenBody(5000)}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		if res := l.delivers(content(10_000)); res.Restarts != 1 {
			t.Errorf("result %+v", res)
		}
		learns(t, ds, resume.Monolithic)
	})
}

// A Range that stays where the first chunk ended: what was acknowledged counts.
func TestStuckRange(t *testing.T) {
	inLab(t, scripted.Options{Range: scripted.Stuck, MaxBody: 2 * mib}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(9 * mib)); res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
	})
}

func TestMinimalChunk(t *testing.T) {
	o := scripted.Options{Store: scripted.Boundary, MinChunk: 4 * mib}
	inLab(t, o, resume.Options{}, func(l *lab) {
		l.net.Plan = func(n int) memnet.Limits {
			if n < 8 {
				return memnet.Limits{Up: 3 * mib, Down: -1}
			}
			return memnet.Unlimited()
		}
		l.delivers(content(9 * mib))
		for _, p := range l.patches() {
			if end := p.Start + p.Length; p.Length < 4*mib && end != 9*mib {
				t.Errorf("a chunk of %d bytes at %d", p.Length, p.Start)
			}
		}
	})
}

// A class is a hint that a later proof corrects.
func TestLaterProofCorrects(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{Class: resume.Fragile, Chunk: 4 * mib})
	inLab(t, scripted.Options{Intercept: brokenBody(mib)}, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(10 * mib))
		learns(t, ds, resume.Exact)
	})
	ds.Save(host, resume.Dialect{Class: resume.Boundary, Chunk: 4 * mib})
	inLab(t, scripted.Options{Intercept: brokenBody(mib)}, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(10 * mib))
		learns(t, ds, resume.Exact)
	})
	// One lost session does not unprove what was proved: a restart does that.
	lost := on(scripted.Patch, 1, scripted.Action{BreakBody: true, BodyLimit: mib, ForgetSession: true})
	inLab(t, scripted.Options{Intercept: lost}, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(10 * mib))
		learns(t, ds, resume.Exact)
	})
}

func TestNonsenseHintsAreHarmless(t *testing.T) {
	for _, d := range []resume.Dialect{
		{Class: "nonsense", Chunk: 5},
		{Class: resume.Boundary, Chunk: -7},
		{Class: resume.Fragile, Chunk: 1},
		{Class: resume.Boundary, Chunk: 1 << 62, MaxBody: -1},
		{MaxBody: 1},
		{OffByOne: true, StatusGET: true},
	} {
		ds := resume.MemoryDialects()
		ds.Save(host, d)
		inLab(t, scripted.Options{Intercept: brokenBody(5000)}, resume.Options{Dialects: ds}, func(l *lab) {
			if l.delivers(content(300_000)); len(l.patches()) > 10 {
				t.Errorf("%+v: %d PATCHes", d, len(l.patches()))
			}
		})
	}
}

// Web pages instead of answers, for ever: the loop waits between tries, and
// ends with its budget.
func TestAnswersThatMeanNothing(t *testing.T) {
	html := http.Header{"Content-Type": {"text/html"}}
	for name, kinds := range map[string][]scripted.Kind{
		"patch":          {scripted.Patch},
		"commit":         {scripted.Put},
		"status":         {scripted.Patch, scripted.Status},
		"all but a POST": {scripted.Patch, scripted.Status, scripted.Put, scripted.HeadBlob},
	} {
		t.Run(name, func(t *testing.T) {
			f := func(r scripted.Request) scripted.Action {
				if slices.Contains(kinds, r.Kind) {
					return scripted.Action{Before: 200, Header: html}
				}
				return scripted.Action{}
			}
			inLab(t, scripted.Options{Intercept: f}, resume.Options{RetryFor: 5 * time.Minute}, func(l *lab) {
				began := time.Now()
				l.fails(blobOf(content(10_000)), resume.ErrInterrupted)
				if took := time.Since(began); took < time.Minute || took > 20*time.Minute {
					t.Errorf("took %s", took)
				}
				if n := len(l.reg.Requests()); n > 1000 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// 4xx answers that make no sense, for ever: no endless loop, a named error.
func TestRefusedForEver(t *testing.T) {
	for _, kind := range []scripted.Kind{scripted.Patch, scripted.Put, scripted.Status} {
		for _, status := range []int{400, 404, 405, 409, 410, 416, 429, 500} {
			f := func(r scripted.Request) scripted.Action {
				if r.Kind == kind {
					return scripted.Action{Before: status}
				}
				return brokenBody(5000)(r)
			}
			inLab(t, scripted.Options{Intercept: f}, resume.Options{RetryFor: 5 * time.Minute}, func(l *lab) {
				_, err := l.client.Upload(l.t.Context(), blobOf(content(10_000)))
				if err == nil && kind != scripted.Status {
					t.Errorf("%s always %d: success", kind, status)
				}
				if n := len(l.reg.Requests()); n > 1000 {
					t.Errorf("%s always %d: %d requests", kind, status, n)
				}
			})
		}
	}
}

func TestMemoryDialects(t *testing.T) {
	ds := resume.MemoryDialects()
	if d, ok := ds.Load("x"); ok || !reflect.DeepEqual(d, resume.Dialect{}) {
		t.Errorf("got %+v, %v", d, ok)
	}
}

// GHCR refuses bodies above 4 MiB that have a Content-Range. Whole blobs go
// without, what is left after a break goes in chunks with it.
func TestContentRangeLimit(t *testing.T) {
	ds := resume.MemoryDialects()
	const limit = 4 * mib
	o := scripted.GHCR()
	o.Store = scripted.Keep
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(20 * mib))
		if ps := l.patches(); len(ps) != 1 || ps[0].Start != -1 || ps[0].Length != 20*mib {
			t.Errorf("patches %+v, want one of all without Content-Range", ps)
		}
		if d, _ := ds.Load(host); d != (resume.Dialect{}) {
			t.Errorf("learnt %+v from a clean push", d)
		}
	})
	o.Intercept = brokenBody(5*mib + 1)
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		res := l.delivers(content(20 * mib))
		if res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
		at, size := int64(5*mib+1), int64(0)
		for _, p := range l.patches()[1:] {
			if p.Status == http.StatusRequestedRangeNotSatisfiable {
				continue
			}
			if p.Start != at || p.Length > limit || size > 0 && p.Length > size {
				t.Errorf("a chunk of %d from %d, want one from %d", p.Length, p.Start, at)
			}
			at, size = at+p.Length, p.Length
		}
	})
	o.Intercept = nil
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) { // what was learnt is about Content-Range only
		l.delivers(content(20 * mib))
		if ps := l.patches(); len(ps) != 1 {
			t.Errorf("%d patches, want 1", len(ps))
		}
	})
}

// 416 to the first bytes of a session that nothing was sent to is about their
// number, whatever the words: equal chunks with Content-Range from then on.
func TestRangeRefusalAtZero(t *testing.T) {
	ds := resume.MemoryDialects()
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Length > 6*mib {
			return scripted.Action{Before: http.StatusRequestedRangeNotSatisfiable}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: f}, resume.Options{Dialects: ds}, func(l *lab) {
		if res := l.delivers(content(18 * mib)); res.Breaks+res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
		d, _ := ds.Load(host)
		if d.MaxBody > 6*mib || d.MaxBody < 3*mib {
			t.Errorf("learnt %+v", d)
		}
		at := int64(0)
		for _, p := range l.patches() {
			if p.Status != http.StatusAccepted {
				continue
			}
			if p.Start != at || p.Length != min(d.MaxBody, 18*mib-at) {
				t.Errorf("a chunk of %d from %d, want %d from %d", p.Length, p.Start, d.MaxBody, at)
			}
			at += p.Length
		}
	})
}

// latency makes what a client sees of an early answer depend on positions, not
// on which goroutine is quicker: see memnet.Network.
const latency = 200 * time.Nanosecond

func TestECR(t *testing.T) {
	ds := resume.MemoryDialects()
	learnt := resume.Dialect{Class: resume.Exact, StuckRange: true, NoStatus: true}
	breaks := func(nth ...int) func(scripted.Request) scripted.Action {
		return func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Patch && slices.Contains(nth, r.Seq) {
				return scripted.Action{BreakBody: true, BodyLimit: min(12*mib, r.Length/2)}
			}
			return scripted.Action{}
		}
	}
	o := scripted.ECR()
	o.Intercept = breaks(1)
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		if res := l.delivers(content(40 * mib)); res.Restarts != 1 { // nothing is known yet
			t.Errorf("result %+v", res)
		}
		if d, _ := ds.Load(host); !d.StuckRange || !d.NoStatus {
			t.Errorf("learnt %+v", d)
		}
	})
	o.Intercept = breaks(1, 3)
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		res := l.delivers(content(40 * mib))
		if res.Restarts != 0 || res.Breaks != 2 || res.Resumes < 2 {
			t.Errorf("result %+v", res)
		}
		if most := int64(40*mib) * 13 / 10; res.Sent > most {
			t.Errorf("%d bytes were sent, want at most %d", res.Sent, most)
		}
		if d, _ := ds.Load(host); d != learnt {
			t.Errorf("learnt %+v, want %+v", d, learnt)
		}
	})
	// No break, but a limit on bodies: the count goes on without questions.
	ds.Save(host, resume.Dialect{MaxBody: 5 * mib, StuckRange: true, NoStatus: true})
	o.Intercept = nil
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		if res := l.delivers(content(22 * mib)); res.Restarts != 0 || l.count(scripted.Status) != 0 {
			t.Errorf("result %+v, %d status requests", res, l.count(scripted.Status))
		}
	})
}

// A host that is wrongly believed to have no status endpoint loses sessions for
// good, and then knows one again.
func TestNoStatusCorrected(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{StuckRange: true, NoStatus: true})
	inLab(t, scripted.Options{Store: scripted.Fragile, Intercept: brokenBody(3 * mib)}, resume.Options{Dialects: ds}, func(l *lab) {
		if res := l.delivers(content(20 * mib)); res.Restarts != 1 {
			t.Errorf("result %+v", res)
		}
	})
	inLab(t, scripted.Options{Intercept: brokenBody(3 * mib)}, resume.Options{Dialects: ds}, func(l *lab) {
		if res := l.delivers(content(20 * mib)); res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
		if d, _ := ds.Load(host); d.NoStatus {
			t.Errorf("learnt %+v", d)
		}
	})
}

// Object storage takes parts of 5 MiB and more. Chunks are not smaller if a
// connection carries as much.
func TestLeastPart(t *testing.T) {
	for name, store := range map[string]scripted.Store{"boundary": scripted.Boundary, "fragile": scripted.Fragile} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{Store: store, MinPart: 5 * mib}, resume.Options{RetryFor: time.Minute}, func(l *lab) {
				l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 8 * mib, Down: -1} }
				l.delivers(content(40 * mib))
			})
		})
	}
}

// A 416 to the first body of a session reads as a limit on bodies. If it was none,
// what follows from it may not end the upload: smaller parts whose commit fails, as
// on ECR, or a second PATCH where only one is taken, as on Artifact Registry.
func TestSpuriousRangeRefusal(t *testing.T) {
	others := []scripted.Personality{
		{Name: "least part", Options: scripted.Options{MinPart: 5 * mib}},
		{Name: "least chunk", Options: scripted.Options{MinChunk: 5 * mib}},
		{Name: "one PATCH", Options: scripted.Options{OnePatch: true}},
	}
	for _, p := range append(others, scripted.Personalities()...) {
		for _, size := range []int{2 * mib, 9 * mib} {
			o := p.Options
			o.Intercept = on(scripted.Patch, 1, scripted.Action{Before: http.StatusRequestedRangeNotSatisfiable})
			inLab(t, o, resume.Options{}, func(l *lab) {
				res, err := l.client.Upload(context.Background(), blobOf(content(size)))
				if err != nil || res.Sent > 4*int64(size) {
					t.Errorf("%s, %d MiB: sent %d bytes, %v", p.Name, size/mib, res.Sent, err)
				}
			})
		}
	}
}
