// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"rpush": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())) },
	})
}

// leakChecked is a testing.M that fails when goroutines are left.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

const (
	digestA = digest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	digestB = digest.Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
	mib     = 1 << 20
)

// newLayout writes an OCI layout with one image and returns its directory.
func newLayout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// rig is an app with a push of the test's own.
type rig struct {
	app
	stdout, stderr buffer
	signals        chan os.Signal
}

func newRig(t *testing.T, push pushFunc) *rig {
	t.Helper()
	for _, env := range []string{"HOME", "USERPROFILE", "DOCKER_CONFIG"} {
		t.Setenv(env, t.TempDir())
	}
	for _, env := range []string{"REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_AUTH_CONFIG"} {
		t.Setenv(env, "")
	}
	r := &rig{signals: make(chan os.Signal, 2)}
	r.app = app{
		stdin: strings.NewReader(""), stdout: &r.stdout, out: &printer{w: &r.stderr, last: time.Now()},
		env: map[string]string{}, signals: r.signals, push: push, probeFor: probeFor,
	}
	return r
}

// returning is a push that does nothing but return.
func returning(report *pusher.Report, err error) pushFunc {
	return func(context.Context, pusher.Options, name.Reference, remote.Taggable) (*pusher.Report, error) {
		return report, err
	}
}

func half() *pusher.Report {
	return &pusher.Report{
		Reference: "reg.example/app:1", Digest: digestA, Size: 300 * mib, Sent: 123, Breaks: 1, Resumes: 2, Seconds: 12.34,
		Blobs: []pusher.BlobReport{
			{Digest: digestA, Size: 100 * mib, State: pusher.BlobUploaded},
			{Digest: digestB, Size: 200 * mib, State: pusher.BlobPending},
		},
	}
}

func TestExitCodes(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	dir := "oci:" + newLayout(t)
	ref := "reg.example/app:1"
	missing := filepath.Join(t.TempDir(), "missing")
	noCert := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noCert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	failing := func(kind error) pushFunc {
		return returning(half(), fmt.Errorf("push: %w", &resume.Error{Op: "send", Err: kind}))
	}
	ok := returning(half(), nil)
	for _, tt := range []struct {
		name string
		args []string
		env  string
		push pushFunc
		exit int
		word string // on stderr
	}{
		{"pushed", []string{dir, ref}, "", ok, 0, "pushed reg.example/app:1"},
		{"pushed, spelled out", []string{"push", dir, "docker://" + ref}, "", ok, 0, "pushed"},
		{"denied", []string{dir, ref}, "", failing(resume.ErrDenied), 1, "docker login reg.example"},
		{"endpoint", []string{dir, ref}, "", failing(resume.ErrEndpoint), 1, "no usable registry"},
		{"source", []string{dir, ref}, "", failing(resume.ErrSource), 1, "nothing was published"},
		{"refused", []string{dir, ref}, "", failing(resume.ErrRefused), 1, "refused"},
		{"anything else", []string{dir, ref}, "", failing(errors.New("who knows")), 1, "who knows"},
		{"interrupted", []string{dir, ref}, "", failing(resume.ErrInterrupted), 3, "the same command again"},
		{"no engine", []string{ref}, "", ok, 1, "the Docker engine at unix:///nowhere/docker.sock does not answer"},
		{"no engine, by its name", []string{"docker-daemon:app", ref}, "", ok, 1, "hint: start the engine"},
		{"transport not built", []string{"sif:app", ref}, "", ok, 1, "is not supported"},
		{"missing path", []string{"oci:" + missing, ref}, "", ok, 1, "missing"},
		{"missing CA file", []string{"--ca-file", missing, dir, ref}, "", ok, 1, missing},
		{"CA file without a certificate", []string{"--ca-file", noCert, dir, ref}, "", ok, 1, noCert},
		{"no arguments", nil, "", ok, 2, "REFERENCE is missing"},
		{"a source alone", []string{dir}, "", ok, 2, "REFERENCE is missing: \"oci:"},
		{"standard input alone", []string{"-"}, "", ok, 2, `REFERENCE is missing: "-"`},
		{"an image on standard input alone", []string{"-#app:1"}, "", ok, 2, `REFERENCE is missing: "-#app:1"`},
		{"a path alone", []string{"./app.tar"}, "", ok, 2, "REFERENCE is missing"},
		{"an image whose name begins as sources do", []string{"oci/app:1"}, "", ok, 1, "the Docker engine at"},
		{"three arguments", []string{dir, ref, "more"}, "", ok, 2, `unexpected argument "more"`},
		{"no source", []string{"foo:bar", ref}, "", ok, 2, "not a source"},
		{"no reference", []string{dir, "UPPER"}, "", ok, 2, `"UPPER" is no reference`},
		{"unknown flag", []string{"--foo", dir, ref}, "", ok, 2, "unknown flag: --foo"},
		{"argument too many", []string{"completion", "bash", "x"}, "", ok, 2, "hint"},
		{"bad flag", []string{"--parallel", "x", dir, ref}, "", ok, 2, "--parallel"},
		{"too parallel", []string{"--parallel", "65", dir, ref}, "", ok, 2, "--parallel is 65"},
		{"not parallel", []string{"--parallel=0", dir, ref}, "", ok, 2, "--parallel is 0"},
		{"negative time", []string{"--retry-for=-1s", dir, ref}, "", ok, 2, "--retry-for is -1s"},
		{"no time", []string{"--stall-timeout=0", dir, ref}, "", ok, 2, "--stall-timeout is 0s"},
		{"unknown output", []string{"--output=xml", dir, ref}, "", ok, 2, `--output is "xml"`},
		{"contradiction", []string{"--plain-http", "--insecure", dir, ref}, "", ok, 2, "--plain-http and --insecure"},
		{"contradiction", []string{"--tls-verify", "--insecure", dir, ref}, "", ok, 2, "--tls-verify and --insecure"},
		{"contradiction", []string{"-q", "-v", dir, ref}, "", ok, 2, "--quiet and --verbose"},
		{"a flag against the environment", []string{"--insecure", dir, ref}, "RPUSH_PLAIN_HTTP=1", ok, 0, "pushed"},
		{"bad environment", []string{dir, ref}, "RPUSH_RETRY_FOR=soon", ok, 2, `"soon" of RPUSH_RETRY_FOR`},
		{"bad environment", []string{dir, ref}, "RPUSH_TLS_VERIFY=maybe", ok, 2, "RPUSH_TLS_VERIFY"},
		{"bad environment", []string{dir, ref}, "RPUSH_PARALLEL=65", ok, 2, "RPUSH_PARALLEL is 65"},
		{"bad environment", []string{dir, ref}, "RPUSH_OUTPUT=xml", ok, 2, "RPUSH_OUTPUT"},
		{"flag before environment", []string{"--parallel=2", dir, ref}, "RPUSH_PARALLEL=65", ok, 0, "pushed"},
		{"empty variable", []string{dir, ref}, "RPUSH_PARALLEL=", ok, 0, "pushed"},
		{"panic", []string{dir, ref}, "", func(context.Context, pusher.Options, name.Reference, remote.Taggable) (*pusher.Report, error) {
			panic("index out of range")
		}, 70, "this is a bug in rpush: index out of range"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.push)
			if k, v, ok := strings.Cut(tt.env, "="); ok {
				r.env[k] = v
			}
			if got := r.main(tt.args); got != tt.exit {
				t.Errorf("exit code %d, want %d", got, tt.exit)
			}
			stdout, stderr := r.stdout.String(), r.stderr.String()
			if !strings.Contains(stderr, tt.word) {
				t.Errorf("stderr %q; want %q in it", stderr, tt.word)
			}
			if tt.exit == exitUsage && !strings.HasSuffix(stderr, "rpush: hint: rpush --help says more\n") {
				t.Errorf("stderr %q; want the hint at its end", stderr)
			}
			for line := range strings.Lines(stderr) {
				if !strings.HasPrefix(line, "rpush: ") {
					t.Errorf("stderr has the line %q", line)
				}
			}
			want := ""
			if tt.exit == exitOK {
				want = "reg.example/app:1@" + digestA.String() + "\n"
			}
			if stdout != want {
				t.Errorf("stdout %q, want %q", stdout, want)
			}
		})
	}
}

func TestBugReport(t *testing.T) {
	r := newRig(t, func(context.Context, pusher.Options, name.Reference, remote.Taggable) (*pusher.Report, error) {
		panic("no")
	})
	r.main([]string{"oci:" + newLayout(t), "reg.example/app"})
	for _, w := range []string{"rpush " + version(), "go1.", "TestBugReport", "issues"} {
		if !strings.Contains(r.stderr.String(), w) {
			t.Errorf("stderr %q; want %q in it", r.stderr.String(), w)
		}
	}
}

func TestOptionsReachThePusher(t *testing.T) {
	dir := "oci:" + newLayout(t)
	for _, tt := range []struct {
		args  []string
		env   map[string]string
		check func(o pusher.Options) bool
	}{
		{nil, nil, func(o pusher.Options) bool {
			return o.Scheme == pusher.SchemeAuto && o.TLSClientConfig == nil && o.Parallel == 4 && o.RetryFor == 10*time.Minute &&
				o.StallTimeout == time.Minute && o.AnswerTimeout == 15*time.Minute && o.UserAgent == "rpush/"+version() &&
				o.Logger == nil && o.Keychain != nil && o.OnEvent != nil
		}},
		{[]string{"--plain-http"}, nil, func(o pusher.Options) bool { return o.Scheme == pusher.SchemeHTTP }},
		{[]string{"--tls-verify=false"}, nil, func(o pusher.Options) bool {
			return o.Scheme == pusher.SchemeEither && o.TLSClientConfig.InsecureSkipVerify
		}},
		{[]string{"--insecure"}, nil, func(o pusher.Options) bool {
			return o.Scheme == pusher.SchemeEither && o.TLSClientConfig.InsecureSkipVerify
		}},
		{[]string{"--parallel", "64", "--retry-for=0", "--stall-timeout=1s", "--answer-timeout=2s"}, nil, func(o pusher.Options) bool {
			return o.Parallel == 64 && o.RetryFor < 0 && o.StallTimeout == time.Second && o.AnswerTimeout == 2*time.Second
		}},
		{[]string{"-v"}, nil, func(o pusher.Options) bool { return o.Logger != nil }},
		{nil, map[string]string{"RPUSH_INSECURE": "1", "RPUSH_PARALLEL": "1", "RPUSH_RETRY_FOR": "3s"}, func(o pusher.Options) bool {
			return o.Scheme == pusher.SchemeEither && o.Parallel == 1 && o.RetryFor == 3*time.Second
		}},
		{[]string{"--parallel=9"}, map[string]string{"RPUSH_PARALLEL": "1", "RPUSH_VERBOSE": "true"}, func(o pusher.Options) bool {
			return o.Parallel == 9 && o.Logger != nil
		}},
	} {
		var got pusher.Options
		r := newRig(t, func(_ context.Context, o pusher.Options, _ name.Reference, _ remote.Taggable) (*pusher.Report, error) {
			got = o
			return half(), nil
		})
		maps.Copy(r.env, tt.env)
		if code := r.main(slices.Concat(tt.args, []string{dir, "reg.example/app"})); code != 0 || !tt.check(got) {
			t.Errorf("%v %v: exit code %d, options %+v", tt.args, tt.env, code, got)
		}
	}
}

// Each flag has a variable, and each variable is read.
func TestEveryFlagHasAVariable(t *testing.T) {
	all := func(o *options) *pflag.FlagSet {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		for _, g := range o.pushFlags() {
			fs.AddFlagSet(g.FlagSet)
		}
		return fs
	}
	all(&options{}).VisitAll(func(f *pflag.Flag) {
		flag := strings.TrimPrefix(f.Name, "src-")
		value := map[string]string{
			"ca-file": "x", "output": "json", "log-format": "json", "progress": "plain", "parallel": "7", "tls-verify": "false",
			"compression": "zstd", "format": "oci", "cache-from": "[reg.example/base:1]",
			"creds": "me:secret", "limit-rate": "5000", "mount-from": "[reg.example/base]", "platform": "[linux/amd64]",
			"layout-links": "[x]", "retry-times": "3", "state": "redis://localhost", "tag": "[a,b]",
		}[flag]
		// Some make sense only together.
		other := map[string]string{
			"cert-file": "key-file", "key-file": "cert-file", "username": "password-stdin", "password-stdin": "username",
		}[flag]
		switch {
		case value != "":
		case f.Value.Type() == "bool":
			value = "true"
		default:
			value = "7s"
		}
		var o options
		fs := all(&o)
		env := map[string]string{envName(f.Name): strings.Trim(value, "[]")}
		if other != "" {
			env[envName(strings.TrimSuffix(f.Name, flag)+other)] = map[bool]string{true: "true", false: "x"}[other == "password-stdin"]
		}
		if err := o.load(fs, env); err != nil {
			t.Errorf("%s=%s: %v", envName(f.Name), value, err)
		}
		if got := fs.Lookup(f.Name).Value.String(); got != value {
			t.Errorf("%s=%s: the flag is %q", envName(f.Name), value, got)
		}
	})
}

func TestResultIsWritten(t *testing.T) {
	dir := "oci:" + newLayout(t)

	r := newRig(t, returning(half(), nil))
	byDigest := "reg.example/app@" + digestA.String()
	if code := r.main([]string{"-q", dir, byDigest}); code != 0 || r.stdout.String() != byDigest+"\n" || r.stderr.String() != "" {
		t.Errorf("by digest: %d, stdout %q, stderr %q", code, r.stdout.String(), r.stderr.String())
	}

	r = newRig(t, returning(half(), nil))
	r.app.stdout = failingWriter{}
	if code := r.main([]string{dir, "reg.example/app"}); code != 1 || !strings.Contains(r.stderr.String(), "could not be written") {
		t.Errorf("full disk: %d, stderr %q", code, r.stderr.String())
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestJSON(t *testing.T) {
	type doc struct {
		Schema    int
		Rpush     string
		Status    string
		Started   time.Time
		Reference string
		Digest    string
		Breaks    *[]json.RawMessage
		Pushes    []struct {
			Reference, Status string
			Blobs, Manifests  *[]json.RawMessage
		}
		Error *struct {
			Kind, Message string
			Exit          int
		}
	}
	dir := "oci:" + newLayout(t)
	for _, tt := range []struct {
		name string
		push pushFunc
		src  string
		exit int
		kind string

		status string
	}{
		{"pushed", returning(half(), nil), dir, 0, "", "pushed"},
		{"interrupted", returning(half(), resume.ErrInterrupted), dir, 3, "interrupted", "interrupted"},
		{"bad source", nil, "oci:/absent", 1, "source", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.push)
			if code := r.main([]string{"--output=json", tt.src, "reg.example/app:1"}); code != tt.exit {
				t.Errorf("exit code %d, want %d", code, tt.exit)
			}
			var got doc
			if err := json.Unmarshal([]byte(r.stdout.String()), &got); err != nil {
				t.Fatalf("%v in %q", err, r.stdout.String())
			}
			if got.Schema != 1 || got.Rpush == "" || got.Started.IsZero() || got.Status != tt.status || got.Breaks == nil ||
				got.Reference != "reg.example/app:1" || len(got.Pushes) != 1 || got.Pushes[0].Status != tt.status ||
				got.Pushes[0].Blobs == nil || got.Pushes[0].Manifests == nil || (got.Digest != "") != (tt.exit == 0) {
				t.Errorf("document %s", r.stdout.String())
			}
			switch {
			case tt.kind == "" && got.Error == nil:
			case tt.kind == "" || got.Error == nil, got.Error.Kind != tt.kind, got.Error.Exit != tt.exit, got.Error.Message == "":
				t.Errorf("error %+v, want %q, exit %d", got.Error, tt.kind, tt.exit)
			}
		})
	}
}

// A usage error has a document of the same shape, but no result in text.
func TestUsageErrorIsADocument(t *testing.T) {
	for _, args := range [][]string{
		{"--output=json", "foo:bar", "reg.example/app"},
		{"--output", "json"},
		{"push", "--output", "json", "--no-such-flag", "x"},
		{"--parallel", "0", "--output=json", "oci:x", "reg.example/app"},
	} {
		r := newRig(t, nil)
		code := r.main(args)
		var doc document
		if err := json.Unmarshal([]byte(r.stdout.String()), &doc); err != nil || code != 2 || doc.Status != "usage" || doc.Exit != 2 ||
			doc.Schema != 1 || doc.Breaks == nil || doc.Pushes == nil || doc.Error == nil || doc.Error.Kind != "usage" || doc.Error.Message == "" {
			t.Errorf("%v: exit code %d, %v, stdout %q", args, code, err, r.stdout.String())
		}
	}
	r := newRig(t, nil)
	if code := r.main([]string{"foo:bar", "reg.example/app"}); code != 2 || r.stdout.String() != "" {
		t.Errorf("text: exit code %d, stdout %q", code, r.stdout.String())
	}
}

// untilStopped is a push that ends as Push does when its context does.
func untilStopped(ctx context.Context, _ pusher.Options, _ name.Reference, _ remote.Taggable) (*pusher.Report, error) {
	<-ctx.Done()
	return half(), fmt.Errorf("push: %w: %w", resume.ErrInterrupted, context.Cause(ctx))
}

func TestSignals(t *testing.T) {
	dir := "oci:" + newLayout(t)
	for _, tt := range []struct {
		signal syscall.Signal
		exit   int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}, {syscall.SIGHUP, 129}} {
		r := newRig(t, untilStopped)
		synctest.Test(t, func(t *testing.T) {
			r.app.signals = r.bubble(tt.signal)
			began := time.Now()
			if got := r.main([]string{"--output=json", dir, "reg.example/app"}); got != tt.exit {
				t.Errorf("%v: exit code %d, want %d", tt.signal, got, tt.exit)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%v: took %v", tt.signal, took)
			}
		})
		for _, w := range []string{"stopping", "1 of 2 blobs", "the same command again"} {
			if !strings.Contains(r.stderr.String(), w) {
				t.Errorf("%v: stderr %q; want %q in it", tt.signal, r.stderr.String(), w)
			}
		}
		if want := fmt.Sprintf(`"exit": %d`, tt.exit); !strings.Contains(r.stdout.String(), want) {
			t.Errorf("%v: stdout %q; want %s in it", tt.signal, r.stdout.String(), want)
		}
	}
}

// bubble returns a channel of the calling bubble that gets signals one second
// apart.
func (r *rig) bubble(signals ...os.Signal) <-chan os.Signal {
	c := make(chan os.Signal, len(signals))
	go func() {
		for _, s := range signals {
			time.Sleep(time.Second)
			c <- s
		}
	}()
	return c
}

// A push that does not end is left: after two seconds, or at a second signal.
func TestStuckPushIsLeft(t *testing.T) {
	dir := "oci:" + newLayout(t)
	for _, tt := range []struct {
		name    string
		signals []os.Signal
		exit    int
		took    time.Duration
	}{
		{"one signal", []os.Signal{syscall.SIGTERM}, 143, time.Second + stopWithin*3/4},
		{"two signals", []os.Signal{syscall.SIGINT, syscall.SIGINT}, 130, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var release chan struct{}
			r := newRig(t, func(context.Context, pusher.Options, name.Reference, remote.Taggable) (*pusher.Report, error) {
				<-release
				return nil, resume.ErrInterrupted
			})
			synctest.Test(t, func(t *testing.T) {
				release = make(chan struct{})
				r.app.signals = r.bubble(tt.signals...)
				began := time.Now()
				if got := r.main([]string{dir, "reg.example/app"}); got != tt.exit {
					t.Errorf("exit code %d, want %d", got, tt.exit)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				close(release)
			})
		})
	}
}

// What was done when the signal came is done.
func TestSignalAfterSuccess(t *testing.T) {
	var r *rig
	r = newRig(t, func(ctx context.Context, _ pusher.Options, _ name.Reference, _ remote.Taggable) (*pusher.Report, error) {
		r.signals <- syscall.SIGTERM
		<-ctx.Done()
		return half(), nil
	})
	if got := r.main([]string{"oci:" + newLayout(t), "reg.example/app"}); got != 0 {
		t.Errorf("exit code %d, want 0; stderr %q", got, r.stderr.String())
	}
}

func TestDeadline(t *testing.T) {
	dir := "oci:" + newLayout(t)
	for _, push := range []pushFunc{
		untilStopped,
		func(ctx context.Context, _ pusher.Options, _ name.Reference, _ remote.Taggable) (*pusher.Report, error) {
			<-ctx.Done()
			return half(), ctx.Err() // without the cause
		},
	} {
		r := newRig(t, push)
		synctest.Test(t, func(t *testing.T) {
			r.app.signals = nil
			began := time.Now()
			if got := r.main([]string{"--deadline=5s", dir, "reg.example/app"}); got != exitInterrupted {
				t.Errorf("exit code %d, want 3", got)
			}
			if took := time.Since(began); took != 5*time.Second {
				t.Errorf("took %v, want 5s", took)
			}
		})
		if n := strings.Count(r.stderr.String(), "--deadline 5s reached"); n != 1 {
			t.Errorf("stderr %q; want the deadline in it, once", r.stderr.String())
		}
	}
}

func TestQuietAndVerbose(t *testing.T) {
	dir := "oci:" + newLayout(t)
	push := func(_ context.Context, o pusher.Options, _ name.Reference, _ remote.Taggable) (*pusher.Report, error) {
		o.OnEvent(resume.Event{Kind: resume.Committed, Digest: digestA, Size: 1})
		if o.Logger != nil {
			o.Logger.WithField("evil", "a\x1b[2Jb").Debug("a\nline\x1b[31m")
		}
		return half(), resume.ErrRefused
	}
	r := newRig(t, push)
	r.main([]string{"-q", dir, "reg.example/app"})
	if got := r.stderr.String(); strings.Contains(got, "committed") || !strings.Contains(got, "refused") {
		t.Errorf("quiet: stderr %q", got)
	}
	r = newRig(t, push)
	r.main([]string{"-v", dir, "reg.example/app"})
	if got := r.stderr.String(); !strings.Contains(got, "committed") || !strings.Contains(got, "level=debug") || strings.Contains(got, "\x1b") {
		t.Errorf("verbose: stderr %q", got)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"push", "-h"}} {
		r := newRig(t, nil)
		if code := r.main(args); code != 0 || r.stderr.String() != "" {
			t.Errorf("%v: exit code %d, stderr %q", args, code, r.stderr.String())
		}
		help := r.stdout.String()
		if lines := strings.Count(help, "\n"); lines > 110 {
			t.Errorf("%v: %d lines are too many", args, lines)
		}
		for line := range strings.Lines(help) {
			if len(line) > 81 {
				t.Errorf("%v: too wide: %q", args, line)
			}
		}
		var o options
		for _, g := range o.pushFlags() {
			g.VisitAll(func(f *pflag.Flag) {
				if !strings.Contains(help, "--"+f.Name) {
					t.Errorf("%v: no --%s", args, f.Name)
				}
			})
		}
	}
	r := newRig(t, nil)
	if code := r.main([]string{"completion", "bash"}); code != 0 || !strings.Contains(r.stdout.String(), "rpush") {
		t.Errorf("completion: exit code %d", code)
	}
	r = newRig(t, nil)
	if code := r.main([]string{"completion", "--help"}); code != 0 || strings.Contains(r.stdout.String(), "--parallel") {
		t.Errorf("completion --help: exit code %d, %q", code, r.stdout.String())
	}
	for _, arg := range []string{"version", "--version"} {
		r = newRig(t, nil)
		if code := r.main([]string{arg}); code != 0 || r.stdout.String() != versionLine()+"\n" {
			t.Errorf("%s: exit code %d, %q", arg, code, r.stdout.String())
		}
	}
}

// What has to be left behind ends as what was asked for, said once.
func TestLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		ctx, cancel := (&options{limit: time.Second}).bound(t.Context())
		defer cancel()
		_, err := inTime(ctx, func() (*struct{}, error) { <-hang; return nil, nil })
		if err == nil || !errors.As(err, new(*deadlineError)) {
			t.Errorf("got %v, want the deadline", err)
		}
	})
}

// The least variant of an architecture is mostly left out.
func TestLeastVariant(t *testing.T) {
	for given, want := range map[string]string{
		"linux/arm64/v8": "linux/arm64", "linux/amd64/v1": "linux/amd64", "linux/arm/v7": "linux/arm/v7", "linux/amd64/v2": "linux/amd64/v2",
	} {
		i := imageFlags{noContentTrust: true, platforms: []string{given}}
		if err := i.check(); err != nil || len(i.picks) != 1 || i.picks[0].String() != want {
			t.Errorf("%s: %v, %v; want %s", given, i.picks, err, want)
		}
	}
}
