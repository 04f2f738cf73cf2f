// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/nginx"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// stateOf is the setting of Environ for a state directory of its own.
func stateOf(t *testing.T) (dir, env string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	return dir, "RPUSH_STATE_DIR=" + dir
}

// records are the files of what is kept.
func records(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "rpush-uploads", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// The process is killed twenty times at random moments. All runs together send
// little more than the image.
func TestKilledTwentyTimes(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 50, 300*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Rate: 60 * mib})
	dir, state := stateOf(t)
	env := binary.Environ(t, state)
	args := []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"}
	random := rand.New(rand.NewPCG(1, 50))
	for range 20 {
		r := rpush.Start(t, env, args...)
		time.Sleep(time.Duration(20+random.IntN(400)) * time.Millisecond)
		r.Signal(syscall.SIGKILL)
		if res := r.End(); res.Exit != -1 {
			t.Fatalf("it ended with %d before it was killed\n%s", res.Exit, res.Stderr)
		}
	}
	before := p.Stats().Up
	last := rpush.Push(t, env, args...)
	ratio := float64(p.Stats().Up) / float64(img.Total)
	t.Logf("sent %.4f x the image; the last run went on at %d MiB, after %d MiB of the others", ratio, last.Report.Continued/mib, before/mib)
	if ratio > 1.05 {
		t.Errorf("sent %.4f x the image, want at most 1.05", ratio)
	}
	if last.Report.Continued < 32*mib {
		t.Errorf("only %d bytes were continued", last.Report.Continued)
	}
	if left := records(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}

// chunks notes the PATCHes that reach a registry whole.
type chunks struct {
	mu    sync.Mutex
	acked map[string][]int64 // by session
	done  string             // the session that was committed
}

func (c *chunks) handler(target string) http.Handler {
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host
	}}
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p.ModifyResponse = func(r *http.Response) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch at := r.Request.URL.Path; {
		case r.Request.Method == http.MethodPatch && r.StatusCode == http.StatusAccepted:
			c.acked[at] = append(c.acked[at], r.Request.ContentLength)
		case r.Request.Method == http.MethodPut && r.StatusCode == http.StatusCreated && c.acked[at] != nil:
			c.done = at
		}
		return nil
	}
	return p
}

// The registry of the report, distribution 2 behind nginx, keeps whole
// requests: each kill costs the one under way, and the session where it falls
// between a request and its record.
func TestKilledTwentyTimesBehindNginx(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{Tool: "docker-registry"})
	c := &chunks{acked: map[string][]int64{}}
	ng := nginx.Start(t, newServer(t, c.handler(reg.Addr)), nginx.Options{})
	img := binary.Layout(t, 51, 300*mib)
	p := binary.Through(t, ng.Addr, proxy.Options{Rate: 40 * mib})
	dir, state := stateOf(t)
	env := binary.Environ(t, state)
	args := []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"}
	random := rand.New(rand.NewPCG(2, 51))
	var first int64 // bytes of the run that could not know better
	kills := 0
	for range 20 {
		r := rpush.Start(t, env, args...)
		time.Sleep(time.Duration(50+random.IntN(600)) * time.Millisecond)
		r.Signal(syscall.SIGKILL)
		if r.End().Exit == -1 {
			kills++
		}
		if first == 0 {
			first = p.Stats().Up
		}
	}
	last := rpush.Push(t, env, args...)

	c.mu.Lock()
	defer c.mu.Unlock()
	var lost, largest int64
	sessions := 0
	for at, sizes := range c.acked {
		var sum int64
		for _, n := range sizes {
			sum += n
		}
		if sum < mib {
			continue // the config
		}
		largest = max(largest, slices.Max(sizes[:max(len(sizes)-1, 1)]))
		if at != c.done {
			sessions++
			lost += sum
		}
	}
	up := p.Stats().Up
	t.Logf("%d kills, sent %.3f x the image; %d sessions were lost between a chunk and its record, with %.3f x; without these %.3f x, %.1f MiB for each kill; largest chunk %d MiB, first run %d MiB, last run continued at %d MiB",
		kills, float64(up)/float64(img.Total), sessions, float64(lost)/float64(img.Total), float64(up-lost)/float64(img.Total),
		float64(up-lost-img.Total)/mib/float64(kills), largest/mib, first/mib, last.Report.Continued/mib)
	if kills < 20 {
		t.Errorf("only %d kills", kills)
	}
	if most := img.Total + lost + first + int64(kills)*(largest+4*mib); up > most {
		t.Errorf("sent %d bytes, want at most %d: the image, what was lost with sessions, and for each kill one chunk and what the sockets held", up, most)
	}
	if left := records(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}

// Between two runs the registry restarts, or purges the session.
func TestSessionsThatDoNotSurvive(t *testing.T) {
	for name, c := range map[string]struct {
		o         realreg.Options
		purge     bool
		continued bool // distribution 3 answers the status whatever the state
	}{
		"restarted":                     {continued: true},
		"restarted with a fixed secret": {o: realreg.Options{Secret: "fixed"}, continued: true},
		"purged":                        {purge: true},
		"distribution 2":                {o: realreg.Options{Tool: "docker-registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			reg := realreg.Start(t, c.o)
			img := binary.Layout(t, 52, 40*mib)
			p := binary.Through(t, reg.Addr, proxy.Options{Rate: 40 * mib})
			dir, state := stateOf(t)
			env := binary.Environ(t, state)
			args := []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"}
			p.Hold(21 * mib)
			r := rpush.Start(t, env, args...)
			until(t, func() bool { return p.Stats().Up > 20*mib })
			r.Signal(syscall.SIGKILL)
			r.End()
			release(t, p)
			if len(records(t, dir)) == 0 {
				t.Fatal("nothing was kept")
			}
			reg.Kill()
			if c.purge {
				if err := os.RemoveAll(filepath.Join(reg.Root, "docker/registry/v2/repositories/team/app/_uploads")); err != nil {
					t.Fatal(err)
				}
			}
			if err := reg.Restart(context.Background()); err != nil {
				t.Fatal(err)
			}
			res := rpush.Push(t, env, args...)
			t.Logf("%d MiB continued, %d restarts", res.Report.Continued/mib, res.Report.Restarts)
			if got := res.Report.Continued > 0; got != c.continued {
				t.Errorf("continued: %v, want %v", got, c.continued)
			}
			if left := records(t, dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			binary.Same(t, img, reg.Addr+"/team/app:1")
		})
	}
}

// release lets pass what a client left on the line when it ended, and returns when
// the proxy has none of its connections left.
func release(t *testing.T, p *proxy.Proxy) {
	t.Helper()
	p.Release()
	until(t, func() bool {
		return !slices.ContainsFunc(p.Stats().Each, func(c proxy.ConnStats) bool { return c.Open })
	})
}

func until(t *testing.T, what func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !what(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to that")
		}
	}
}

// Signals and the deadline stop at once, keep what is there, and say so.
func TestStoppedAndContinued(t *testing.T) {
	// A process that ignores a signal, as under nohup, hands that on to rpush.
	// One that handles it does not.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP)
	defer signal.Stop(heard)
	reg := realreg.Start(t, realreg.Options{})
	for name, c := range map[string]struct {
		signal syscall.Signal
		flags  []string
		exit   int
	}{
		"SIGHUP":     {syscall.SIGHUP, nil, 129},
		"SIGINT":     {syscall.SIGINT, nil, 130},
		"SIGTERM":    {syscall.SIGTERM, nil, 143},
		"--deadline": {0, []string{"--deadline", "8s"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			img := binary.Layout(t, 53, 60*mib)
			p := binary.Through(t, reg.Addr, proxy.Options{Rate: 20 * mib})
			dir, state := stateOf(t)
			env := binary.Environ(t, state)
			args := []string{"oci:" + img.Dir, fmt.Sprintf("%s/%s:1", p.Addr(), strings.ToLower(strings.Trim(name, "-")))}
			p.Hold(11 * mib) // it cannot arrive before it is stopped
			r := rpush.Start(t, env, append(c.flags, args...)...)
			until(t, func() bool { return p.Stats().Up > 10*mib })
			began := time.Now()
			if c.signal != 0 {
				r.Signal(c.signal)
			}
			res := r.End()
			t.Logf("it took %s to end", time.Since(began))
			release(t, p)
			if res.Exit != c.exit {
				t.Errorf("exit %d, want %d\n%s", res.Exit, c.exit, res.Stderr)
			}
			for _, want := range []string{"1 upload under way is kept", "hint: the same command again sends the rest"} {
				if !strings.Contains(res.Stderr, want) {
					t.Errorf("stderr does not say %q:\n%s", want, res.Stderr)
				}
			}
			if len(records(t, dir)) == 0 {
				t.Error("nothing is kept")
			}
			again := rpush.Push(t, env, args...)
			if again.Report.Continued < 5*mib {
				t.Errorf("only %d bytes were continued", again.Report.Continued)
			}
			if ratio := float64(p.Stats().Up) / float64(img.Total); ratio > 1.05 {
				t.Errorf("both runs sent %.3f x the image", ratio)
			}
			binary.Same(t, img, reg.Addr+strings.TrimPrefix(args[1], p.Addr()))
		})
	}
}

// A layer of 10 GiB is continued without being read again.
func TestFirstByteOfALargeLayer(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 54, mib)
	large := enlarge(t, img, 10<<30)
	p := binary.Through(t, reg.Addr, proxy.Options{Rate: 100 * mib})
	_, state := stateOf(t)
	env := binary.Environ(t, state)
	args := []string{"oci:" + large, p.Addr() + "/team/app:1"}
	r := rpush.Start(t, env, args...)
	until(t, func() bool { return p.Stats().Up > 100*mib })
	r.Signal(syscall.SIGKILL)
	r.End()
	var before int64
	until(t, func() bool { // what the dead process had sent has passed
		was := before
		before = p.Stats().Up
		time.Sleep(200 * time.Millisecond)
		return was == before
	})
	began := time.Now()
	r = rpush.Start(t, env, append(args, "-v")...)
	until(t, func() bool { return p.Stats().Up > before+mib })
	took := time.Since(began)
	r.Signal(syscall.SIGKILL)
	if res := r.End(); !strings.Contains(res.Stderr, "upload resumed") {
		t.Errorf("it was not continued:\n%s", res.Stderr)
	}
	t.Logf("%.2f s from start to the first MiB", took.Seconds())
}

// enlarge makes the layer of a layout one of n zeros. The digest is not theirs:
// whoever computes it notices.
func enlarge(t *testing.T, img ocilayout.Image, n int64) string {
	t.Helper()
	read := func(path string, v any) {
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index, manifest map[string]any
	read(filepath.Join(img.Dir, "index.json"), &index)
	desc := index["manifests"].([]any)[0].(map[string]any)
	read(ocilayout.BlobPath(img.Dir, desc["digest"].(string)), &manifest)
	layer := manifest["layers"].([]any)[0].(map[string]any)
	layer["size"] = n
	if err := os.Truncate(ocilayout.BlobPath(img.Dir, layer["digest"].(string)), n); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b).String()
	desc["digest"], desc["size"] = d, len(b)
	i, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(ocilayout.BlobPath(img.Dir, d), b, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(img.Dir, "index.json"), i, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img.Dir
}

// writers watches who writes to which session.
type writers struct {
	mu    sync.Mutex
	now   map[string]string // session: who
	wrong []string
}

func (w *writers) handler(target string) http.Handler {
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host
	}, ErrorLog: nil}
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPatch && r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/uploads/") {
			p.ServeHTTP(rw, r)
			return
		}
		w.mu.Lock()
		if who, ok := w.now[r.URL.Path]; ok {
			w.wrong = append(w.wrong, fmt.Sprintf("%s writes to %s while %s does", r.RemoteAddr, r.URL.Path, who))
		}
		w.now[r.URL.Path] = r.RemoteAddr
		w.mu.Unlock()
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.now, r.URL.Path)
		}()
		p.ServeHTTP(rw, r)
	})
}

// Fifty pairs race for the same blob, one of each is killed. No session ever
// has two writers, and every image arrives.
func TestFiftyPairs(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	w := &writers{now: map[string]string{}}
	srv := newServer(t, w.handler(reg.Addr))
	random := rand.New(rand.NewPCG(3, 55))
	type pair struct {
		img    ocilayout.Image
		killed int
		after  time.Duration
	}
	work := make(chan pair)
	var wg sync.WaitGroup
	var continued, took atomic.Int64
	for range 5 {
		wg.Go(func() {
			for c := range work {
				_, state := stateOf(t)
				env := binary.Environ(t, state)
				p := binary.Through(t, srv, proxy.Options{Rate: 12 * mib})
				ref := fmt.Sprintf("%s/pair/%s:1", p.Addr(), filepath.Base(filepath.Dir(c.img.Dir)))
				args := []string{"oci:" + c.img.Dir, ref}
				two := []*binary.Running{rpush.Start(t, env, args...), rpush.Start(t, env, args...)}
				time.Sleep(c.after)
				two[c.killed].Signal(syscall.SIGKILL)
				two[c.killed].End()
				res := two[1-c.killed].End()
				if res.Exit != 0 {
					t.Errorf("the other one: exit %d\n%s", res.Exit, res.Stderr)
				}
				took.Add(1)
				if res.Report.Continued > 0 {
					continued.Add(1)
				}
				binary.Same(t, c.img, reg.Addr+strings.TrimPrefix(ref, p.Addr()))
			}
		})
	}
	for n := range 50 {
		img, err := ocilayout.Write(filepath.Join(t.TempDir(), fmt.Sprint("p", n), "image"), uint64(100+n), 6*mib)
		if err != nil {
			t.Fatal(err)
		}
		work <- pair{img, random.IntN(2), time.Duration(30+random.IntN(500)) * time.Millisecond}
	}
	close(work)
	wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%d pairs, in %d of them the survivor went on with the other's upload", took.Load(), continued.Load())
	if len(w.wrong) > 0 {
		t.Errorf("two writers: %v", w.wrong)
	}
	if took.Load() != 50 || continued.Load() < 5 {
		t.Errorf("%d pairs, %d continued", took.Load(), continued.Load())
	}
	// The registry refuses a PATCH that another one has overtaken.
	log, err := reg.AccessLog()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range log {
		if a.Status == http.StatusRequestedRangeNotSatisfiable || a.Method == http.MethodPut && strings.Contains(a.Path, "/uploads/") && a.Status == http.StatusBadRequest {
			t.Errorf("%s %d: somebody else wrote", a.Method, a.Status)
		}
	}
}

// Nothing secret is readable by others, or in a log at any level.
func TestSecretsStayOnDisk(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{BasicAuth: true})
	img := binary.Layout(t, 56, 30*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Rate: 20 * mib, Plan: proxy.Every(4*mib, proxy.Fault{Kind: proxy.ResetClient})})
	dir, state := stateOf(t)
	env := binary.Environ(t, state, binary.Login(t, p.Addr()))
	args := []string{"-v", "oci:" + img.Dir, p.Addr() + "/team/app:1"}
	var said string
	var secrets []string
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		base := p.Stats().Up
		p.Hold(10 * mib)
		r := rpush.Start(t, env, args...)
		until(t, func() bool { return p.Stats().Up > base+9*mib })
		r.Signal(end)
		said += r.End().Stderr
		release(t, p)
		for _, path := range records(t, dir) {
			fi, err := os.Stat(path)
			if err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", path, fi.Mode(), err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var record struct{ Location string }
			if json.Unmarshal(b, &record) == nil {
				u, err := url.Parse(record.Location)
				if err != nil {
					t.Fatal(err)
				}
				secrets = append(secrets, u.Query().Get("_state"), filepath.Base(u.Path))
			}
			if strings.Contains(string(b), realreg.Password) {
				t.Errorf("%s has the password", path)
			}
		}
	}
	for _, d := range []string{dir, filepath.Join(dir, "rpush-uploads")} {
		if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", d, fi.Mode(), err)
		}
	}
	for _, args := range [][]string{{"sessions", "--check", "-v"}, {"sessions", "--output", "json"}} {
		cmd := exec.CommandContext(t.Context(), string(rpush), args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "team/app") {
			t.Errorf("rpush %v: %v\n%s", args, err, out)
		}
		said += string(out)
	}
	said += rpush.Push(t, env, args...).Stderr
	if len(secrets) < 2 {
		t.Fatal("no locations were seen")
	}
	for _, s := range append(secrets, realreg.Password, "_state") {
		if s != "" && strings.Contains(said, s) {
			t.Errorf("%q was said", s)
		}
	}
}

// A state directory that cannot be used gives one warning, and the push goes on.
func TestUnusableStateDirectories(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 57, 2*mib, 3*mib)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.MkdirAll(filepath.Join(garbage, "rpush-uploads", "0123.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(garbage, "rpush-uploads", fmt.Sprint(i, ".json")), []byte{byte(i), 0xff}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env      []string
		warnings int
	}{
		"not a directory": {[]string{"RPUSH_STATE_DIR=" + file}, 1},
		"read-only":       {[]string{"RPUSH_STATE_DIR=/proc/rpush"}, 1},
		"full":            {[]string{"RPUSH_STATE_DIR=" + fullDisk(t)}, 1},
		"garbage":         {[]string{"RPUSH_STATE_DIR=" + garbage}, 0},
		"no home":         {[]string{"HOME="}, 1},
		"none wanted":     {[]string{"HOME=", "RPUSH_NO_STATE=1"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ref := fmt.Sprintf("%s/%s:1", reg.Addr, strings.ReplaceAll(name, " ", "-"))
			res := rpush.Push(t, append(binary.Environ(t), c.env...), "oci:"+img.Dir, ref)
			n := 0
			for line := range strings.Lines(res.Stderr) {
				if strings.Contains(line, "warning: ") {
					n++
					t.Log(line)
				}
			}
			if n != c.warnings {
				t.Errorf("%d warnings, want %d:\n%s", n, c.warnings, res.Stderr)
			}
			binary.Same(t, img, ref)
		})
	}
}

// fullDisk is a file system without a free byte.
func fullDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,nr_inodes=20"); err != nil {
		t.Logf("no small file system (%v): another that cannot be written", err)
		return "/proc/rpush"
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); err == nil {
		t.Fatal("the file system does not fill")
	}
	return dir
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
