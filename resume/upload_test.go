// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

func TestCleanUpload(t *testing.T) {
	for _, n := range []int{0, 1, 2, 4095, 4096, 100_000, 1 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
				res := l.delivers(content(n))
				if res.Sent != int64(n) || res.Breaks+res.Resumes+res.Restarts != 0 || res.Existed || res.Mounted {
					t.Errorf("result %+v", res)
				}
				patches := 1
				if n == 0 {
					patches = 0
				}
				if got := l.count(scripted.Patch); got != patches {
					t.Errorf("%d PATCHes, want %d", got, patches)
				}
				if got := l.count(scripted.Status); got != 0 {
					t.Errorf("%d status requests on a healthy link", got)
				}
				if l.net.Conns() != 1 {
					t.Errorf("%d connections, want 1", l.net.Conns())
				}
			})
		})
	}
}

func TestExistingBlob(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		data := content(1000)
		l.reg.PutBlob("team/app", digest.FromBytes(data).String(), data)
		if res := l.delivers(data); !res.Existed || res.Sent != 0 {
			t.Errorf("result %+v", res)
		}
		l.wants(resume.Existed)
		if n := len(l.reg.Requests()); n != 1 {
			t.Errorf("%d requests, want one HEAD", n)
		}
	})
}

// A server that has something of another size under the digest, or says 200 to
// everything, is not believed.
func TestExistingBlobOfAnotherSize(t *testing.T) {
	inLab(t, scripted.Options{Intercept: on(scripted.HeadBlob, 1, scripted.Action{Before: 200})}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(1000)); res.Existed {
			t.Errorf("result %+v", res)
		}
	})
}

func TestMount(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		data := content(1000)
		l.reg.PutBlob("team/base", digest.FromBytes(data).String(), data)
		blob := blobOf(data)
		blob.MountFrom = "team/base"
		if res, err := l.client.Upload(l.t.Context(), blob); err != nil || !res.Mounted || res.Sent != 0 {
			t.Errorf("result %+v, %v", res, err)
		}
		l.has(data)
		other := blobOf(content(999)) // not there: 202, and sent
		other.MountFrom = "team/base"
		if res, err := l.client.Upload(l.t.Context(), other); err != nil || res.Mounted || res.Sent != 999 {
			t.Errorf("result %+v, %v", res, err)
		}
	})
}

// brokenBody breaks the first PATCH after some bytes.
func brokenBody(n int64) func(scripted.Request) scripted.Action {
	return on(scripted.Patch, 1, scripted.Action{BreakBody: true, BodyLimit: n})
}

func TestResume(t *testing.T) {
	const size = 200_000
	for _, at := range []int64{0, 1, 2, 1000, size - 1, size} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			inLab(t, scripted.Options{Intercept: brokenBody(at)}, resume.Options{}, func(l *lab) {
				res := l.delivers(content(size))
				if res.Breaks != 1 || res.Restarts != 0 && at != 1 {
					t.Errorf("result %+v", res)
				}
				var patches []scripted.Request
				for _, r := range l.reg.Requests() {
					if r.Kind == scripted.Patch {
						patches = append(patches, r)
					}
				}
				if at > 1 && at < size && (len(patches) != 2 || patches[1].Start != at || patches[1].Body != size-at) {
					t.Errorf("patches %+v", patches)
				}
			})
		})
	}
}

func TestResumeEvents(t *testing.T) {
	inLab(t, scripted.Options{Intercept: brokenBody(50_000)}, resume.Options{}, func(l *lab) {
		l.delivers(content(100_000))
		l.wants(resume.Opened, resume.Broken, resume.Settled, resume.Resumed, resume.Settled, resume.Committing, resume.Committed)
		for _, e := range l.events {
			switch {
			case e.Time.IsZero() || e.Repository != repository || e.Digest == "" || e.Size != 100_000:
				t.Errorf("event without its facts: %+v", e)
			case e.Kind == resume.Broken && (e.Conn == nil || e.Conn.Remote == "" || !errors.Is(e.Err, syscall.ECONNRESET) && !errors.Is(e.Err, net.ErrClosed)):
				t.Errorf("break without its connection: %+v", e)
			case e.Kind == resume.Resumed && e.Offset != 50_000:
				t.Errorf("resumed at %d, want 50000", e.Offset)
			}
		}
	})
}

// Every connection dies, for as long as there is anything to send.
func TestEveryConnectionDies(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 40_000, Down: -1} }
		res := l.delivers(content(1 << 20))
		if res.Restarts != 0 || res.Resumes < 20 || res.Sent > 1<<20+int64(res.Breaks)*200_000 {
			t.Errorf("result %+v", res)
		}
	})
}

func TestDialects(t *testing.T) {
	const size = 100_000
	for _, c := range []struct {
		name             string
		o                scripted.Options
		resumes, restart int
	}{
		{"HEAD and GET", scripted.Options{}, 1, 0},
		{"GET only", scripted.Options{Status: scripted.GetOnly}, 1, 0},
		{"no status", scripted.Options{Status: scripted.NoStatus}, 0, 1},
		{"bytes= prefix", scripted.Options{Range: scripted.BytesPrefix}, 1, 0},
		{"0--1", scripted.Options{Range: scripted.EmptyMinusOne}, 1, 0},
		{"off by one", scripted.Options{Range: scripted.OffByOne}, 2, 0},
		{"no Range", scripted.Options{Range: scripted.NoRange}, 0, 1},
		{"no Location on status", scripted.Options{Location: scripted.MissingOnStatus}, 2, 1},
		{"relative location", scripted.Options{Location: scripted.Relative}, 1, 0},
		{"other host", scripted.Options{Location: scripted.OtherHost, OtherHost: "other.test"}, 1, 0},
		{"boundary", scripted.Options{Store: scripted.Boundary}, 0, 0},
		{"fragile", scripted.Options{Store: scripted.Fragile}, 0, 1},
		{"parts", scripted.Options{PartSize: 16 << 10}, 1, 0},
		{"2.x", scripted.Options{StaleIsGone: true, LooseRange: true}, 0, 1},
		{"2.x behind a buffering proxy", scripted.Options{StaleIsGone: true, LooseRange: true, Store: scripted.Boundary}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Intercept = brokenBody(60_000)
			inLab(t, c.o, resume.Options{}, func(l *lab) {
				res := l.delivers(content(size))
				if res.Resumes != c.resumes || res.Restarts != c.restart || res.Breaks != 1 {
					t.Errorf("result %+v, want %d resumes, %d restarts", res, c.resumes, c.restart)
				}
			})
		})
	}
}

// The verb that answers is remembered: HEAD is tried once.
func TestStatusVerbIsRemembered(t *testing.T) {
	inLab(t, scripted.Options{Status: scripted.GetOnly}, resume.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 30_000, Down: -1} }
		l.delivers(content(200_000))
		heads := 0
		for _, r := range l.reg.Requests() {
			if r.Kind == scripted.Status && r.Method == http.MethodHead {
				heads++
			}
		}
		if heads != 1 {
			t.Errorf("%d HEADs on upload URLs, want 1", heads)
		}
	})
}

func TestCommitInDoubt(t *testing.T) {
	for name, c := range map[string]struct {
		a        scripted.Action
		restarts int
	}{
		"lost before":      {scripted.Action{BeforeReset: true}, 0},
		"answer lost":      {scripted.Action{AfterReset: true}, 0},
		"502 instead":      {scripted.Action{Before: 502}, 0},
		"502 after":        {scripted.Action{After: 502}, 0},
		"404 after":        {scripted.Action{After: 404}, 0},
		"200 after":        {scripted.Action{After: 200}, 0},
		"200 and nothing":  {scripted.Action{Before: 200}, 0},
		"late":             {scripted.Action{SlowCommit: 20 * time.Second}, 0},
		"session lost":     {scripted.Action{ForgetSession: true}, 1},
		"lost and no word": {scripted.Action{ForgetSession: true, BeforeReset: true}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, c.a)}, resume.Options{}, func(l *lab) {
				if res := l.delivers(content(10_000)); res.Restarts != c.restarts || res.Sent != int64(10_000*(c.restarts+1)) {
					t.Errorf("result %+v, want %d restarts", res, c.restarts)
				}
			})
		})
	}
}

// A registry that assembles a large blob for minutes is given the time.
func TestSlowCommitIsWaitedFor(t *testing.T) {
	inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, scripted.Action{DelayAfter: 14 * time.Minute})}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(10_000)); res.Breaks != 0 {
			t.Errorf("result %+v", res)
		}
	})
}

func TestOddAnswers(t *testing.T) {
	header := func(k, v string) http.Header { return http.Header{k: {v}} }
	for name, f := range map[string]func(scripted.Request) scripted.Action{
		"check 500":          on(scripted.HeadBlob, 1, scripted.Action{Before: 500}),
		"check reset":        on(scripted.HeadBlob, 1, scripted.Action{BeforeReset: true}),
		"check lost":         on(scripted.HeadBlob, 1, scripted.Action{AfterReset: true}),
		"post 503":           on(scripted.Post, 1, scripted.Action{Before: 503}),
		"post lost":          on(scripted.Post, 1, scripted.Action{AfterReset: true}),
		"session stillborn":  on(scripted.Post, 1, scripted.Action{ForgetSession: true}),
		"patch 408":          on(scripted.Patch, 1, scripted.Action{Before: 408}),
		"patch 429":          on(scripted.Patch, 1, scripted.Action{Before: 429, Header: header("Retry-After", "3")}),
		"patch 500":          on(scripted.Patch, 1, scripted.Action{Before: 500}),
		"patch 502 after":    on(scripted.Patch, 1, scripted.Action{After: 502}),
		"patch answer lost":  on(scripted.Patch, 1, scripted.Action{AfterReset: true}),
		"patch 404":          on(scripted.Patch, 1, scripted.Action{Before: 404}),
		"patch 404 and lost": on(scripted.Patch, 1, scripted.Action{ForgetSession: true}),
		"patch 416":          on(scripted.Patch, 1, scripted.Action{Before: 416}),
		"patch 416 after":    on(scripted.Patch, 1, scripted.Action{After: 416}),
		"patch 400 after":    on(scripted.Patch, 1, scripted.Action{After: 400}),
		"patch 201":          on(scripted.Patch, 1, scripted.Action{After: 201}),
		"patch wrong Range":  on(scripted.Patch, 1, scripted.Action{After: 202, Header: header("Range", "0-7")}),
		"status 503":         all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 503})),
		"status 500":         all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 500})),
		"status reset":       all(brokenBody(5000), on(scripted.Status, 2, scripted.Action{BeforeReset: true})),
		"status lies":        all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 204, Header: header("Range", "0-99")})),
		"status is garbage":  all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 204, Header: header("Range", "bytes */12")})),
		"status HTML":        all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 200, Header: header("Content-Type", "text/html")})),
		"session expires":    all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{ForgetSession: true})),
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
				if res := l.delivers(content(10_000)); res.Sent > 40_000 {
					t.Errorf("result %+v", res)
				}
			})
		})
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	began := time.Time{}
	date := ""
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Post && r.Seq <= 2 {
			return scripted.Action{Before: 429, Header: http.Header{"Retry-After": {[]string{"90", date}[r.Seq-1]}}}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
		began = time.Now()
		date = began.Add(5 * time.Minute).UTC().Format(http.TimeFormat)
		l.delivers(content(10))
		if took := time.Since(began); took < 5*time.Minute || took > 5*time.Minute+2*time.Second {
			t.Errorf("took %s, want five minutes", took)
		}
	})
}

func TestStall(t *testing.T) {
	stall := on(scripted.Patch, 1, scripted.Action{DelayBefore: time.Hour})
	inLab(t, scripted.Options{Intercept: stall}, resume.Options{}, func(l *lab) {
		began := time.Now()
		l.delivers(content(1 << 20)) // more than the network buffers
		if took := time.Since(began); took < time.Minute || took > 2*time.Minute {
			t.Errorf("took %s, want a little more than the stall timeout", took)
		}
		var broken bool
		for _, e := range l.events {
			broken = broken || e.Kind == resume.Broken && errors.Is(e.Err, wire.ErrStall)
		}
		if !broken {
			t.Errorf("no break by a stall: %v", l.kinds())
		}
	})
}

func TestNoAnswerToBody(t *testing.T) {
	mute := on(scripted.Patch, 1, scripted.Action{DelayAfter: time.Hour})
	inLab(t, scripted.Options{Intercept: mute}, resume.Options{}, func(l *lab) {
		began := time.Now()
		if res := l.delivers(content(10_000)); res.Sent != 10_000 {
			t.Errorf("result %+v", res)
		}
		if took := time.Since(began); took < 15*time.Minute || took > 16*time.Minute {
			t.Errorf("took %s, want a little more than the answer timeout", took)
		}
	})
}

func TestBudget(t *testing.T) {
	always := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Seq > 1 {
			return scripted.Action{Before: 503}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: all(brokenBody(5000), always)}, resume.Options{RetryFor: 3 * time.Minute}, func(l *lab) {
		began := time.Now()
		e := l.fails(blobOf(content(10_000)), resume.ErrInterrupted)
		if took := time.Since(began); took < 3*time.Minute || took > 3*time.Minute+time.Second {
			t.Errorf("took %s, want the budget", took)
		}
		if e.Offset != 5000 || e.Size != 10_000 || e.Attempts < 3 || e.Op == "" {
			t.Errorf("error %+v", e)
		}
		var te *transport.Error
		if !errors.As(e, &te) || te.StatusCode != 503 {
			t.Errorf("the cause is gone from %v", e)
		}
	})
}

// Breaks that each come with progress never use up the budget.
func TestProgressRenewsTheBudget(t *testing.T) {
	slow := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch {
			return scripted.Action{DelayBefore: 50 * time.Second, BreakBody: r.Seq < 40, BodyLimit: 1000}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: slow}, resume.Options{RetryFor: time.Minute}, func(l *lab) {
		if res := l.delivers(content(40_000)); res.Resumes != 39 {
			t.Errorf("result %+v", res)
		}
	})
}

func TestNoRegistryThere(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{} }
		began := time.Now()
		l.fails(blobOf(content(10)), resume.ErrInterrupted)
		if took := time.Since(began); took < resume.FirstAnswerFor || took > resume.FirstAnswerFor+time.Second {
			t.Errorf("took %s, want %s", took, resume.FirstAnswerFor)
		}
	})
}

func TestSessionsLostForEver(t *testing.T) {
	f := func(r scripted.Request) scripted.Action {
		return scripted.Action{ForgetSession: r.Kind == scripted.Patch}
	}
	inLab(t, scripted.Options{Intercept: f}, resume.Options{RetryFor: 1000 * time.Hour}, func(l *lab) {
		l.fails(blobOf(content(1000)), resume.ErrInterrupted)
		if n := l.count(scripted.Post); n != 8 {
			t.Errorf("%d sessions, want 8", n)
		}
	})
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		f    func(scripted.Request) scripted.Action
		kind error
	}{
		"check denied":          {on(scripted.HeadBlob, 1, scripted.Action{Before: 403}), resume.ErrDenied},
		"post denied":           {on(scripted.Post, 1, scripted.Action{Before: 401}), resume.ErrDenied},
		"post not found":        {on(scripted.Post, 1, scripted.Action{Before: 404}), resume.ErrRefused},
		"post OK":               {on(scripted.Post, 1, scripted.Action{Before: 200}), resume.ErrEndpoint},
		"post without location": {on(scripted.Post, 1, scripted.Action{Before: 202}), resume.ErrEndpoint},
		"post to nowhere":       {on(scripted.Post, 1, scripted.Action{Before: 202, Header: http.Header{"Location": {"ftp://x/y"}}}), resume.ErrEndpoint},
		"patch denied":          {on(scripted.Patch, 1, scripted.Action{Before: 403}), resume.ErrDenied},
		"patch too large":       {on(scripted.Patch, 1, scripted.Action{Before: 413}), resume.ErrRefused},
		"commit denied":         {on(scripted.Put, 1, scripted.Action{Before: 403}), resume.ErrDenied},
		"commit impossible":     {on(scripted.Put, 1, scripted.Action{Before: 501}), resume.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{Intercept: c.f}, resume.Options{}, func(l *lab) {
				began := time.Now()
				l.fails(blobOf(content(1000)), c.kind)
				if took := time.Since(began); took > time.Second {
					t.Errorf("took %s to fail for good", took)
				}
			})
		})
	}
}

func TestBadSource(t *testing.T) {
	data := content(10_000)
	good := blobOf(data)
	damaged := good
	damaged.Open = blobOf(append([]byte{'x'}, data[1:]...)).Open
	short := good
	short.Open = blobOf(data[:9000]).Open
	gone := good
	gone.Open = func(context.Context, int64) (io.ReadCloser, error) { return nil, syscall.ENOENT }
	unreadable := good
	unreadable.Open = func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(data[:5000]), failing{syscall.EIO})), nil
	}
	noDigest := good
	noDigest.Digest = "sha256:../../etc"
	negative := good
	negative.Size = -1
	for name, b := range map[string]resume.Blob{"damaged": damaged, "short": short, "gone": gone, "unreadable": unreadable, "no digest": noDigest, "negative": negative, "no Open": {Digest: good.Digest}} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
				began := time.Now()
				e := l.fails(b, resume.ErrSource)
				if took := time.Since(began); took > time.Second {
					t.Errorf("took %s: %v", took, e)
				}
				if name == "unreadable" && !errors.Is(e, syscall.EIO) || name == "gone" && !errors.Is(e, syscall.ENOENT) {
					t.Errorf("the cause is gone from %v", e)
				}
			})
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A registry whose offset lied gets the blob again, once, and then whole.
func TestDigestRefusedAfterResume(t *testing.T) {
	refuse := on(scripted.Put, 1, scripted.Action{Before: 400})
	inLab(t, scripted.Options{Intercept: all(brokenBody(5000), refuse)}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(10_000)); res.Restarts != 1 || res.Resumes != 1 {
			t.Errorf("result %+v", res)
		}
	})
	always := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Put {
			return scripted.Action{Before: 400}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: always}, resume.Options{}, func(l *lab) {
		l.fails(blobOf(content(10_000)), resume.ErrRefused)
		if n := l.count(scripted.Put); n != 2 {
			t.Errorf("%d commits, want 2", n)
		}
	})
}

func TestLyingOffset(t *testing.T) {
	inLab(t, scripted.Options{Range: scripted.Beyond, Intercept: brokenBody(5000)}, resume.Options{}, func(l *lab) {
		l.fails(blobOf(content(10_000)), resume.ErrInterrupted)
	})
}

func TestCancel(t *testing.T) {
	cause := errors.New("enough")
	inLab(t, scripted.Options{Intercept: on(scripted.Patch, 1, scripted.Action{DelayBefore: time.Hour})}, resume.Options{}, func(l *lab) {
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(5*time.Second, func() { cancel(cause) })
		began := time.Now()
		_, err := l.client.Upload(ctx, blobOf(content(1<<20)))
		if !errors.Is(err, resume.ErrInterrupted) || !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// A 401 in the middle of a body: the authorising transport gets a new token
// and repeats the request, which it cannot do. No byte goes out twice.
func TestAuthorizationRenewed(t *testing.T) {
	expired := on(scripted.Patch, 1, scripted.Action{Before: 401})
	for _, after := range []bool{false, true} {
		inLab(t, scripted.Options{Intercept: expired}, resume.Options{Transport: &renewing{after: after}}, func(l *lab) {
			res := l.delivers(content(10_000))
			if res.Restarts != 0 || res.Breaks != 0 {
				t.Errorf("result %+v", res)
			}
			if n := l.count(scripted.Patch); n != 2 {
				t.Errorf("%d PATCHes, want 2", n)
			}
		})
	}
}

// renewing does on a 401 what go-containerregistry's bearer transport does.
type renewing struct {
	after bool
	inner http.RoundTripper
}

func (r *renewing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.inner.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	resp.Body.Close()
	if r.after {
		time.Sleep(time.Second) // a slow token server
	}
	return r.inner.RoundTrip(req)
}

func TestDo(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	for name, a := range map[string]scripted.Action{
		"clean": {}, "503": {Before: 503}, "lost": {AfterReset: true}, "reset": {BeforeReset: true}, "cut": {BreakBody: true, BodyLimit: 5},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{Intercept: on(scripted.PutManifest, 1, a)}, resume.Options{}, func(l *lab) {
				req, err := http.NewRequest(http.MethodPut, "manifests/v1", bytes.NewReader(manifest))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				resp, err := l.client.Do(l.t.Context(), "publish", req)
				if err != nil || resp.StatusCode != http.StatusCreated {
					t.Fatalf("got %v, %v", resp, err)
				}
				if got := l.reg.Manifest("team/app", "v1"); !bytes.Equal(got, manifest) {
					t.Errorf("the registry has %q", got)
				}
			})
		})
	}
}

// roundTrip is a RoundTripper of one function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The end of the budget has a type, and is no end of the caller's context even
// if each attempt timed out.
func TestBudgetError(t *testing.T) {
	for kind, c := range map[string]struct {
		answer roundTrip
		after  time.Duration
	}{
		"timeouts": {func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded }, 0},
		"429": {func(r *http.Request) (*http.Response, error) {
			return &http.Response{
				StatusCode: http.StatusTooManyRequests, Request: r, Body: http.NoBody,
				Header: http.Header{"Retry-After": {"3600"}},
			}, nil
		}, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			repo, err := name.NewRepository("reg.test/team/app")
			if err != nil {
				t.Fatal(err)
			}
			client, err := resume.New(repo, resume.Options{Transport: c.answer, External: c.answer, RetryFor: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Upload(t.Context(), blobOf(content(10)))
			var end *resume.BudgetError
			if !errors.As(err, &end) || !errors.Is(err, resume.ErrInterrupted) || end.RetryAfter != c.after {
				t.Errorf("%s: got %v, want a BudgetError with RetryAfter %s", kind, err, c.after)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v claims that the caller's deadline has passed", kind, err)
			}
		})
	}
}

// A 403 that is a rate limit, as on GHCR, is waited out.
func TestRateLimit(t *testing.T) {
	words := []byte(`{"errors":[{"code":"DENIED","message":"permission_denied: You have exceeded a secondary rate limit. Please wait a few minutes"}]}`)
	for _, k := range []scripted.Kind{scripted.Post, scripted.Patch, scripted.Put} {
		f := on(k, 1, scripted.Action{Before: 403, Body: words})
		inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
			began := time.Now()
			if res := l.delivers(content(1000)); res.Restarts != 0 {
				t.Errorf("%s: result %+v", k, res)
			}
			if took := time.Since(began); took < time.Minute {
				t.Errorf("%s: went on after %s, want a minute", k, took)
			}
		})
	}
	forever := always(scripted.Post, scripted.Action{Before: 403, Body: words})
	inLab(t, scripted.Options{Intercept: forever}, resume.Options{}, func(l *lab) {
		l.fails(blobOf(content(1000)), resume.ErrInterrupted)
		if n := l.count(scripted.Post); n > 12 {
			t.Errorf("%d POSTs in ten minutes", n)
		}
	})
}

// A mount that is refused, whatever the status, is tried without.
func TestMountRefused(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 405, 501} {
		refuse := func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Post && r.Reference != "" {
				return scripted.Action{Before: status}
			}
			return scripted.Action{}
		}
		inLab(t, scripted.Options{Intercept: refuse}, resume.Options{}, func(l *lab) {
			blob := blobOf(content(1000))
			blob.MountFrom = "team/base"
			if res, err := l.client.Upload(l.t.Context(), blob); err != nil || res.Mounted || res.Sent != 1000 {
				t.Errorf("%d: result %+v, %v", status, res, err)
			}
		})
	}
}
