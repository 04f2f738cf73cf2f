//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/pusher"
)

const mib = 1 << 20

var bin string // the rpush under test

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rpush-e2e-")
	if err != nil {
		panic(err)
	}
	bin = filepath.Join(dir, "rpush")
	build := exec.Command("go", "build", "-o", bin, "github.com/rpush-go/rpush/cmd/rpush")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// run is one call of rpush with --output json.
type run struct {
	exit   int
	report pusher.Report
	fault  struct{ Kind, Message string }
	stderr string
	peak   int64 // resident bytes
}

// environ is that of a user without credentials or settings.
func environ(t *testing.T, extra ...string) []string {
	t.Helper()
	env := []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
	return append(env, extra...)
}

func rpush(t *testing.T, env []string, args ...string) run {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"--output", "json"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, env
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("rpush %v took too long:\n%s", args, errs.String())
	}
	r := run{exit: cmd.ProcessState.ExitCode(), stderr: errs.String()}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.peak = u.Maxrss << 10
	}
	doc := struct {
		*pusher.Report
		Error any `json:"error"`
	}{&r.report, &r.fault}
	if e := json.Unmarshal(out.Bytes(), &doc); e != nil && r.exit != 2 {
		t.Fatalf("rpush %v: %v, %v\n%s\n%s", args, err, e, out.String(), errs.String())
	}
	return r
}

// pushes is rpush that must succeed.
func pushes(t *testing.T, env []string, args ...string) run {
	t.Helper()
	r := rpush(t, env, args...)
	if r.exit != 0 {
		t.Fatalf("rpush %v: exit %d\n%s", args, r.exit, r.stderr)
	}
	return r
}

func layout(t *testing.T, seed uint64, sizes ...int64) ocilayout.Image {
	t.Helper()
	img, err := ocilayout.Write(filepath.Join(t.TempDir(), "image"), seed, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func through(t *testing.T, target string, o proxy.Options) *proxy.Proxy {
	t.Helper()
	p, err := proxy.Start(target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// sameAt pulls ref with crane, and compares all of it with the image.
func sameAt(t *testing.T, img ocilayout.Image, ref string, env ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pulled")
	cmd := exec.Command(realreg.Tool(t, "crane"), "pull", "--format=oci", ref, dir)
	cmd.Env = environ(t, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("crane pull: %v\n%s", err, out)
	}
	if err := ocilayout.Compare(img.Dir, dir); err != nil {
		t.Fatalf("what arrived is not what was sent: %v", err)
	}
}

// Every connection is reset after 32 MiB. The registry keeps what it received,
// so next to nothing is sent twice.
func TestEveryConnectionReset(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := layout(t, 1, 256*mib)
	p := through(t, reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := pushes(t, environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	s := p.Stats()
	ratio := float64(s.Up) / float64(img.Total)
	t.Logf("%d resets, forwarded %.4f x the image, %d resumes", s.Faults, ratio, r.report.Resumes)
	if s.Faults < 8 {
		t.Errorf("only %d resets", s.Faults)
	}
	if ratio > 1.01 {
		t.Errorf("forwarded %.4f x the image, want at most 1.01", ratio)
	}
	if r.report.Restarts != 0 || r.report.Resumes != s.Faults {
		t.Errorf("%d resumes and %d restarts after %d resets", r.report.Resumes, r.report.Restarts, s.Faults)
	}
	sameAt(t, img, reg.Addr+"/team/app:1")

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
	img := layout(t, 2, 256*mib)
	p := through(t, reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetBoth})})
	pushes(t, environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	s := p.Stats()
	lost := float64(s.Up-img.Total) / float64(s.Faults)
	t.Logf("%d resets, %.2f MiB sent again for each", s.Faults, lost/mib)
	if s.Faults < 8 || lost > 8*mib {
		t.Errorf("%d resets, %.2f MiB sent again for each, want at most 8", s.Faults, lost/mib)
	}
	sameAt(t, img, reg.Addr+"/team/app:1")
}

// tap records what is asked and answered about uploads.
type tap struct {
	mu     sync.Mutex
	ranges map[string]string // session: Range of its last status answer
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
			start, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
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
	img := layout(t, 3, 64*mib)
	tp := &tap{ranges: map[string]string{}}
	srv := newServer(t, tp.handler(reg.Addr))
	p := through(t, srv, proxy.Options{Plan: proxy.Every(7*mib, proxy.Fault{Kind: proxy.ResetBoth})})
	pushes(t, environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	tp.mu.Lock()
	defer tp.mu.Unlock()
	t.Logf("PATCHes from %v", tp.starts)
	if len(tp.wrong) > 0 || len(tp.starts) < 9 {
		t.Errorf("%d PATCHes: %v", len(tp.starts), tp.wrong)
	}
	sameAt(t, img, reg.Addr+"/team/app:1")
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
	img := layout(t, 4, 2048*mib)
	p := through(t, reg.Addr, proxy.Options{Plan: proxy.Every(300*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := pushes(t, environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	t.Logf("peak memory %.1f MiB, %d breaks", float64(r.peak)/mib, r.report.Breaks)
	if r.peak <= 0 || r.peak > 64*mib {
		t.Errorf("peak memory %.1f MiB, want at most 64", float64(r.peak)/mib)
	}
	if r.report.Breaks < 6 {
		t.Errorf("only %d breaks", r.report.Breaks)
	}
}

// TLS with a CA of its own, a password, several layers at once, faults of all
// kinds by seed.
func TestTLSAndPasswordThroughFaults(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{TLS: true, BasicAuth: true})
	auth := base64.StdEncoding.EncodeToString([]byte(realreg.User + ":" + realreg.Password))
	for seed, kind := range []proxy.Kind{proxy.ResetClient, proxy.ResetBoth, proxy.Cut, proxy.LoseAnswer, proxy.Stall} {
		t.Run(kind.String(), func(t *testing.T) {
			img := layout(t, uint64(10+seed), 20*mib, 5*mib, 0, 1, 9*mib)
			p := through(t, reg.Addr, proxy.Options{
				Plan: proxy.First(12, proxy.Seeded(uint64(seed), 3*mib, proxy.Fault{Kind: kind, For: 10 * time.Second})),
			})
			ref := fmt.Sprintf("%s/tls/%d:1", p.Addr(), seed)
			dir := t.TempDir()
			config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, p.Addr(), auth)
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			env := environ(t, "DOCKER_CONFIG="+dir)
			r := pushes(t, env, "--ca-file", reg.CAFile, "--stall-timeout", "2s", "--answer-timeout", "3s", "oci:"+img.Dir, ref)
			t.Logf("%d faults, %d breaks, %d resumes, %d restarts", p.Stats().Faults, r.report.Breaks, r.report.Resumes, r.report.Restarts)
			if p.Stats().Faults == 0 {
				t.Error("no faults")
			}
			clean := fmt.Sprintf("%s/tls/%d:1", reg.Addr, seed)
			config = fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Addr, auth)
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			sameAt(t, img, clean, "DOCKER_CONFIG="+dir, "SSL_CERT_FILE="+reg.CAFile)
		})
	}
}

// The registry dies in the middle of a push and comes back.
func TestRegistryRestarts(t *testing.T) {
	for _, secret := range []string{"", "fixed"} {
		t.Run("secret="+secret, func(t *testing.T) {
			reg := realreg.Start(t, realreg.Options{Secret: secret})
			img := layout(t, 20, 40*mib)
			p := through(t, reg.Addr, proxy.Options{Rate: 30 * mib})
			restarted := make(chan error, 1)
			go func() {
				for p.Stats().Up < 20*mib && t.Context().Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				reg.Kill()
				restarted <- reg.Restart(context.Background())
			}()
			r := pushes(t, environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
			if err := <-restarted; err != nil {
				t.Fatal(err)
			}
			t.Logf("%d breaks, %d resumes, %d restarts, forwarded %.2f x", r.report.Breaks, r.report.Resumes, r.report.Restarts, float64(p.Stats().Up)/float64(img.Total))
			if r.report.Breaks == 0 {
				t.Error("nothing broke")
			}
			sameAt(t, img, reg.Addr+"/team/app:1")
		})
	}
}
