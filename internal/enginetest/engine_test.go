// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

const mib = 1 << 20

var rpush binary.Rpush

func TestMain(m *testing.M) { os.Exit(binary.Main(m, &rpush)) }

// lab is an engine, a registry and a user without a cache.
type lab struct {
	t      *testing.T
	engine docker.Engine
	reg    *realreg.Registry
	tap    *docker.Tap
	env    []string
	whole  bool // the engine keeps images in containerd, with their manifests
}

// start skips the test, or fails it where all is required, without an engine.
func start(t *testing.T, o realreg.Options) *lab {
	t.Helper()
	e := docker.Engine{Command: realreg.Tool(t, "docker")}
	if err := e.Answers(t.Context()); err != nil {
		require.Missing(t, "no Docker engine answers: %v", err)
	}
	return newLab(t, e, docker.Socket(), realreg.Start(t, o))
}

func newLab(t *testing.T, e docker.Engine, socket string, reg *realreg.Registry) *lab {
	t.Helper()
	tap, err := docker.NewTap(t.TempDir(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tap.Close)
	l := &lab{t: t, engine: e, reg: reg, tap: tap}
	l.whole = strings.Contains(l.docker("info", "-f", "{{.DriverStatus}}"), "io.containerd.snapshotter.v1")
	l.fresh()
	return l
}

// fresh forgets what rpush knows.
func (l *lab) fresh() { l.env = binary.Environ(l.t, "DOCKER_HOST="+l.tap.Host) }

// as is the lab of a part of the test, and of a user with this environment who
// knows nothing.
func (l *lab) as(t *testing.T, env ...string) *lab {
	t.Helper()
	return &lab{t: t, engine: l.engine, reg: l.reg, tap: l.tap, env: binary.Environ(t, env...)}
}

func (l *lab) ref(name string) string { return l.reg.Addr + "/" + name }

func (l *lab) docker(args ...string) string {
	l.t.Helper()
	out, err := l.engine.Run(l.t.Context(), args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// gone removes an image, now and at the end of the test.
func (l *lab) gone(ref string) {
	l.t.Helper()
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// By its ID, or it stays under the digests that it was pushed as.
		if id, err := l.engine.Run(ctx, "inspect", "-f", "{{.Id}}", ref); err == nil {
			l.engine.Run(ctx, "rmi", "-f", id)
		}
	})
}

func (l *lab) build(ref, base string, seed uint64, layers ...docker.Layer) {
	l.t.Helper()
	l.gone(ref)
	if err := l.engine.Build(l.t.Context(), l.t.TempDir(), ref, base, seed, layers...); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) id(ref string) string {
	l.t.Helper()
	return l.docker("inspect", "-f", "{{.Id}}", ref)
}

// report is what --output json says of a push beside what package binary reads.
type report struct {
	Digest    string
	MediaType string
	Sent      int64
	Size      int64
	Resumes   int
	Blobs     []struct {
		Digest, MediaType, State, MountFrom string
		Size, Sent                          int64
	}
	Engine struct{ Exports, Compressed, Read, Spooled, Reused int64 } `json:"layers"`
}

func (r report) count(state string) (n int) {
	for _, b := range r.Blobs {
		if b.State == state {
			n++
		}
	}
	return n
}

// command is rpush, which has a minute.
func (l *lab) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	l.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, string(rpush), args...)
	cmd.Env = l.env
	return cmd
}

// run calls rpush, and returns its report, exit code and stderr.
func (l *lab) run(args ...string) (r report, exit int, stderr string) {
	l.t.Helper()
	cmd := l.command(append([]string{"--output", "json"}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, _ := cmd.Output()
	var doc struct{ Pushes []report }
	if err := json.Unmarshal(out, &doc); err != nil {
		l.t.Fatalf("rpush %v: exit %d, %v\n%s\n%s", args, cmd.ProcessState.ExitCode(), err, out, errs.String())
	}
	if len(doc.Pushes) > 0 {
		r = doc.Pushes[0]
	}
	return r, cmd.ProcessState.ExitCode(), errs.String()
}

func (l *lab) push(args ...string) report {
	l.t.Helper()
	r, exit, stderr := l.run(args...)
	if exit != 0 {
		l.t.Fatalf("rpush %v: exit %d\n%s", args, exit, stderr)
	}
	return r
}

type manifest struct {
	MediaType string
	Config    struct{ Digest, MediaType string }
	Layers    []struct{ Digest, MediaType string }
}

// manifest is what an independent client gets.
func (l *lab) manifest(ref string) (m manifest) {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), realreg.Tool(l.t, "crane"), "manifest", ref).Output()
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return m
}

// arrived checks an image at the registry with crane: what the engine calls its
// ID, and every layer against its diffID.
func (l *lab) arrived(ref, id string) {
	l.t.Helper()
	got := l.manifest(ref).Config.Digest
	if l.whole {
		out, err := exec.CommandContext(l.t.Context(), realreg.Tool(l.t, "crane"), "digest", ref).Output()
		if err != nil {
			l.t.Fatal(err)
		}
		got = strings.TrimSpace(string(out))
	}
	if got != id {
		l.t.Errorf("the image at the registry is %s, want %s", got, id)
	}
	l.valid(ref)
}

func (l *lab) valid(ref string) {
	l.t.Helper()
	if out, err := exec.CommandContext(l.t.Context(), realreg.Tool(l.t, "crane"), "validate", "--remote", ref).CombinedOutput(); err != nil {
		l.t.Errorf("crane validate: %v\n%s", err, out)
	}
}

func TestPushThenAgainThenRun(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.gone(ref)
	dir := t.TempDir()
	program(t, filepath.Join(dir, "program"))
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), []byte(strings.Repeat(fmt.Sprint("text", i), 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := "FROM scratch\nCOPY program /program\nCOPY f0 /a\nCOPY f1 /b\nCOPY f2 /c\nENV A=<&>\nENTRYPOINT [\"/program\"]\n"
	if err := l.engine.BuildFile(t.Context(), dir, ref, file); err != nil {
		t.Fatal(err)
	}
	id := l.id(ref)

	first := l.push(ref)
	if first.Engine.Exports != 1 || l.tap.Saves.Load() != 1 || first.count("uploaded") != len(first.Blobs) {
		t.Errorf("the first push: %+v, %d saves", first, l.tap.Saves.Load())
	}
	want := "application/vnd.docker.distribution.manifest.v2+json"
	if l.whole {
		want = "application/vnd.oci.image.manifest.v1+json" // as the engine built it
	}
	if first.MediaType != want {
		t.Errorf("the manifest is %s, want %s", first.MediaType, want)
	}
	l.arrived(ref, id)
	at := l.reg.Addr + "/team/app@" + first.Digest
	if got := l.docker("inspect", "-f", "{{.RepoDigests}}", ref); !strings.Contains(got, at) {
		t.Errorf("the engine knows %s, want %s", got, at)
	}

	second := l.push(ref)
	further := l.ref("team/app:2")
	l.gone(further)
	l.docker("tag", ref, further)
	third := l.push(further)
	for _, r := range []report{second, third} {
		if r.Sent != 0 || r.Engine.Exports != 0 || r.Engine.Compressed != 0 || r.Digest != first.Digest {
			t.Errorf("a further push: %+v", r)
		}
	}
	if n := l.tap.Saves.Load(); n != 1 {
		t.Errorf("the engine saved %d times, want once", n)
	}
	// Without a cache, and without the target's tag, the digest that the engine
	// learnt says it all; the config, which is no layer, is sent.
	l.fresh()
	other := l.ref("other/app:1")
	l.gone(other)
	l.docker("tag", ref, other)
	r := l.push(other)
	if l.whole { // what the image is made of is in what is exported
		r.Engine.Exports--
	}
	if r.Engine.Exports != 0 || r.count("mounted") < len(r.Blobs)-1 {
		t.Errorf("a push to another repository: %+v", r)
	}

	for _, r := range []string{ref, further, other} {
		l.docker("rmi", "-f", r)
	}
	l.docker("pull", "-q", at)
	l.gone(at)
	if got := l.docker("run", "--rm", "--network", "none", at); got != "it runs" {
		t.Errorf("the image that was pulled says %q", got)
	}
	if got := l.id(at); got != id {
		t.Errorf("the image that was pulled is %s, want %s", got, id)
	}
}

// program builds one that needs nothing around it.
func program(t *testing.T, to string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	const text = "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"it runs\") }\n"
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", to, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// An image FROM a base that was pulled from the same registry sends its own
// layers only, even if nothing is known here.
func TestBaseIsNeitherSentNorCompressed(t *testing.T) {
	l := start(t, realreg.Options{})
	base := l.ref("base/image:1")
	l.build(base, "scratch", 11, docker.Layer{Random: 3 * mib}, docker.Layer{Text: 3 * mib})
	l.docker("push", "-q", base) // compressed by the engine, not by rpush
	l.docker("rmi", "-f", base)
	l.docker("pull", "-q", base)
	for _, other := range []string{"a-base.rpush.example/x:1", "base.rpush.example/x:1", "z-base.rpush.example/x:1"} {
		l.docker("tag", base, other)
		l.gone(other)
	}
	var of []string
	for _, layer := range l.manifest(base).Layers {
		of = append(of, layer.Digest)
	}

	app := l.ref("team/app:1")
	l.build(app, base, 12, docker.Layer{Random: mib}, docker.Layer{Text: mib})
	dry := l.push("--dry-run", app)
	l.fresh()
	r := l.push(app)
	if dry.Digest != r.Digest || (dry.Engine.Compressed != 2 && !l.whole) {
		t.Errorf("the dry run said %s and compressed %d layers, pushed is %s", dry.Digest, dry.Engine.Compressed, r.Digest)
	}
	for _, b := range dry.Blobs {
		if slices.Contains(of, b.Digest) && (b.State != "pending" || b.MountFrom != "base/image") {
			t.Errorf("the dry run said of a layer of the base: %+v", b)
		}
	}
	for _, b := range r.Blobs {
		if slices.Contains(of, b.Digest) && (b.State != "mounted" || b.Sent != 0) {
			t.Errorf("a layer of the base: %+v", b)
		}
	}
	if l.whole { // it was compressed when it was built
		r.Engine.Compressed += 2
	}
	if r.count("mounted") != 2 || r.Engine.Compressed != 2 || r.Engine.Read > 3*mib {
		t.Errorf("got %+v, want 2 layers mounted and 2 compressed", r)
	}
	l.arrived(app, l.id(app))

	// One layer changes. (Under a tag of its own: an image that loses its tag
	// would stay in the engine, for its digest.)
	changed := l.ref("team/app:2")
	l.build(changed, base, 13, docker.Layer{Random: mib})
	r = l.push(changed)
	if l.whole {
		r.Engine.Compressed++
	}
	if r.count("uploaded") != 2 || r.Engine.Compressed != 1 { // it, and the config
		t.Errorf("after a change: %+v", r)
	}
	l.arrived(changed, l.id(changed))
}

// An engine that has an image notes the digest of any manifest with its config,
// and reads none of its layers. Such a digest is no proof.
func TestDigestThatTheEngineNotedWithoutPulling(t *testing.T) {
	l := start(t, realreg.Options{})
	if l.whole {
		return // containerd's store pulls the layers
	}
	elsewhere := realreg.Start(t, realreg.Options{}).Addr + "/base/image:1"
	l.build(elsewhere, "scratch", 14, docker.Layer{Text: mib})
	l.docker("push", "-q", elsewhere)
	original, err := remote.Image(reference(t, elsewhere))
	if err != nil {
		t.Fatal(err)
	}
	config, err := original.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	base := l.ref("base/image:1")
	l.gone(base)
	if err := remote.Put(reference(t, base), poisoned(t, reference(t, base).Context(), config)); err != nil {
		t.Fatal(err)
	}
	l.docker("pull", "-q", base)
	if got := l.docker("inspect", "-f", "{{.RepoDigests}}", elsewhere); !strings.Contains(got, l.ref("base/image@")) {
		t.Fatalf("the engine noted %s", got)
	}
	app := l.ref("team/app:1")
	l.build(app, elsewhere, 15, docker.Layer{Random: mib})
	for range 2 {
		r := l.push("--no-engine-update", app)
		l.arrived(app, l.id(app))
		if n := r.count("mounted"); n != 0 {
			t.Errorf("%d layers were mounted", n)
		}
	}
}

func reference(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// poisonedImage has the config of one image and a layer of another.
type poisonedImage struct {
	v1.Image
	raw []byte
}

func (p *poisonedImage) RawManifest() ([]byte, error) { return p.raw, nil }

// poisoned uploads the blobs of a poisonedImage.
func poisoned(t *testing.T, repo name.Repository, config []byte) *poisonedImage {
	t.Helper()
	other, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := other.Layers()
	if err != nil {
		t.Fatal(err)
	}
	m, err := other.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m = m.DeepCopy()
	c := static.NewLayer(config, types.DockerConfigJSON)
	if m.Config.Digest, err = c.Digest(); err != nil {
		t.Fatal(err)
	}
	m.Config.Size = int64(len(config))
	for _, l := range append(layers, c) {
		if err := remote.WriteLayer(repo, l); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &poisonedImage{other, raw}
}

// What is at the target's tag, or at --cache-from, is not compressed again.
func TestLearnsFromTags(t *testing.T) {
	l := start(t, realreg.Options{})
	one := l.ref("team/one:1")
	l.build(one, "scratch", 21, docker.Layer{Random: mib}, docker.Layer{Text: mib})
	l.docker("push", "-q", one)
	// The engine forgets where it was.
	l.docker("tag", one, "rpush-test-kept:1")
	l.gone("rpush-test-kept:1")
	l.docker("rmi", one)
	l.docker("tag", "rpush-test-kept:1", one)
	if r := l.push("--no-engine-update", one); r.Sent != 0 || r.Engine.Exports != 0 {
		t.Errorf("the target's tag: %+v", r)
	}
	l.fresh()
	two := l.ref("team/two:1")
	r := l.push("--no-engine-update", "--cache-from", one, "docker-daemon:rpush-test-kept:1", two)
	if r.count("mounted") < 2 || r.Engine.Compressed != 0 {
		t.Errorf("--cache-from: %+v", r)
	}
	l.arrived(two, l.id("rpush-test-kept:1"))
	if n := l.tap.Pulls.Load(); n != 0 {
		t.Errorf("the engine was told %d times, against --no-engine-update", n)
	}
}

func TestCompressions(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 31, docker.Layer{Text: 2 * mib}, docker.Layer{Random: 10})
	if l.whole {
		l.formats(ref)
		return
	}
	const docker2, oci = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json"
	for _, tt := range []struct {
		args            []string
		manifest, layer string
		small           bool
	}{
		{[]string{"--format", "oci"}, oci, "application/vnd.oci.image.layer.v1.tar+gzip", true},
		{[]string{"--compression", "zstd"}, oci, "application/vnd.oci.image.layer.v1.tar+zstd", true},
		{[]string{"--compression", "none"}, docker2, "application/vnd.docker.image.rootfs.diff.tar", false},
		{[]string{"--format", "v2s2"}, docker2, "application/vnd.docker.image.rootfs.diff.tar.gzip", true},
	} {
		r := l.push(append(tt.args, "--no-engine-update", ref)...)
		m := l.manifest(ref)
		if m.MediaType != tt.manifest || m.Layers[0].MediaType != tt.layer || (r.Size < 2*mib) != tt.small {
			t.Errorf("%v: a manifest %s of layers %s, %d bytes", tt.args, m.MediaType, m.Layers[0].MediaType, r.Size)
		}
		if got, want := m.Config.Digest, l.id(ref); got != want {
			t.Errorf("%v: the image is %s, want %s", tt.args, got, want)
		}
		if !strings.Contains(tt.layer, "zstd") && !strings.HasSuffix(tt.layer, ".tar") {
			l.arrived(ref, l.id(ref))
		}
	}
}

// formats writes manifests again, and leaves blobs alone.
func (l *lab) formats(ref string) {
	l.t.Helper()
	l.push(ref)
	want := l.manifest(ref)
	for _, tt := range []struct{ format, manifest, layer string }{
		{"oci", "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"},
		{"v2s2", "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"},
	} {
		if r := l.push("--format", tt.format, ref); r.Sent != 0 {
			l.t.Errorf("--format %s: %+v", tt.format, r)
		}
		got := l.manifest(ref)
		for i, layer := range got.Layers {
			if layer.MediaType != tt.layer || layer.Digest != want.Layers[i].Digest {
				l.t.Errorf("--format %s: layer %d is %+v, want %s of type %s", tt.format, i, layer, want.Layers[i].Digest, tt.layer)
			}
		}
		if got.MediaType != tt.manifest || got.Config.Digest != want.Config.Digest {
			l.t.Errorf("--format %s: %+v, want the config %s", tt.format, got, want.Config.Digest)
		}
		l.valid(ref)
	}
	if _, exit, stderr := l.text("--compression", "zstd", ref); exit != 1 || !strings.Contains(stderr, "--compression has no effect") {
		l.t.Errorf("--compression: exit %d\n%s", exit, stderr)
	}
}

func TestThroughResets(t *testing.T) {
	l := start(t, realreg.Options{})
	p := binary.Through(t, l.reg.Addr, proxy.Options{Plan: proxy.Every(2*mib, proxy.Fault{Kind: proxy.ResetClient})})
	ref := p.Addr() + "/team/app:1"
	l.build(ref, "scratch", 41, docker.Layer{Random: 12 * mib}, docker.Layer{Text: 12 * mib})
	r := l.push(ref)
	s := p.Stats()
	if s.Faults < 5 || r.Resumes == 0 || float64(s.Up) > 1.05*float64(r.Size) {
		t.Errorf("%d resets, %d resumes, %d bytes forwarded of %d", s.Faults, r.Resumes, s.Up, r.Size)
	}
	l.arrived(l.ref("team/app:1"), l.id(ref))
	if left := spooled(t, l); len(left) > 0 {
		t.Errorf("the spool keeps %v", left)
	}
}

// spooled are the files that wait for the registry.
func spooled(t *testing.T, l *lab) (names []string) {
	t.Helper()
	for _, kv := range l.env {
		if home, ok := strings.CutPrefix(kv, "HOME="); ok {
			all, _ := os.ReadDir(filepath.Join(home, ".cache", "rpush", "rpush-spool"))
			for _, e := range all {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// A killed push leaves its layers in the spool; the next one sends what is
// missing, without making it again.
func TestKilled(t *testing.T) {
	l := start(t, realreg.Options{})
	p := binary.Through(t, l.reg.Addr, proxy.Options{Rate: 8 * mib, Buffer: 64 << 10})
	ref := p.Addr() + "/team/app:1"
	layers := make([]docker.Layer, 14)
	for i := range layers {
		layers[i].Random = mib
	}
	l.build(ref, "scratch", 51, layers...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, string(rpush), "--parallel", "1", ref)
	cmd.Env = l.env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for p.Stats().Up < 6*mib && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	cmd.Process.Kill()
	cmd.Wait()
	waiting := spooled(t, l)
	r := l.push("--parallel", "1", ref)
	up := p.Stats().Up
	t.Logf("%d files waited, %d bytes taken from there, forwarded %.3f x the image", len(waiting), r.Engine.Reused, float64(up)/float64(r.Size))
	if float64(up) > 1.1*float64(r.Size) || r.Engine.Reused == 0 || len(waiting) == 0 {
		t.Errorf("forwarded %d of %d bytes, %d reused, %d files waited", up, r.Size, r.Engine.Reused, len(waiting))
	}
	if left := spooled(t, l); len(left) > 0 {
		t.Errorf("the spool keeps %v", left)
	}
	l.arrived(l.ref("team/app:1"), l.id(ref))
}

// Where no disk is for the spool, each try makes the layer again.
func TestWithoutSpool(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		require.Missing(t, "no /dev/shm: %v", err)
	}
	l := start(t, realreg.Options{})
	p := binary.Through(t, l.reg.Addr, proxy.Options{Plan: proxy.First(3, proxy.Every(mib, proxy.Fault{Kind: proxy.ResetClient}))})
	ref := p.Addr() + "/team/app:1"
	l.build(ref, "scratch", 61, docker.Layer{Random: 3 * mib}, docker.Layer{Text: 3 * mib})
	dir := filepath.Join("/dev/shm", fmt.Sprint("rpush-test-", os.Getpid()))
	defer os.RemoveAll(dir)
	r, exit, stderr := l.run("--spool-dir", dir, ref)
	if exit != 0 || !strings.Contains(stderr, "in memory, not on a disk") {
		t.Fatalf("exit %d\n%s", exit, stderr)
	}
	if r.Engine.Exports < 3 || r.Engine.Spooled != 0 {
		t.Errorf("got %+v, want an export for each try", r.Engine)
	}
	l.arrived(l.ref("team/app:1"), l.id(ref))
}

// The engine takes 127.0.0.0/8 without a certificate that anyone vouches for;
// flags say otherwise.
func TestEngineSettings(t *testing.T) {
	l := start(t, realreg.Options{TLS: true})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 71, docker.Layer{Random: 1000})
	l.push(ref)
	_, exit, stderr := l.run("--tls-verify", "--retry-for", "0", ref)
	if exit != 1 || !strings.Contains(stderr, "certificate") {
		t.Errorf("--tls-verify: exit %d\n%s", exit, stderr)
	}
	l.push("--ca-file", l.reg.CAFile, ref)
}

// The engine is found as docker finds it: by a context, and over ssh, where ssh
// runs docker's own dial-stdio at the other end.
func TestContextsAndSSH(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 81, docker.Layer{Random: 1000})
	bin, config := t.TempDir(), t.TempDir()
	ssh := "#!/bin/sh\nDOCKER_HOST=" + docker.Host() + " exec " + l.engine.Command + " system dial-stdio\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(ssh), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	l.docker("--config", config, "context", "create", "lab", "--docker", "host="+l.tap.Host)
	for _, tt := range []struct {
		name string
		env  []string
	}{
		{"DOCKER_CONTEXT", []string{"DOCKER_CONFIG=" + config, "DOCKER_CONTEXT=lab"}},
		{"ssh", []string{"DOCKER_HOST=ssh://user@host.example", "PATH=" + bin + ":" + os.Getenv("PATH")}},
	} {
		l.env = append([]string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}, tt.env...)
		saves := l.tap.Saves.Load()
		r := l.push("--format", "oci", ref)
		if got, want := l.manifest(ref).Config.Digest, l.id(ref); got != want && !l.whole || r.Digest == "" {
			t.Errorf("%s: the image is %s, want %s", tt.name, got, want)
		}
		if over := l.tap.Saves.Load() > saves; over != (tt.name == "DOCKER_CONTEXT") && r.Engine.Exports > 0 {
			t.Errorf("%s: read through the socket of the context: %t", tt.name, over)
		}
	}
	_, exit, stderr := l.run("--docker-context", "none", ref)
	if exit != 1 || !strings.Contains(stderr, `docker context "none"`) {
		t.Errorf("a context that does not exist: exit %d\n%s", exit, stderr)
	}
}

func TestWhatCannotBePushed(t *testing.T) {
	l := start(t, realreg.Options{})
	for _, tt := range []struct {
		version, want, hint string
		args                []string
	}{
		{"", "has no image", "docker images lists", []string{l.ref("team/none:1")}},
		{"1.39", "is too old: its API is 1.39, at least 1.40", "use docker save IMAGE | rpush - REF", []string{l.ref("team/none:1")}},
		{"", "has no image nobody/has:this", "docker images", []string{"docker-daemon:nobody/has:this", l.ref("a/b:1")}},
	} {
		l.tap.Version = tt.version
		_, exit, stderr := l.run(tt.args...)
		if exit != 1 || !strings.Contains(stderr, tt.want) || !strings.Contains(stderr, "hint: "+tt.hint) {
			t.Errorf("%v: exit %d\n%s\nwant %q and a hint %q", tt.args, exit, stderr, tt.want, tt.hint)
		}
	}
	resp, err := http.Get(l.reg.URL() + "/v2/_catalog")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); strings.Contains(string(b), "team") {
		t.Errorf("the registry has %s", b)
	}
}
