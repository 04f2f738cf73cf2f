// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// A registry that keeps whole parts only loses much of a body that is all that
// is left: chunks cost less. One that keeps every byte gets no chunks.
func TestCostOfABreak(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{PartSize: 20 * mib}
	const size = 100 * mib
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.dying(32 * mib)
		res := l.delivers(content(size))
		if most := int64(size) * 120 / 100; res.Sent > most || res.Restarts != 0 {
			t.Errorf("%.2f x the blob was sent, want at most 1.20: %+v", float64(res.Sent)/size, res)
		}
		if d := learns(t, ds, resume.Exact); d.Chunk < 5*mib || d.Chunk > 12*mib {
			t.Errorf("learnt %+v, want chunks", d)
		}
	})
	// A line that has become good needs no chunks.
	ds.Save(host, resume.Dialect{Class: resume.Exact, Chunk: 20 * mib})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.delivers(content(size))
		if d := learns(t, ds, resume.Exact); d.Chunk != 0 {
			t.Errorf("after 100 MiB without a break: %+v", d)
		}
	})
	// Nor does a registry that keeps every byte.
	ds.Save(host, resume.Dialect{Class: resume.Exact, Chunk: 20 * mib})
	inLab(t, scripted.Options{}, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.dying(16 * mib)
		res := l.delivers(content(40 * mib))
		if d := learns(t, ds, resume.Exact); d.Chunk != 0 || res.Sent > 41*mib {
			t.Errorf("learnt %+v, and sent %d bytes", d, res.Sent)
		}
	})
}

// losesAnswers has the registry take PATCHes of more than n bytes and break the
// connection instead of answering.
func losesAnswers(n int64) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Length > n {
			return scripted.Action{AfterReset: true}
		}
		return scripted.Action{}
	}
}

// An answer to a whole PATCH that is lost takes the session with it where only
// the answer has the new location. That is a lesson: smaller chunks, remembered.
func TestLostAnswers(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{StaleIsGone: true, LooseRange: true, Intercept: losesAnswers(6 * mib)}
	const size = 40 * mib
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		if res := l.delivers(content(size)); res.Sent > 3*size {
			t.Errorf("%.2f x the blob was sent, want at most 3: %+v", float64(res.Sent)/size, res)
		}
		learns(t, ds, resume.Fragile)
	})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		if res := l.delivers(content(size)); res.Sent != size {
			t.Errorf("the next blob: %+v", res)
		}
	})
	// The first lost answer to a small body may be chance, and teaches nothing.
	ds = resume.MemoryDialects()
	o.Intercept = on(scripted.Patch, 1, scripted.Action{AfterReset: true})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.delivers(content(3 * mib))
		learns(t, ds, resume.Unproved)
	})
}

// What is remembered may be wrong, or not true any more. It is dropped in the
// push that it makes fail.
func TestWrongLessons(t *testing.T) {
	chunks := resume.Dialect{Class: resume.Boundary, Chunk: mib}
	parts := scripted.ECR()
	for name, c := range map[string]struct {
		hint resume.Dialect
		o    scripted.Options
	}{
		"chunks below a part":       {chunks, scripted.Options{MinPart: 5 * mib}},
		"chunks below a part, ECR":  {chunks, parts},
		"a limit below a part":      {resume.Dialect{MaxBody: mib}, scripted.Options{MinPart: 5 * mib}},
		"chunks, but one PATCH":     {resume.Dialect{Class: resume.Fragile, Chunk: 2 * mib}, scripted.Options{OnePatch: true}},
		"Range wrongly off by one":  {resume.Dialect{OffByOne: true}, scripted.Options{Intercept: brokenBody(3 * mib)}},
		"session gone after chunks": {chunks, scripted.Options{Intercept: smallIsGone(5 * mib)}},
	} {
		t.Run(name, func(t *testing.T) {
			ds := resume.MemoryDialects()
			ds.Save(host, c.hint)
			inLab(t, c.o, resume.Options{Dialects: ds}, func(l *lab) {
				l.net.Latency = latency
				if res := l.delivers(content(12 * mib)); res.Restarts > 1 {
					t.Errorf("result %+v", res)
				}
				d, _ := ds.Load(host)
				if d.Chunk != 0 && d.Chunk < 5*mib || d.MaxBody != 0 || d.OffByOne {
					t.Errorf("still remembered: %+v", d)
				}
			})
		})
	}
}

// smallIsGone has sessions vanish that took a PATCH of less than n bytes.
func smallIsGone(n int64) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		return scripted.Action{ForgetSession: r.Kind == scripted.Patch && r.N > 1 && r.Length < n}
	}
}

// randomly has each connection die after an exponentially drawn number of bytes.
func (l *lab) randomly(seed uint64, mean float64) {
	l.net.Plan = func(n int) memnet.Limits {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		return memnet.Limits{Up: 1 + int64(r.ExpFloat64()*mean), Down: -1}
	}
}

// A registry that loses the session with the connection, and connections that
// break at random. If a layer has a fair chance between two breaks, the upload
// goes on for more than eight sessions. If it has none, the upload ends soon and
// says what it measured.
func TestOdds(t *testing.T) {
	o := scripted.Options{Store: scripted.Fragile, StaleIsGone: true, LooseRange: true}
	more := 0
	for seed := range uint64(5) {
		inLab(t, o, resume.Options{}, func(l *lab) {
			l.net.Latency = latency
			l.randomly(seed, 4<<20)
			if l.delivers(content(8*mib)).Restarts > 8 {
				more++
			}
		})
	}
	if more == 0 {
		t.Error("no upload needed more than eight sessions: the test shows nothing")
	}
	for seed := range uint64(2) {
		ds := resume.MemoryDialects()
		inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
			l.net.Latency = latency
			l.randomly(seed, 10<<20)
			const size = 80 * mib
			res, err := l.client.Upload(context.Background(), blobOf(content(size)))
			var lost *resume.LostError
			if !errors.As(err, &lost) || !errors.Is(err, resume.ErrInterrupted) {
				t.Fatalf("got %v, want a LostError", err)
			}
			if lost.Between < 3*mib || lost.Between > 25*mib || lost.Times < 5 {
				t.Errorf("measured %+v, want about 10 MiB", lost)
			}
			if res.Sent > 2*size {
				t.Errorf("%.2f x the blob was sent in vain", float64(res.Sent)/size)
			}
			if d := learns(t, ds, resume.Fragile); d.Chunk != 0 {
				t.Errorf("chunks did not help, and are remembered: %+v", d)
			}
		})
	}
}

// Small chunks fit into the sockets, so that a break after a few bytes looks like a
// lost answer. It counts for the odds all the same.
func TestOddsOfBodiesSentWhole(t *testing.T) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	o := scripted.Options{StaleIsGone: true, LooseRange: true, Intercept: func(q scripted.Request) scripted.Action {
		mu.Lock()
		defer mu.Unlock()
		return scripted.Action{AfterReset: q.Kind == scripted.Patch && r.ExpFloat64()*(5<<20) < float64(q.Length)}
	}}
	inLab(t, o, resume.Options{Dialects: hinted(resume.Dialect{Class: resume.Fragile, Chunk: mib})}, func(l *lab) {
		const size = 80 * mib
		res, err := l.client.Upload(context.Background(), blobOf(content(size)))
		var lost *resume.LostError
		if !errors.As(err, &lost) {
			t.Fatalf("got %v, want a LostError", err)
		}
		if lost.Between < mib || lost.Between > size/6 || lost.Times < 5 || res.Sent > size {
			t.Errorf("measured %+v after %d bytes, want about 5 MiB", lost, res.Sent)
		}
	})
}

func hinted(d resume.Dialect) resume.Dialects {
	ds := resume.MemoryDialects()
	ds.Save(host, d)
	return ds
}

// secondary is GHCR's rate limit: 403, and only the body says what it means.
const secondary = `{"errors":[{"code":"DENIED","message":"permission_denied: Error from intermediary with HTTP status code 403 \"Forbidden\"` +
	` - with-body: {\"message\":\"You have exceeded a secondary rate limit. Please wait a few minutes before you try again.\"}"}]}`

// 403 to HEAD has no body. GET tells a denial from a rate limit.
func TestHeadForbidden(t *testing.T) {
	answers := func(body string, until int) func(scripted.Request) scripted.Action {
		return func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.HeadBlob && r.Seq <= until {
				return scripted.Action{Before: http.StatusForbidden, Body: []byte(body), Header: http.Header{"Content-Type": {"application/json"}}}
			}
			return scripted.Action{}
		}
	}
	inLab(t, scripted.Options{Intercept: answers(secondary, 4)}, resume.Options{}, func(l *lab) {
		began := time.Now()
		l.delivers(content(10_000))
		if took := time.Since(began); took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("took %s, want two waits of a minute", took)
		}
	})
	denied := `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`
	inLab(t, scripted.Options{Intercept: answers(denied, 100)}, resume.Options{}, func(l *lab) {
		l.fails(blobOf(content(10_000)), resume.ErrDenied)
		if n := l.count(scripted.HeadBlob); n != 2 {
			t.Errorf("%d requests, want HEAD and GET", n)
		}
	})
}

// rateLimited allows n requests at once and n a minute, and refuses others in
// GHCR's words.
func rateLimited(n int, refused *int) func(scripted.Request) scripted.Action {
	var mu sync.Mutex
	var last time.Time
	left := float64(n)
	return func(scripted.Request) scripted.Action {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if !last.IsZero() {
			left = min(left+now.Sub(last).Minutes()*float64(n), float64(n))
		}
		if last = now; left >= 1 {
			left--
			return scripted.Action{}
		}
		*refused++
		return scripted.Action{
			Before: http.StatusTooManyRequests, Header: http.Header{"Content-Type": {"application/json"}},
			Body: fmt.Appendf(nil, `{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: %dms, allowed: %d/minute"}]}`, 60_000/n, n),
		}
	}
}

// Many small chunks do not run into a limit of requests per minute again and
// again: the pace is learnt from the first refusal, and remembered.
func TestRequestsPerMinute(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{MaxBody: 64 << 10})
	for i, most := range []int{3, 0} {
		refused := 0
		inLab(t, scripted.Options{Intercept: rateLimited(120, &refused)}, resume.Options{Dialects: ds}, func(l *lab) {
			l.net.Latency = latency
			l.delivers(content(300 * 64 << 10))
			if refused > most {
				t.Errorf("blob %d: %d requests were refused, want at most %d", i, refused, most)
			}
			if d, _ := ds.Load(host); d.PerMinute != 120 {
				t.Errorf("learnt %+v, want 120 a minute", d)
			}
		})
		ds.Save(host, resume.Dialect{MaxBody: 64 << 10, PerMinute: 120})
	}
}

// Sessions that vanish when there are too many at once: fewer at once, for that
// host.
func TestSessionsVanish(t *testing.T) {
	ds := resume.MemoryDialects()
	for i, most := range []int{8, 0} {
		inLab(t, scripted.Options{MaxSessions: 2}, resume.Options{Dialects: ds, RetryFor: time.Minute}, func(l *lab) {
			l.net.Connecting, l.net.Latency = time.Millisecond, latency
			data := make([][]byte, 8)
			for i := range data {
				data[i] = append(content(2*mib), byte(i))
			}
			var group sync.WaitGroup
			restarts := make([]int, len(data))
			for i := range data {
				group.Go(func() {
					res, err := l.client.Upload(context.Background(), blobOf(data[i]))
					if err != nil {
						t.Errorf("blob %d: %v", i, err)
					}
					restarts[i] = res.Restarts
				})
			}
			group.Wait()
			sum := 0
			for i, n := range restarts {
				l.has(data[i])
				sum += n
			}
			if d, _ := ds.Load(host); d.Parallel < 1 || d.Parallel > 2 || sum > most {
				t.Errorf("push %d: learnt %+v; %v restarts, want at most %d", i, d, restarts, most)
			}
		})
	}
}
