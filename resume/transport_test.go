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
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

func debugLogger(w io.Writer) logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(w)
	l.SetLevel(logrus.DebugLevel)
	return l
}

// A healthy upload is byte for byte what it is without the transport.
func TestTransportHealthy(t *testing.T) {
	for _, s := range styles {
		for _, n := range []int{0, 1, 4096, 600_000} {
			t.Run(fmt.Sprintf("%s/%d", s.name, n), func(t *testing.T) {
				var raw [2][]byte
				for i, o := range []*resume.TransportOptions{nil, {}} {
					onTransport(t, scripted.Options{}, o, func(p *passing) {
						p.delivers(s, content(n))
						if p.net.Conns() != 1 {
							t.Errorf("%d connections", p.net.Conns())
						}
						raw[i] = p.raw.Bytes()
						for _, e := range p.events {
							if e.Kind == resume.Broken || e.Kind == resume.Resumed {
								t.Errorf("event %s", e.Kind)
							}
						}
					})
				}
				if !bytes.Equal(raw[0], raw[1]) {
					t.Errorf("%d bytes without the transport, %d other ones with it", len(raw[0]), len(raw[1]))
				}
			})
		}
	}
}

func TestTransportResumes(t *testing.T) {
	const size, at = 300_000, 120_000
	broken := func(k scripted.Kind) func(scripted.Request) scripted.Action {
		return on(k, 1, scripted.Action{BreakBody: true, BodyLimit: at})
	}
	for _, s := range styles {
		t.Run(s.name, func(t *testing.T) {
			kind, want := scripted.Put, "post, put 0+300000, status, status, patch 120000+180000, put"
			if s.patch {
				kind, want = scripted.Patch, "post, patch 0+300000, status, status, patch 120000+180000, put"
			}
			onTransport(t, scripted.Options{Intercept: broken(kind)}, &resume.TransportOptions{}, func(p *passing) {
				p.delivers(s, content(size))
				got := p.trace()
				if strings.Contains(s.name, "unknown") {
					want = strings.Replace(want, " 0+300000", "", 1)
				}
				if got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				var resumed bool
				for _, e := range p.events {
					resumed = resumed || e.Kind == resume.Resumed && e.Offset == at
					if e.Repository != "reg.test/team/app" || e.Upload == 0 {
						t.Errorf("event without its facts: %+v", e)
					}
					if e.Kind == resume.Broken && (e.Conn == nil || e.Conn.Remote == "" || e.Conn.Sent < at) {
						t.Errorf("break without its connection: %+v", e)
					}
				}
				if !resumed {
					t.Errorf("no event says that it was resumed at %d: %+v", at, p.events)
				}
			})
			// The same break, without the transport.
			onTransport(t, scripted.Options{Intercept: broken(kind)}, nil, func(p *passing) {
				if err := p.upload(context.Background(), s, content(size)); err == nil {
					t.Error("it arrives without the transport too: what is tested?")
				}
			})
		})
	}
}

// Every connection dies, for as long as there is anything to send.
func TestTransportEveryConnectionDies(t *testing.T) {
	for _, s := range styles {
		onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
			p.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 40_000, Down: -1} }
			p.delivers(s, content(1<<20))
			if up := p.net.Up(); up > 1<<20+int64(p.net.Breaks())*70_000 {
				t.Errorf("%s: %d bytes went up, %d breaks", s.name, up, p.net.Breaks())
			}
		})
	}
}

// A connection breaks at every single byte of an upload, in either direction.
func TestTransportBreakAtEveryByte(t *testing.T) {
	data := content(40)
	for _, s := range styles {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var up, down int64
			onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
				p.delivers(s, data)
				up, down = p.net.Up(), p.net.Down()
			})
			step := int64(5)
			if s.name == "PATCH, GetBody" || s.name == "PUT, file" {
				step = 1
			}
			if testing.Short() {
				step = 31
			}
			for i, lose := range []bool{false, true} {
				if lose && step == 1 {
					step = 3
				}
				for at := int64(i); at <= up+down; at += step {
					onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
						p.net.Lose = lose
						if at <= up {
							p.net.BreakUpAt(at)
						} else {
							p.net.BreakDownAt(at - up - 1)
						}
						if err := p.upload(context.Background(), s, data); err != nil {
							t.Fatalf("break at byte %d of %d up, %d down: %v\n%s", at, up, down, err, p.log.String())
						}
						p.has(data)
					})
				}
			}
		})
	}
}

// A commit whose answer is lost is settled by asking for the blob.
func TestTransportCommitInDoubt(t *testing.T) {
	for name, a := range map[string]scripted.Action{
		"lost before": {BeforeReset: true},
		"answer lost": {AfterReset: true},
		"502 instead": {Before: 502},
		"502 after":   {After: 502},
		"late":        {SlowCommit: 20 * time.Second},
	} {
		for _, s := range styles {
			t.Run(name+"/"+s.name, func(t *testing.T) {
				onTransport(t, scripted.Options{Intercept: on(scripted.Put, 1, a)}, &resume.TransportOptions{}, func(p *passing) {
					p.delivers(s, content(10_000))
				})
			})
		}
	}
}

func TestTransportOddAnswers(t *testing.T) {
	header := func(k, v string) http.Header { return http.Header{k: {v}} }
	for name, f := range map[string]func(scripted.Request) scripted.Action{
		"patch 408":         on(scripted.Patch, 1, scripted.Action{Before: 408}),
		"patch 429":         on(scripted.Patch, 1, scripted.Action{Before: 429, Header: header("Retry-After", "3")}),
		"patch 502 after":   on(scripted.Patch, 1, scripted.Action{After: 502}),
		"patch answer lost": on(scripted.Patch, 1, scripted.Action{AfterReset: true}),
		"session lost":      all(on(scripted.Patch, 1, scripted.Action{BeforeReset: true}), on(scripted.Status, 1, scripted.Action{ForgetSession: true})),
		"status 503":        all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{Before: 503})),
		"status reset":      all(brokenBody(5000), on(scripted.Status, 2, scripted.Action{BeforeReset: true})),
		"session expires":   all(brokenBody(5000), on(scripted.Status, 1, scripted.Action{ForgetSession: true})),
		"second break":      all(brokenBody(5000), on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 3000})),
		"commit refused":    all(brokenBody(5000), on(scripted.Put, 1, scripted.Action{Before: 503})),
		"stall":             on(scripted.Patch, 1, scripted.Action{DelayBefore: time.Hour}),
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range styles {
				if s.patch {
					onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
						p.delivers(s, content(200_000))
					})
				}
			}
		})
	}
}

func TestTransportDialects(t *testing.T) {
	for name, o := range map[string]scripted.Options{
		"GET only":          {Status: scripted.GetOnly},
		"no status":         {Status: scripted.NoStatus},
		"off by one":        {Range: scripted.OffByOne},
		"bytes=":            {Range: scripted.BytesPrefix},
		"relative":          {Location: scripted.Relative},
		"other host":        {Location: scripted.OtherHost, OtherHost: "other.test"},
		"boundary":          {Store: scripted.Boundary},
		"fragile":           {Store: scripted.Fragile},
		"2.x":               {StaleIsGone: true, LooseRange: true},
		"parts":             {PartSize: 16 << 10},
		"limit of a proxy":  {MaxBody: 100_000},
		"monolithic":        {OnePatch: true},
		"missing on status": {Location: scripted.MissingOnStatus},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range styles {
				k := scripted.Put
				if s.patch {
					k = scripted.Patch
				}
				if strings.Contains(s.name, "unknown") && o.MaxBody > 0 {
					continue // a body that does not say its length gets no 413 before it is sent
				}
				if o.MaxBody == 0 {
					o.Intercept = on(k, 1, scripted.Action{BreakBody: true, BodyLimit: 60_000})
				}
				onTransport(t, o, &resume.TransportOptions{}, func(p *passing) {
					p.delivers(s, content(200_000))
				})
			}
		})
	}
}

// A session whose POST was not seen is continued while it lives, and not
// replaced.
func TestTransportForeignSession(t *testing.T) {
	for _, lost := range []bool{false, true} {
		f := all(on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 500}), on(scripted.Status, 1, scripted.Action{ForgetSession: lost}))
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			data, seen := content(3000), p.rt
			p.rt = p.base
			at, err := p.open(p.t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.rt = seen
			for _, part := range [][]byte{data[:1000], data[1000:]} {
				req := p.request(p.t.Context(), http.MethodPatch, at.String())
				bodyAgain(p, req, part)
				resp, err := p.do(req)
				if lost && len(part) == 2000 {
					if !errors.Is(err, resume.ErrInterrupted) || !errors.Is(err, syscall.ECONNRESET) {
						t.Fatalf("got %v, want an interruption by a reset", err)
					}
					if n := p.count(scripted.Post); n != 1 {
						t.Errorf("%d sessions", n)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if at, err = resp.Location(); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.wants(p.request(p.t.Context(), http.MethodPut, withDigest(at, data)), 201, data); err != nil {
				t.Fatal(err)
			}
			p.has(data)
		})
	}
}

// Locations are known by having been seen, never by their looks.
func TestTransportGuessesNoLocation(t *testing.T) {
	onTransport(t, scripted.Options{Intercept: brokenBody(500)}, &resume.TransportOptions{}, func(p *passing) {
		seen := p.rt
		p.rt = p.base
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.rt = seen
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		bodyAgain(p, req, content(1000))
		if resp, err := p.do(req); err == nil || len(p.events) != 0 {
			t.Errorf("got %v, %v", resp, p.events)
		}
	})
}

// A client that sends a request again after a 401.
func TestTransportAuthorization(t *testing.T) {
	const size = 300_000
	for name, f := range map[string]func(scripted.Request) scripted.Action{
		"at once":           on(scripted.Patch, 1, scripted.Action{Before: 401}),
		"after the body":    on(scripted.Patch, 1, scripted.Action{After: 401}),
		"asking":            all(brokenBody(100_000), on(scripted.Status, 1, scripted.Action{Before: 401})),
		"asking with GET":   all(brokenBody(100_000), on(scripted.Status, 1, scripted.Action{Before: 401}), on(scripted.Status, 2, scripted.Action{Before: 401})),
		"continuing":        all(brokenBody(100_000), on(scripted.Patch, 2, scripted.Action{Before: 401})),
		"continuing, later": all(brokenBody(100_000), on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 50_000}), on(scripted.Patch, 3, scripted.Action{Before: 401})),
	} {
		for _, s := range styles {
			if !s.patch {
				continue
			}
			for _, rewound := range []bool{false, true} {
				if rewound && name == "after the body" {
					continue // nobody can know that it was kept
				}
				t.Run(fmt.Sprintf("%s/%s/rewound=%v", name, s.name, rewound), func(t *testing.T) {
					onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
						p.rt = &reauthorizing{inner: p.rt, rewind: func(r *http.Request) {
							p.asked.Add(1)
							if rewound {
								s.body(p, r, content(size))
							}
						}}
						p.delivers(s, content(size))
						var sent int64
						for _, r := range p.reg.Requests() {
							sent += r.Body
						}
						most := int64(size)
						if name == "at once" || strings.HasPrefix(name, "continuing") {
							most += 2*size - 1 // what a refused request carried
						}
						if sent > most {
							t.Errorf("the registry got %d bytes of %d: %s", sent, size, p.trace())
						}
						if n := p.count(scripted.Post); n != 1 {
							t.Errorf("%d sessions", n)
						}
					})
				})
			}
		}
	}
}

// reauthorizing is the auth layer of a client.
type reauthorizing struct {
	inner  http.RoundTripper
	rewind func(*http.Request)
}

func (r *reauthorizing) CloseIdleConnections() {
	r.inner.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

func (r *reauthorizing) RoundTrip(req *http.Request) (*http.Response, error) {
	for tries := 0; ; tries++ {
		resp, err := r.inner.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || tries == 3 {
			return resp, err
		}
		resp.Body.Close()
		time.Sleep(time.Second)
		if req.Body != nil {
			r.rewind(req)
		}
	}
}

// The auth layer may lie below as well: it sends a request again by itself,
// without its body.
func TestTransportOverAuthorization(t *testing.T) {
	for _, s := range styles {
		k := scripted.Put
		if s.patch {
			k = scripted.Patch
		}
		for name, f := range map[string]func(scripted.Request) scripted.Action{
			"at once":    on(k, 1, scripted.Action{Before: 401}),
			"continuing": all(on(k, 1, scripted.Action{BreakBody: true, BodyLimit: 100_000}), on(scripted.Patch, map[bool]int{true: 2, false: 1}[s.patch], scripted.Action{Before: 401})),
		} {
			onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
				p.rt = newTransport(t, &reauthorizing{inner: p.base, rewind: func(*http.Request) {}}, resume.TransportOptions{SpoolDir: p.dir, Logger: debugLogger(&p.log)})
				p.asked.Add(1)
				if err := p.upload(context.Background(), s, content(300_000)); err != nil {
					t.Fatalf("%s, %s: %v\n%s", s.name, name, err, p.log.String())
				}
				p.has(content(300_000))
			})
		}
	}
}

// A client that takes its time to make a body has no stalled connection.
func TestTransportSlowSource(t *testing.T) {
	data := content(1000)
	for _, n := range []int64{1000, -1} {
		s := style{"slow", true, func(p *passing, req *http.Request, _ []byte) {
			r, w := io.Pipe()
			go func() {
				for i := range data {
					if i%250 == 0 {
						time.Sleep(10 * time.Minute)
					}
					w.Write(data[i : i+1])
				}
				w.Close()
			}()
			req.Body, req.ContentLength = r, n
		}}
		onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
			p.delivers(s, data)
			if got := p.count(scripted.Patch, scripted.Status); got != 1 {
				t.Errorf("%d PATCHes and status requests, want 1", got)
			}
		})
	}
}

// The commit in doubt survives a 401 too.
func TestTransportAuthorizationOfADoubt(t *testing.T) {
	f := all(on(scripted.Put, 1, scripted.Action{AfterReset: true}), on(scripted.HeadBlob, 1, scripted.Action{Before: 401}))
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		p.rt = &reauthorizing{inner: p.rt}
		p.delivers(styles[0], content(1000))
		if n := p.count(scripted.Put); n != 1 {
			t.Errorf("%d commits", n)
		}
	})
}

// A body that nobody comes back for is closed in the end.
func TestTransportAbandonedAfter401(t *testing.T) {
	f := on(scripted.Patch, 1, scripted.Action{Before: 401, Header: http.Header{"Www-Authenticate": {"Bearer x"}}})
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		bodyOnce(p, req, content(10_000))
		resp, err := p.do(req)
		if err != nil || resp.StatusCode != 401 || resp.Header.Get("Www-Authenticate") != "Bearer x" {
			t.Fatalf("got %v, %v", resp, err)
		}
		if p.bodies[0].closed.Load() {
			t.Error("closed at once: it could not be sent again")
		}
	}) // which looks whether it was closed later
}

// Credentials go where the client's request went, and nowhere else.
func TestTransportCredentials(t *testing.T) {
	ro := scripted.Options{Auth: scripted.Auth{Scheme: scripted.Basic, User: "ci", Password: "secret"}, Intercept: brokenBody(5000)}
	onTransport(t, ro, &resume.TransportOptions{}, func(p *passing) {
		p.header = http.Header{"Authorization": {"Basic Y2k6c2VjcmV0"}, "User-Agent": {"ko/1"}, "X-Api-Key": {"k"}}
		p.delivers(styles[0], content(10_000))
		for _, r := range p.reg.Requests() {
			if !r.Authorized {
				t.Errorf("%s without credentials", r.Kind)
			}
		}
		if n := strings.Count(p.raw.String(), "User-Agent: ko/1"); n != len(p.reg.Requests()) {
			t.Errorf("%d of %d requests name the client", n, len(p.reg.Requests()))
		}
	})
	// The registry leads elsewhere; its scripted violations see credentials there.
	ro.Location, ro.OtherHost = scripted.OtherHost, "other.test"
	onTransport(t, ro, &resume.TransportOptions{}, func(p *passing) {
		p.header = http.Header{"Authorization": {"Basic Y2k6c2VjcmV0"}}
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.header = http.Header{} // as every client does for another host
		data := content(10_000)
		req := p.request(p.t.Context(), http.MethodPut, withDigest(at, data))
		bodyAgain(p, req, data)
		if err := p.wants(req, 201, data); err != nil {
			t.Fatalf("%v\n%s", err, p.log.String())
		}
		p.has(data)
	})
}

// A commit that another host answers counts once the registry has the blob.
func TestTransportConfirmsCommitsElsewhere(t *testing.T) {
	data := content(10_000)
	lie := scripted.Action{Before: http.StatusCreated, Header: http.Header{
		"Docker-Content-Digest": {digest.FromBytes(data).String()}, "Location": {"/v2/team/app/blobs/" + digest.FromBytes(data).String()},
	}}
	for _, s := range styles {
		ro := scripted.Options{Location: scripted.OtherHost, OtherHost: "other.test"}
		ro.Intercept = func(q scripted.Request) scripted.Action {
			if q.Kind == scripted.Put {
				return lie
			}
			return scripted.Action{}
		}
		onTransport(t, ro, &resume.TransportOptions{RetryFor: time.Minute}, func(p *passing) {
			if err := p.upload(p.t.Context(), s, data); err == nil {
				t.Errorf("%s: 201, and the registry does not have the blob", s.name)
			}
		})
		ro.Intercept = on(scripted.Put, 1, lie)
		onTransport(t, ro, &resume.TransportOptions{}, func(p *passing) {
			if err := p.upload(p.t.Context(), s, data); err != nil {
				t.Errorf("%s: %v\n%s", s.name, err, p.log.String())
				return
			}
			p.has(data)
		})
		// An honest answer is the client's.
		ro.Intercept = nil
		onTransport(t, ro, &resume.TransportOptions{}, func(p *passing) {
			p.delivers(s, data)
			if n := p.count(scripted.HeadBlob); n != 1 {
				t.Errorf("%s: the blob was asked for %d times, want once", s.name, n)
			}
		})
	}
}

// The answers to the client's own requests that are no breaks are the client's.
func TestTransportHandsOnRefusals(t *testing.T) {
	body := []byte(`{"errors":[{"code":"DENIED"}]}`)
	for _, status := range []int{301, 307, 400, 403, 404, 409, 416, 501} {
		f := on(scripted.Patch, 1, scripted.Action{Before: status, Body: body, Header: http.Header{"X-Why": {"so"}, "Location": {"/elsewhere"}}})
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			at, err := p.open(p.t.Context())
			if err != nil {
				t.Fatal(err)
			}
			req := p.request(p.t.Context(), http.MethodPatch, at.String())
			bodyAgain(p, req, content(1000))
			resp, err := p.do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != status || resp.Header.Get("X-Why") != "so" || resp.Header.Get("Location") != "/elsewhere" || !bytes.Equal(got, body) {
				t.Errorf("got %s %v %q", resp.Status, resp.Header, got)
			}
			if n := len(p.reg.Requests()); n != 2 {
				t.Errorf("%d requests", n)
			}
		})
	}
	// So is a 500, where the client can send its body again; where it cannot, the
	// transport does.
	for _, s := range styles {
		f := on(scripted.Patch, 1, scripted.Action{Before: 500})
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			err := p.upload(p.t.Context(), s, content(1000))
			if failed := err != nil; failed != (s.name == "PATCH, GetBody") {
				t.Errorf("%s: got %v", s.name, err)
			}
		})
	}
	// One that ends a broken upload is as well.
	f := all(brokenBody(500), on(scripted.Patch, 2, scripted.Action{Before: 403, Body: body}))
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		if err := p.upload(p.t.Context(), styles[0], content(1000)); err == nil || !strings.Contains(err.Error(), "PATCH: 403") {
			t.Errorf("got %v", err)
		}
	})
	// Out of budget: the last answer, or the last error.
	f = all(brokenBody(500), func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Status {
			return scripted.Action{Before: 503}
		}
		return scripted.Action{}
	})
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{RetryFor: time.Minute}, func(p *passing) {
		began := time.Now()
		if err := p.upload(p.t.Context(), styles[0], content(1000)); err == nil || !strings.Contains(err.Error(), "PATCH: 503") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < time.Minute || took > 61*time.Second {
			t.Errorf("took %s, want the budget", took)
		}
	})
}

// The budget ends with an error that the clients' own rules understand.
func TestTransportGivesUp(t *testing.T) {
	onTransport(t, scripted.Options{Intercept: brokenBody(500)}, &resume.TransportOptions{RetryFor: time.Minute}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.net.Plan = func(int) memnet.Limits { return memnet.Limits{} }
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		bodyOnce(p, req, content(1000))
		resp, err := p.do(req)
		var e *resume.Error
		if !errors.Is(err, resume.ErrInterrupted) || !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &e) || e.Repository != "reg.test/team/app" {
			t.Errorf("got %v, %v", resp, err)
		}
	})
}

func TestTransportCancel(t *testing.T) {
	for _, s := range styles {
		f := func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Patch || r.Kind == scripted.Put {
				return scripted.Action{DelayBefore: time.Hour}
			}
			return scripted.Action{}
		}
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
			defer cancel()
			began := time.Now()
			err := p.upload(ctx, s, content(1<<20))
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: got %v", s.name, err)
			}
			if took := time.Since(began); took < 5*time.Second || took > 7*time.Second {
				t.Errorf("%s: took %s", s.name, took)
			}
		})
	}
}

// A spool that does not hold the body lets it pass, and continues only where
// nothing is lacking.
func TestTransportSpoolLimit(t *testing.T) {
	const size = 600_000
	for _, c := range []struct {
		limit int64
		at    int64 // of the break
		ok    bool
	}{{-1, 100_000, false}, {500_000, 100_000, false}, {size, 100_000, true}, {-1, size, true}, {-1, -1, true}} {
		for _, s := range []style{{"known", true, bodyOnce}, {"unknown", true, bodyUnknown}} {
			f := func(scripted.Request) scripted.Action { return scripted.Action{} }
			if c.at >= 0 {
				f = brokenBody(c.at)
			}
			onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{SpoolLimit: c.limit}, func(p *passing) {
				err := p.upload(p.t.Context(), s, content(size))
				switch {
				case c.ok && err != nil:
					t.Errorf("limit %d, break at %d, %s: %v", c.limit, c.at, s.name, err)
				case c.ok:
					p.has(content(size))
				case !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) || !errors.Is(err, resume.ErrInterrupted):
					t.Errorf("limit %d, break at %d, %s: got %v, want a reset", c.limit, c.at, s.name, err)
				}
			})
		}
	}
}

// A file that has no name any more.
func TestTransportUnlinkedFile(t *testing.T) {
	gone := style{"unlinked", false, func(p *passing, req *http.Request, data []byte) {
		bodyFile(p, req, data)
		os.Remove(req.Body.(*os.File).Name())
	}}
	// Another file under the same name has to be told from it.
	replaced := style{"replaced", false, func(p *passing, req *http.Request, data []byte) {
		bodyFile(p, req, data)
		at := req.Body.(*os.File).Name()
		os.Remove(at)
		if err := os.WriteFile(at, make([]byte, len(data)+6), 0o600); err != nil {
			p.t.Fatal(err)
		}
	}}
	for _, s := range []style{gone, replaced} {
		f := on(scripted.Put, 1, scripted.Action{BreakBody: true, BodyLimit: 5000})
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) { p.delivers(s, content(10_000)) })
	}
}

// A body that fails, or is too short, is the client's failure.
func TestTransportBadBody(t *testing.T) {
	bad := errors.New("unreadable")
	for name, r := range map[string]io.Reader{
		"fails": io.MultiReader(bytes.NewReader(content(5000)), failing{bad}),
		"short": bytes.NewReader(content(5000)),
	} {
		s := style{name, true, func(p *passing, req *http.Request, _ []byte) { req.Body, req.ContentLength = p.watch(r), 10_000 }}
		onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
			err := p.upload(p.t.Context(), s, content(10_000))
			if !errors.Is(err, resume.ErrSource) || name == "fails" && !errors.Is(err, bad) {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
}

// Chunks of a client of its own, each resumed in its place.
func TestTransportChunks(t *testing.T) {
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Seq%3 == 1 {
			return scripted.Action{BreakBody: true, BodyLimit: 3000}
		}
		return scripted.Action{}
	}
	for _, ranges := range []bool{false, true} {
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			data := content(50_000)
			at, err := p.open(p.t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for off := 0; off < len(data); off += 10_000 {
				req := p.request(p.t.Context(), http.MethodPatch, at.String())
				bodyOnce(p, req, data[off:off+10_000])
				if ranges {
					req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", off, off+9999))
				}
				resp, err := p.do(req)
				if err != nil || resp.StatusCode != 202 || resp.Header.Get("Range") != fmt.Sprintf("0-%d", off+9999) {
					t.Fatalf("at %d: got %v, %v\n%s", off, resp, err, p.log.String())
				}
				if at, err = resp.Location(); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.wants(p.request(p.t.Context(), http.MethodPut, withDigest(at, data)), 201, data); err != nil {
				t.Fatal(err)
			}
			p.has(data)
		})
	}
}

// A client that tries a request again after the budget ended continues.
func TestTransportContinuesAfterGivingUp(t *testing.T) {
	onTransport(t, scripted.Options{Intercept: brokenBody(50_000)}, &resume.TransportOptions{RetryFor: -1}, func(p *passing) {
		data := content(100_000)
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for try := range 2 {
			req := p.request(p.t.Context(), http.MethodPatch, at.String())
			bodyAgain(p, req, data)
			resp, err := p.do(req)
			if try == 0 {
				if !errors.Is(err, resume.ErrInterrupted) {
					t.Fatalf("got %v, %v", resp, err)
				}
				continue
			}
			if err != nil || resp.StatusCode != 202 {
				t.Fatalf("got %v, %v", resp, err)
			}
		}
		if got := p.trace(); !strings.HasSuffix(got, "patch 50000+50000") {
			t.Errorf("got %s", got)
		}
	})
}

// Many at once, over connections that die.
func TestTransportConcurrent(t *testing.T) {
	onTransport(t, scripted.Options{}, &resume.TransportOptions{}, func(p *passing) {
		p.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 70_000, Down: -1} }
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range 12 {
			wg.Go(func() {
				mu.Lock()
				q := &passing{t: p.t, reg: p.reg, net: p.net, rt: p.rt, base: p.base, dir: p.dir}
				mu.Unlock()
				data := append(content(200_000), byte(i))
				err := q.upload(context.Background(), styles[i%len(styles)], data)
				mu.Lock()
				defer mu.Unlock()
				p.asked.Add(q.asked.Load())
				if err != nil {
					p.t.Errorf("%d: %v", i, err)
					return
				}
				q.has(data)
			})
		}
		wg.Wait()
	})
}

// What is no upload passes through as it is.
func TestTransportPassesEverythingElse(t *testing.T) {
	reset := on(scripted.PutManifest, 1, scripted.Action{BeforeReset: true})
	onTransport(t, scripted.Options{Intercept: reset}, &resume.TransportOptions{}, func(p *passing) {
		req := p.request(p.t.Context(), http.MethodPut, "http://reg.test/v2/team/app/manifests/v1")
		bodyOnce(p, req, []byte(`{"schemaVersion":2}`))
		if resp, err := p.do(req); err == nil {
			t.Errorf("got %v", resp)
		}
		resp, err := p.do(p.request(p.t.Context(), http.MethodGet, "http://reg.test/v2/"))
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("got %v, %v", resp, err)
		}
		if len(p.events) != 0 {
			t.Errorf("events %v", p.events)
		}
	})
}

func TestTransportOptions(t *testing.T) {
	for name, o := range map[string]resume.TransportOptions{
		"negative stall timeout":  {StallTimeout: -1},
		"negative answer timeout": {AnswerTimeout: -1},
	} {
		if rt, err := resume.NewTransport(nil, o); err == nil {
			t.Errorf("%s: got %v, want an error", name, rt)
		}
	}
}

// A location is forgotten after a day, and after very many others.
func TestTransportForgets(t *testing.T) {
	onTransport(t, scripted.Options{Intercept: brokenBody(500)}, &resume.TransportOptions{}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		bodyAgain(p, req, content(1000))
		if resp, err := p.do(req); err == nil {
			t.Errorf("resumed after a day: %v", resp)
		}
	})
	onTransport(t, scripted.Options{Intercept: brokenBody(500)}, &resume.TransportOptions{}, func(p *passing) {
		first, err := p.open(p.t.Context())
		for range 4200 {
			time.Sleep(time.Millisecond)
			if _, err := p.open(p.t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		req := p.request(p.t.Context(), http.MethodPatch, first.String())
		bodyAgain(p, req, content(1000))
		if resp, err := p.do(req); err == nil {
			t.Errorf("resumed the oldest of 4200: %v", resp)
		}
	})
}

// A client that rewinds a body and sends it again after a 401, where the
// transport can see that and where it cannot.
func TestTransportRewoundAfter401(t *testing.T) {
	for _, visible := range []bool{false, true} {
		for _, rewound := range []bool{false, true} {
			untilTaken(t, func() bool { return rewoundAfter401(t, visible, rewound) })
		}
	}
}

// untilTaken repeats what depends on who is quicker, until the race went the
// way that is wanted.
func untilTaken(t *testing.T, try func() bool) {
	t.Helper()
	for range 50 {
		if try() || t.Failed() {
			return
		}
	}
	t.Error("it never came to it")
}

// rewoundAfter401 is false where the refusal came before anything was read.
func rewoundAfter401(t *testing.T, visible, rewound bool) (taken bool) {
	t.Helper()
	f := on(scripted.Patch, 1, scripted.Action{Before: 401})
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		data := content(3_000_000) // of which the refused request takes a part
		r := io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
		var body io.ReadCloser = struct{ io.ReadCloser }{io.NopCloser(r)}
		if visible {
			body = struct {
				*io.SectionReader
				io.Closer
			}{r, io.NopCloser(nil)}
		}
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for try := range 2 {
			req := p.request(p.t.Context(), http.MethodPatch, at.String())
			req.Body, req.ContentLength = body, int64(len(data))
			resp, err := p.do(req)
			if try == 0 {
				synctest.Wait() // net/http may still be reading
				if err != nil || resp.StatusCode != 401 {
					t.Fatalf("got %v, %v", resp, err)
				}
				if pos, _ := r.Seek(0, io.SeekCurrent); pos == 0 {
					return
				}
				taken = true
				if rewound {
					r.Seek(0, io.SeekStart)
				}
				continue
			}
			if rewound && !visible {
				if !errors.Is(err, resume.ErrSource) {
					t.Errorf("got %v, %v", resp, err)
				}
				return
			}
			if err != nil || resp.StatusCode != 202 {
				t.Fatalf("seekable %v, rewound %v: got %v, %v", visible, rewound, resp, err)
			}
			if at, err = resp.Location(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.wants(p.request(p.t.Context(), http.MethodPut, withDigest(at, data)), 201, data); err != nil {
			t.Fatal(err)
		}
		p.has(data)
	})
	return taken
}

// Measuring a body that goes on for ever ends with the context.
func TestTransportCancelWhileMeasuring(t *testing.T) {
	onTransport(t, scripted.Options{Intercept: brokenBody(1000)}, &resume.TransportOptions{}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		go func() {
			for range 20 {
				w.Write(content(2000))
				time.Sleep(20 * time.Millisecond)
			}
		}() // and no end
		ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
		defer cancel()
		req := p.request(ctx, http.MethodPatch, at.String())
		req.Body, req.ContentLength = r, -1
		began := time.Now()
		if resp, err := p.do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v", resp, err)
		}
		if took := time.Since(began); took > 35*time.Second { // virtual time
			t.Errorf("took %s", took)
		}
		w.Close()
	})
}

// A commit that ended with the client's deadline may have been carried out: the
// next one is settled by asking for the blob.
func TestTransportCommitCancelled(t *testing.T) {
	f := on(scripted.Put, 1, scripted.Action{DelayAfter: time.Hour})
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		data := content(1000)
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		bodyAgain(p, req, data)
		resp, err := p.do(req)
		if err != nil {
			t.Fatal(err)
		}
		if at, err = resp.Location(); err != nil {
			t.Fatal(err)
		}
		for try := range 2 {
			ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
			err := p.wants(p.request(ctx, http.MethodPut, withDigest(at, data)), 201, data)
			cancel()
			if try == 0 && !errors.Is(err, context.DeadlineExceeded) || try == 1 && err != nil {
				t.Errorf("try %d: got %v", try, err)
			}
		}
		if n := p.count(scripted.Put); n != 1 {
			t.Errorf("%d commits: %s", n, p.trace())
		}
		p.has(data)
	})
}

// closings counts how often a body is closed.
type closings struct {
	io.Reader
	n atomic.Int64
}

func (c *closings) Close() error { c.n.Add(1); return nil }

func TestTransportClosesOnce(t *testing.T) {
	for name, f := range map[string]func(scripted.Request) scripted.Action{
		"healthy": func(scripted.Request) scripted.Action { return scripted.Action{} },
		"broken":  all(brokenBody(500), on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 100})),
	} {
		for _, again := range []bool{false, true} {
			var made []*closings
			onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
				body := func() (io.ReadCloser, error) {
					made = append(made, &closings{Reader: bytes.NewReader(content(1000))})
					return made[len(made)-1], nil
				}
				p.delivers(style{name, true, func(_ *passing, req *http.Request, _ []byte) {
					if req.Body, _ = body(); again {
						req.GetBody = body
					}
					req.ContentLength = 1000
				}}, content(1000))
			})
			for i, c := range made {
				if n := c.n.Load(); n != 1 {
					t.Errorf("%s, GetBody %v: body %d was closed %d times", name, again, i, n)
				}
			}
		}
	}
}

// A body that is longer than it was said to be fails as without the transport.
func TestTransportLongBody(t *testing.T) {
	for _, s := range styles {
		if s.name == "PATCH, length unknown" || s.name == "PUT, length unknown" || s.name == "PUT, pipe" {
			continue
		}
		for _, o := range []*resume.TransportOptions{nil, {}} {
			// net/http looks for the byte too many once it has sent the others: the
			// answer may be quicker.
			untilTaken(t, func() (seen bool) {
				onTransport(t, scripted.Options{}, o, func(p *passing) {
					long := s
					long.body = func(p *passing, req *http.Request, data []byte) {
						s.body(p, req, append(bytes.Clone(data), 0))
						req.ContentLength--
					}
					err := p.upload(p.t.Context(), long, content(1000))
					if seen = err != nil; seen && o != nil && !errors.Is(err, resume.ErrSource) {
						t.Errorf("%s, with the transport: got %v", s.name, err)
					}
				})
				return seen
			})
		}
	}
}

// A wait that the client ended is no answer.
func TestTransportCancelWhileWaiting(t *testing.T) {
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch || r.Kind == scripted.Status {
			return scripted.Action{Before: 503}
		}
		return scripted.Action{}
	}
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
		defer cancel()
		if err := p.upload(ctx, styles[0], content(1000)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// Only 201 is a commit.
func TestTransportOddCommit(t *testing.T) {
	page := on(scripted.Put, 1, scripted.Action{Before: 200, Body: []byte("<html>please log in")})
	onTransport(t, scripted.Options{Intercept: page}, &resume.TransportOptions{}, func(p *passing) {
		if err := p.upload(p.t.Context(), styles[1], content(1000)); err == nil || !strings.Contains(err.Error(), "PUT: 200") {
			t.Errorf("got %v", err)
		}
		for _, e := range p.events {
			if e.Kind == resume.Committed {
				t.Error("told as a commit")
			}
		}
	})
}

// A PATCH that passes through and does not say where it led to leaves a session
// that cannot be resumed with the right bytes.
func TestTransportForgetsWhereNobodyKnows(t *testing.T) {
	f := all(
		on(scripted.Patch, 1, scripted.Action{Before: 202, Header: http.Header{"Location": {"/v2/team/app/blobs/uploads/1"}}}),
		on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 100}),
	)
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for try := range 2 {
			req := p.request(p.t.Context(), http.MethodPatch, at.String())
			bodyAgain(p, req, content(1000))
			if try == 0 {
				req.Header.Set("Content-Range", "5000-5999") // other bytes than are known of
			}
			if resp, err := p.do(req); (err == nil) != (try == 0) {
				t.Errorf("try %d: got %v, %v", try, resp, err)
			}
		}
	})
}

// reentrant calls the transport from Close, as a client may.
type reentrant struct {
	io.Reader
	rt     http.RoundTripper
	closed chan bool
}

func (r *reentrant) Close() error {
	r.rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	close(r.closed)
	return nil
}

// What was left behind goes after a day, at the next POST, and by itself.
func TestTransportClosesWithoutItsLock(t *testing.T) {
	f := on(scripted.Patch, 1, scripted.Action{Before: 401})
	onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
		at, err := p.open(p.t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b := &reentrant{bytes.NewReader(content(1000)), p.rt, make(chan bool)}
		req := p.request(p.t.Context(), http.MethodPatch, at.String())
		req.Body, req.ContentLength = b, 1000
		if resp, err := p.do(req); err != nil || resp.StatusCode != 401 {
			t.Fatalf("got %v, %v", resp, err)
		}
		select {
		case <-b.closed:
		case <-time.After(time.Hour):
			t.Error("never closed")
		}
	})
}

// calling is a memory that uses the transport it belongs to.
type calling struct {
	resume.Dialects
	rt func() http.RoundTripper
}

func (c *calling) Load(host string) (resume.Dialect, bool) {
	if c.rt != nil {
		c.rt().(interface{ CloseIdleConnections() }).CloseIdleConnections()
	}
	return c.Dialects.Load(host)
}

func TestTransportLoadsWithoutItsLock(t *testing.T) {
	d := &calling{Dialects: resume.MemoryDialects()}
	onTransport(t, scripted.Options{}, &resume.TransportOptions{Dialects: d}, func(p *passing) {
		d.rt = func() http.RoundTripper { return p.rt }
		p.delivers(styles[0], content(1000))
	})
}
