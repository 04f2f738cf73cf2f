// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// inOne are options with which small blobs go in the body of the commit.
func inOne(ds resume.Dialects) resume.Options {
	return resume.Options{KeepFrom: resume.DefaultKeepFrom, Dialects: ds}
}

func (l *lab) methods() (all []string) {
	for _, r := range l.reg.Requests() {
		all = append(all, r.Method)
	}
	return all
}

// Two requests for each small blob that is known to be missing.
func TestSmallBlobRoundTrips(t *testing.T) {
	inLab(t, scripted.Options{}, inOne(nil), func(l *lab) {
		const blobs = 100
		for i := range blobs {
			data := content(i*10_000 + 1)
			b := blobOf(data)
			b.Missing = true
			res, err := l.client.Upload(l.t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			l.has(data)
			if res.Sent != b.Size {
				t.Errorf("sent %d bytes, want %d", res.Sent, b.Size)
			}
		}
		if n := len(l.reg.Requests()); n != 2*blobs {
			t.Errorf("%d requests for %d blobs, want %d", n, blobs, 2*blobs)
		}
		if n := l.reg.Uploads(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

func TestSmallBlobSizes(t *testing.T) {
	for size, patches := range map[int]int{0: 0, 1: 0, mib - 1: 0, mib: 1, mib + 1: 1} {
		inLab(t, scripted.Options{}, inOne(nil), func(l *lab) {
			l.delivers(content(size))
			if n := l.count(scripted.Patch); n != patches {
				t.Errorf("%d bytes: %d PATCHes, want %d", size, n, patches)
			}
			if n := len(l.reg.Requests()); n != 3+patches {
				t.Errorf("%d bytes: %d requests, want %d", size, n, 3+patches)
			}
		})
	}
}

// A PUT with a body that broke is not sent again before the registry was asked
// for the blob. What it left of the session is not used.
func TestBrokenPutWithBody(t *testing.T) {
	broken := map[string]scripted.Action{
		"before":      {BeforeReset: true},
		"in the body": {BreakBody: true, BodyLimit: 5000},
		"whole body":  {BreakBody: true, BodyLimit: 10_000},
		"502":         {Before: http.StatusBadGateway},
		"429":         {Before: http.StatusTooManyRequests},
		"web page":    {Before: http.StatusOK, Header: http.Header{"Content-Type": {"text/html"}}},
	}
	for _, store := range []scripted.Store{scripted.Keep, scripted.Boundary, scripted.Fragile} {
		for name, a := range broken {
			inLab(t, scripted.Options{Store: store, Intercept: on(scripted.Put, 1, a)}, inOne(nil), func(l *lab) {
				res := l.delivers(content(10_000))
				want := []string{"HEAD", "POST", "PUT", "HEAD", "POST", "PATCH", "PUT"}
				if got := l.methods(); !slices.Equal(got, want) {
					t.Errorf("%s: requests %v, want %v", name, got, want)
				}
				if res.Sent > 20_000 || res.Restarts != 0 {
					t.Errorf("%s: result %+v", name, res)
				}
			})
		}
	}
	// Carried out, and nobody heard it.
	for name, a := range map[string]scripted.Action{
		"lost answer": {AfterReset: true},
		"504":         {After: http.StatusGatewayTimeout},
		"202":         {After: http.StatusAccepted},
		"400":         {After: http.StatusBadRequest},
	} {
		inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, a)}, inOne(nil), func(l *lab) {
			l.delivers(content(10_000))
			if got, want := l.methods(), []string{"HEAD", "POST", "PUT", "HEAD"}; !slices.Equal(got, want) {
				t.Errorf("%s: requests %v, want %v", name, got, want)
			}
		})
	}
	// A registry that shows the blob late gets it twice, and keeps it once.
	inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, scripted.Action{SlowCommit: 20 * time.Second})}, inOne(nil), func(l *lab) {
		began := time.Now()
		l.delivers(content(10_000))
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// A registry that takes no body in a PUT gets a PATCH, at once after two blobs.
func TestPutWithBodyRefused(t *testing.T) {
	for _, status := range []int{400, 404, 405, 415, 416, 501} {
		ds := resume.MemoryDialects()
		inLab(t, scripted.Options{NoPutBody: status}, inOne(ds), func(l *lab) {
			for i := range 4 {
				l.delivers(content(10_000 + i))
			}
			d, _ := ds.Load(host)
			if !d.NoPutBody {
				t.Errorf("%d: learnt %+v", status, d)
			}
			if n := l.count(scripted.Put); n != 6 {
				t.Errorf("%d: %d PUTs for 4 blobs, want 6", status, n)
			}
		})
	}
	// A session that was lost once is no lesson.
	ds := resume.MemoryDialects()
	inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, scripted.Action{ForgetSession: true})}, inOne(ds), func(l *lab) {
		l.delivers(content(10_000))
		l.delivers(content(10_001))
		if d, _ := ds.Load(host); d != (resume.Dialect{}) {
			t.Errorf("learnt %+v", d)
		}
		if n := l.count(scripted.Patch); n != 1 {
			t.Errorf("%d PATCHes, want 1", n)
		}
	})
	inLab(t, scripted.Options{NoPutBody: http.StatusUnauthorized}, inOne(nil), func(l *lab) {
		l.fails(blobOf(content(10_000)), resume.ErrDenied)
	})
	inLab(t, scripted.Options{MaxBody: 100_000}, inOne(nil), func(l *lab) {
		l.delivers(content(300_000))
	})
}

// A damaged source is found out, and not sent again and again.
func TestSmallBlobOfBadSource(t *testing.T) {
	inLab(t, scripted.Options{}, inOne(nil), func(l *lab) {
		b := blobOf(content(10_000))
		b.Open = blobOf(content(10_001)).Open
		b.Size = 9_999
		l.fails(b, resume.ErrSource)
	})
}

// A break at every byte of a small blob's upload.
func TestSmallBlobBreakAtEveryByte(t *testing.T) {
	var up, down int64
	data := content(100)
	inLab(t, scripted.Options{}, inOne(nil), func(l *lab) {
		l.delivers(data)
		up, down = l.net.Up(), l.net.Down()
	})
	step := int64(1)
	if testing.Short() {
		step = 13
	}
	for _, lose := range []bool{false, true} {
		for at := int64(0); at <= max(up, down); at += step {
			for _, limits := range []memnet.Limits{{Up: at, Down: -1, Lose: lose}, {Up: -1, Down: at, Lose: lose}} {
				inLab(t, scripted.Options{}, inOne(nil), func(l *lab) {
					l.net.Plan = func(n int) memnet.Limits {
						if n == 0 {
							return limits
						}
						return memnet.Unlimited()
					}
					l.delivers(data)
				})
			}
		}
	}
}
