// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// r2 answers as Cloudflare's registry does: it announces a least and a largest
// chunk, wants all chunks of a session equal but the last, and keeps nothing of a
// broken one. Its limit is 100 MB there.
func r2(most int64) scripted.Options {
	return scripted.Options{
		Store: scripted.Boundary, Status: scripted.GetOnly, Location: scripted.Relative, Range: scripted.EmptyMinusOne,
		MinChunk: 5 * mib, MaxChunk: most, EqualChunks: true,
	}
}

// equal wants the PATCHes that were accepted to be of one size, but the last, and
// none to be refused.
func (l *lab) equal(size int64) {
	l.t.Helper()
	sizes := map[int][]int64{}
	for _, p := range l.patches() {
		switch p.Status {
		case http.StatusAccepted:
			sizes[p.Session] = append(sizes[p.Session], p.Length)
		case 0:
		default:
			l.t.Errorf("a PATCH of %d bytes at %d got %d", p.Length, p.Start, p.Status)
		}
		if p.Start < 0 && p.Length < size {
			l.t.Errorf("a chunk of %d bytes without Content-Range", p.Length)
		}
	}
	for session, s := range sizes {
		for _, n := range s[:len(s)-1] {
			if n != s[0] {
				l.t.Errorf("session %d took chunks of %v", session, s)
				break
			}
		}
	}
}

// OCI-Chunk-Max-Length bounds every body, and all chunks of a session are equal.
func TestLargestChunk(t *testing.T) {
	ds := resume.MemoryDialects()
	inLab(t, r2(12*mib), resume.Options{Dialects: ds}, func(l *lab) {
		if res := l.delivers(content(34 * mib)); res.Breaks+res.Restarts != 0 || l.count(scripted.Status) != 0 {
			t.Errorf("result %+v, %d status requests", res, l.count(scripted.Status))
		}
		l.equal(34 * mib)
		if n := len(l.patches()); n != 4 {
			t.Errorf("%d PATCHes, want 4", n)
		}
		if d, _ := ds.Load(host); d.MaxChunk != 12*mib {
			t.Errorf("learnt %+v", d)
		}
	})
	// What fits goes in one, without Content-Range.
	inLab(t, r2(12*mib), resume.Options{}, func(l *lab) {
		l.delivers(content(12 * mib))
		if ps := l.patches(); len(ps) != 1 || ps[0].Start != -1 {
			t.Errorf("patches %+v", ps)
		}
	})
	// Where it is not announced any more, it does not bound anything.
	inLab(t, scripted.Options{}, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(34 * mib))
		if d, _ := ds.Load(host); len(l.patches()) != 1 || d.MaxChunk != 0 {
			t.Errorf("%d PATCHes, learnt %+v", len(l.patches()), d)
		}
	})
	// Small blobs obey it as well.
	inLab(t, scripted.Options{MaxChunk: 100_000}, inOne(nil), func(l *lab) {
		l.delivers(content(300_000))
		l.equal(300_000)
	})
}

// Bounds that contradict each other, or are out of all reason, end no upload.
func TestOddChunkLengths(t *testing.T) {
	for _, o := range []scripted.Options{
		{MinChunk: 5 * mib, MaxChunk: 2 * mib},
		{MinChunk: 2 * mib, MaxChunk: 2 * mib},
		{MinChunk: 1, MaxChunk: 1<<63 - 1},
		{MaxChunk: 1_500_000},
		{MinChunk: 1_400_000, MaxChunk: 1_500_000},
	} {
		inLab(t, o, resume.Options{}, func(l *lab) {
			l.delivers(content(9 * mib))
			l.equal(9 * mib)
			for _, p := range l.patches() {
				if end := max(p.Start, 0) + p.Length; p.Length < min(o.MinChunk, o.MaxChunk) && end != 9*mib {
					t.Errorf("%+v: a chunk of %d at %d", o, p.Length, p.Start)
				}
			}
		})
	}
}

// After a break the session goes on with chunks of the same size. If they do not
// get through, a new session takes smaller ones.
func TestEqualChunks(t *testing.T) {
	o := r2(10 * mib)
	o.Intercept = all(
		on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 3 * mib}),
		on(scripted.Patch, 4, scripted.Action{BreakBody: true, BodyLimit: 3 * mib}),
	)
	inLab(t, o, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(42 * mib)); res.Breaks != 2 || res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
		l.equal(42 * mib)
	})
	ds := resume.MemoryDialects()
	inLab(t, r2(20*mib), resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Plan = func(n int) memnet.Limits {
			if n == 0 {
				return memnet.Limits{Up: 30 * mib, Down: -1}
			}
			return memnet.Limits{Up: 12 * mib, Down: -1}
		}
		if res := l.delivers(content(70 * mib)); res.Restarts != 1 {
			t.Errorf("result %+v", res)
		}
		l.equal(70 * mib)
		if d, _ := ds.Load(host); d.Class != resume.Boundary || d.Chunk > 12*mib {
			t.Errorf("learnt %+v", d)
		}
	})
}

// The next process goes on with chunks of the size of the first.
func TestEqualChunksAcrossProcesses(t *testing.T) {
	store := resume.MemoryStore()
	ds := resume.MemoryDialects()
	data := content(42 * mib)
	o := r2(10 * mib)
	var session scripted.Request
	o.Intercept = func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Seq == 3 {
			session = r
			return scripted.Action{BeforeReset: true}
		}
		if session.Seq > 0 && r.Seq < 5 && r.Kind == scripted.Status {
			return scripted.Action{Before: http.StatusServiceUnavailable}
		}
		return scripted.Action{}
	}
	inLab(t, o, resume.Options{Store: store, Dialects: ds, RetryFor: -1}, func(l *lab) {
		_, err := l.client.Upload(l.t.Context(), blobOf(data))
		if !errors.Is(err, resume.ErrInterrupted) {
			t.Fatalf("got %v", err)
		}
		ds.Save(host, resume.Dialect{Class: resume.Boundary, Chunk: 5 * mib, MaxChunk: 10 * mib})
		time.Sleep(time.Minute)
		for range 9 {
			if _, err = l.client.Upload(l.t.Context(), blobOf(data)); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		l.has(data)
		l.equal(42 * mib)
		if sessions := l.count(scripted.Post); sessions != 1 {
			t.Errorf("%d sessions", sessions)
		}
		var lengths []int64
		for _, p := range l.patches() {
			lengths = append(lengths, p.Length)
		}
		if slices.Max(lengths) != 10*mib {
			t.Errorf("chunks of %v", lengths)
		}
	})
}
