// SPDX-License-Identifier: Apache-2.0

//go:build linux

package binary

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// runTime bounds one call of rpush.
const runTime = 5 * time.Minute

// Rpush is the path of a built command.
type Rpush string

// Main builds the command into to, runs the tests, and returns the exit code
// for TestMain.
func Main(m *testing.M, to *Rpush) int {
	if path := os.Getenv(inside); path != "" {
		*to = Rpush(path)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "rpush-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	*to = Rpush(filepath.Join(dir, "rpush"))
	build := exec.Command("go", "build", "-o", string(*to), "github.com/rpush-go/rpush/cmd/rpush")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	return m.Run()
}

// Result is what one call came to.
type Result struct {
	Exit   int
	Report Report
	Stderr string
	Peak   int64 // resident bytes
}

// Report is what the tests read of the result that --output json prints.
type Report struct {
	Sent     int64 `json:"sent"`
	Breaks   int   `json:"breakCount"`
	Resumes  int   `json:"resumes"`
	Restarts int   `json:"restarts"`

	Continued int64 `json:"continued"`
}

// Running is a call of rpush that has not ended.
type Running struct {
	t         testing.TB
	cmd       *exec.Cmd
	cancel    context.CancelFunc
	out, errs bytes.Buffer
	late      func() error
}

// Start calls rpush with --output json. The caller has to End it.
func (b Rpush) Start(t testing.TB, env []string, args ...string) *Running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTime)
	r := &Running{t: t, cancel: cancel, late: ctx.Err}
	r.cmd = exec.CommandContext(ctx, string(b), append([]string{"--output", "json"}, args...)...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.Env = &r.out, &r.errs, env
	forgetPeak()
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	return r
}

// forgetPeak lowers the peak of this process, which the kernel counts for its
// children, too (clear_refs in proc(5)).
func forgetPeak() {
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// Signal sends one to the process.
func (r *Running) Signal(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// Pid is the number of the process.
func (r *Running) Pid() int { return r.cmd.Process.Pid }

// End waits for the process. Exit is -1 where a signal ended it.
func (r *Running) End() Result {
	r.t.Helper()
	defer r.cancel()
	err := r.cmd.Wait()
	if r.late() != nil {
		r.t.Fatalf("%v took too long:\n%s", r.cmd.Args, r.errs.String())
	}
	res := Result{Exit: r.cmd.ProcessState.ExitCode(), Stderr: r.errs.String()}
	if u, ok := r.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		res.Peak = u.Maxrss << 10
	}
	if e := json.Unmarshal(r.out.Bytes(), &res.Report); e != nil && res.Exit != 2 && res.Exit != -1 {
		r.t.Fatalf("%v: %v, %v\n%s\n%s", r.cmd.Args, err, e, r.out.String(), r.errs.String())
	}
	return res
}

// Run is Start and End.
func (b Rpush) Run(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	return b.Start(t, env, args...).End()
}

// Push is Run that must succeed.
func (b Rpush) Push(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	r := b.Run(t, env, args...)
	if r.Exit != 0 {
		t.Fatalf("rpush %v: exit %d\n%s", args, r.Exit, r.Stderr)
	}
	return r
}

// Environ is that of a user without credentials or settings, but for extra.
func Environ(t testing.TB, extra ...string) []string {
	t.Helper()
	env := []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
	return append(env, extra...)
}

// Login is the setting of Environ for one who is realreg.User at the hosts.
func Login(t testing.TB, hosts ...string) string {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(realreg.User + ":" + realreg.Password))
	auths := map[string]map[string]string{}
	for _, h := range hosts {
		auths[h] = map[string]string{"auth": auth}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return "DOCKER_CONFIG=" + dir
}

// Layout writes an image with one layer per size.
func Layout(t testing.TB, seed uint64, sizes ...int64) ocilayout.Image {
	t.Helper()
	img, err := ocilayout.Write(filepath.Join(t.TempDir(), "image"), seed, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Through runs a proxy in front of target until the end of the test.
func Through(t testing.TB, target string, o proxy.Options) *proxy.Proxy {
	t.Helper()
	p, err := proxy.Start(target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Same pulls ref with crane, and compares all of it with the image.
func Same(t testing.TB, img ocilayout.Image, ref string, env ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pulled")
	pull(t, env, realreg.Tool(t, "crane"), "pull", "--format=oci", ref, dir)
	same(t, img, dir)
}

// SameBySkopeo is Same with skopeo, which shares no code with crane or rpush.
func SameBySkopeo(t testing.TB, img ocilayout.Image, ref string, env ...string) {
	t.Helper()
	skopeo, dir := realreg.Tool(t, "skopeo"), t.TempDir()
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	// It reads credentials from $HOME, and without this tries HTTPS only.
	pull(t, env, skopeo, "--policy", policy, "copy", "--src-tls-verify=false",
		"--src-creds", realreg.User+":"+realreg.Password, "--preserve-digests", "docker://"+ref, "oci:"+dir+":latest")
	same(t, img, dir)
}

func pull(t testing.TB, env []string, path string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = Environ(t, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(path), err, out)
	}
}

func same(t testing.TB, img ocilayout.Image, dir string) {
	t.Helper()
	if err := ocilayout.Compare(img.Dir, dir); err != nil {
		t.Fatalf("what arrived is not what was sent: %v", err)
	}
}
