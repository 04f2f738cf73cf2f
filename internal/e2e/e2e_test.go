// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const mib = 1 << 20

var rpush binary.Rpush

func TestMain(m *testing.M) { os.Exit(binary.Main(m, &rpush)) }

// Every connection is reset after 32 MiB. The registry keeps what it received,
// so next to nothing is sent twice.
func TestEveryConnectionReset(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 1, 256*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	s := p.Stats()
	ratio := float64(s.Up) / float64(img.Total)
	t.Logf("%d resets, forwarded %.4f x the image, %d resumes", s.Faults, ratio, r.Report.Resumes)
	if s.Faults < 8 {
		t.Errorf("only %d resets", s.Faults)
	}
	if ratio > 1.01 {
		t.Errorf("forwarded %.4f x the image, want at most 1.01", ratio)
	}
	if r.Report.Restarts != 0 || r.Report.Resumes != s.Faults {
		t.Errorf("%d resumes and %d restarts after %d resets", r.Report.Resumes, r.Report.Restarts, s.Faults)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")

	log, err := reg.AccessLog()
	if err != nil {
		t.Fatal(err)
	}
	heads, gets, other := 0, 0, 0
	for _, a := range log {
		switch {
		case strings.Contains(a.Path, "/blobs/uploads/") && a.Method == http.MethodHead && a.Status == http.StatusNoContent:
			heads++
		case strings.Contains(a.Path, "/blobs/uploads/") && a.Method == http.MethodGet:
			gets++
		}
		if !strings.HasPrefix(a.UserAgent, "rpush/") && !strings.HasPrefix(a.UserAgent, "crane/") {
			other++
		}
	}
	if heads < s.Faults || gets != 0 || other != 0 {
		t.Errorf("the access log has %d HEADs and %d GETs on upload URLs, %d requests of other clients", heads, gets, other)
	}
}

// Both sides of every connection are reset: what is in flight is lost.
func TestBothSidesReset(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 2, 256*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetBoth})})
	rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	s := p.Stats()
	lost := float64(s.Up-img.Total) / float64(s.Faults)
	t.Logf("%d resets, %.2f MiB sent again for each", s.Faults, lost/mib)
	if s.Faults < 8 || lost > 8*mib {
		t.Errorf("%d resets, %.2f MiB sent again for each, want at most 8", s.Faults, lost/mib)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}

// tap records what is asked and answered about uploads.
type tap struct {
	mu     sync.Mutex
	ranges map[string]string // session: Range of its last status answer
	sent   map[string]bool   // session: it got a PATCH
	starts []string          // of PATCHes, and what the status before it said
	wrong  []string
}

func (t *tap) handler(target string) http.Handler {
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host
	}}
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodHead && strings.Contains(r.Request.URL.Path, "/uploads/") {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.ranges[r.Request.URL.Path] = r.Header.Get("Range")
		}
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			t.mu.Lock()
			start, _, ranged := strings.Cut(r.Header.Get("Content-Range"), "-")
			if !ranged && !t.sent[r.URL.Path] {
				start = "0" // the whole blob, to a session that nothing was sent to
			}
			t.sent[r.URL.Path] = true
			var end int64 = -1
			said, asked := t.ranges[r.URL.Path]
			if asked && said != "0-0" {
				fmt.Sscanf(said, "0-%d", &end)
			}
			if want := fmt.Sprint(end + 1); start != want {
				t.wrong = append(t.wrong, fmt.Sprintf("PATCH from %s, the status before it said %q", start, said))
			}
			t.starts = append(t.starts, start)
			t.mu.Unlock()
		}
		p.ServeHTTP(w, r)
	})
}

// Each PATCH after a break begins where a HEAD said that the registry stands.
func TestContinuesWhereTheRegistryStands(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 3, 64*mib)
	tp := &tap{ranges: map[string]string{}, sent: map[string]bool{}}
	srv := newServer(t, tp.handler(reg.Addr))
	p := binary.Through(t, srv, proxy.Options{Plan: proxy.Every(7*mib, proxy.Fault{Kind: proxy.ResetBoth})})
	rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	tp.mu.Lock()
	defer tp.mu.Unlock()
	t.Logf("PATCHes from %v", tp.starts)
	if len(tp.wrong) > 0 || len(tp.starts) < 9 {
		t.Errorf("%d PATCHes: %v", len(tp.starts), tp.wrong)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}

func newServer(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := &http.Server{Handler: h}
	ln := listen(t)
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().String()
}

// A layer of 2 GiB, through resets, in little memory.
func TestMemoryIsFlat(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 4, 2048*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(300*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	t.Logf("peak memory %.1f MiB, %d breaks", float64(r.Peak)/mib, r.Report.Breaks)
	if r.Peak <= 0 || r.Peak > 64*mib {
		t.Errorf("peak memory %.1f MiB, want at most 64", float64(r.Peak)/mib)
	}
	if r.Report.Breaks < 6 {
		t.Errorf("only %d breaks", r.Report.Breaks)
	}
}

// TLS with a CA of its own, a password, several layers at once, faults of all
// kinds by seed.
func TestTLSAndPasswordThroughFaults(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{TLS: true, BasicAuth: true})
	for seed, kind := range []proxy.Kind{proxy.ResetClient, proxy.ResetBoth, proxy.Cut, proxy.LoseAnswer, proxy.Stall} {
		t.Run(kind.String(), func(t *testing.T) {
			img := binary.Layout(t, uint64(10+seed), 20*mib, 5*mib, 0, 1, 9*mib)
			p := binary.Through(t, reg.Addr, proxy.Options{
				Plan: proxy.First(12, proxy.Seeded(uint64(seed), 3*mib, proxy.Fault{Kind: kind, For: 10 * time.Second})),
			})
			ref := fmt.Sprintf("%s/tls/%d:1", p.Addr(), seed)
			login := binary.Login(t, p.Addr(), reg.Addr)
			env := binary.Environ(t, login)
			r := rpush.Push(t, env, "--ca-file", reg.CAFile, "--stall-timeout", "2s", "--answer-timeout", "3s", "oci:"+img.Dir, ref)
			t.Logf("%d faults, %d breaks, %d resumes, %d restarts", p.Stats().Faults, r.Report.Breaks, r.Report.Resumes, r.Report.Restarts)
			if p.Stats().Faults == 0 {
				t.Error("no faults")
			}
			clean := fmt.Sprintf("%s/tls/%d:1", reg.Addr, seed)
			binary.Same(t, img, clean, login, "SSL_CERT_FILE="+reg.CAFile)
		})
	}
}

// The registry dies in the middle of a push and comes back.
func TestRegistryRestarts(t *testing.T) {
	for _, secret := range []string{"", "fixed"} {
		t.Run("secret="+secret, func(t *testing.T) {
			reg := realreg.Start(t, realreg.Options{Secret: secret})
			img := binary.Layout(t, 20, 40*mib)
			p := binary.Through(t, reg.Addr, proxy.Options{Rate: 30 * mib})
			restarted := make(chan error, 1)
			go func() {
				for p.Stats().Up < 20*mib && t.Context().Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				reg.Kill()
				restarted <- reg.Restart(context.Background())
			}()
			r := rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
			if err := <-restarted; err != nil {
				t.Fatal(err)
			}
			t.Logf("%d breaks, %d resumes, %d restarts, forwarded %.2f x", r.Report.Breaks, r.Report.Resumes, r.Report.Restarts, float64(p.Stats().Up)/float64(img.Total))
			if r.Report.Breaks == 0 {
				t.Error("nothing broke")
			}
			binary.Same(t, img, reg.Addr+"/team/app:1")
		})
	}
}

// Whoever reads stderr goes away in the middle: the push arrives all the same.
func TestStderrGoesAway(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 40, 20*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Rate: 20 * mib, Plan: proxy.Every(5*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(string(rpush), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	cmd.Stderr, cmd.Env = w, binary.Environ(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.Read(make([]byte, 1))
	r.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("rpush: %v", err)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}
