// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// crane calls it and returns what it printed.
func (l *lab) crane(args ...string) string {
	l.t.Helper()
	var errs strings.Builder
	cmd := exec.CommandContext(l.t.Context(), realreg.Tool(l.t, "crane"), args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("crane %v: %v\n%s", args, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// index publishes one of two platforms, and returns its digest.
func (l *lab) index(ref string) string {
	l.t.Helper()
	dir := l.t.TempDir()
	args := []string{"index", "append", "-t", ref}
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.WriteFile(filepath.Join(dir, arch), []byte(arch), 0o600); err != nil {
			l.t.Fatal(err)
		}
		tar := filepath.Join(dir, arch+".tar")
		if out, err := exec.CommandContext(l.t.Context(), realreg.Tool(l.t, "tar"), "-C", dir, "-cf", tar, arch).CombinedOutput(); err != nil {
			l.t.Fatalf("tar: %v\n%s", err, out)
		}
		part := l.ref("parts/" + arch + ":1")
		l.crane("append", "--oci-empty-base", "-f", tar, "-t", part)
		l.crane("mutate", "--set-platform", "linux/"+arch, "-t", part, part)
		args = append(args, "-m", part)
	}
	l.crane(args...)
	return l.crane("digest", ref)
}

// An index is pushed with the platforms that are there: all, with its digest,
// or with a warning the only one, as docker push has it. An engine with a store of
// its own has one platform and no index.
func TestIndexes(t *testing.T) {
	l := start(t, realreg.Options{})
	if !l.whole {
		t.Skip("this engine keeps no indexes; make engine29 runs one that does")
	}
	from := l.ref("from/app:1")
	whole := l.index(from)
	l.docker("pull", "-q", "--platform", "linux/amd64", from)
	l.gone(from)
	theirs, ours := l.ref("theirs/app:1"), l.ref("ours/app:1")
	for _, ref := range []string{theirs, ours} {
		l.docker("tag", from, ref)
		l.gone(ref)
	}
	l.docker("push", "-q", theirs)
	out, exit, stderr := l.text(ours)
	one := l.crane("digest", theirs)
	if exit != 0 || !strings.Contains(stderr, "not all platforms of "+whole+" are here: only linux/amd64 is pushed") || !strings.HasSuffix(strings.TrimSpace(out), one) {
		t.Errorf("one of two platforms: exit %d, %s, docker pushes %s\n%s", exit, out, one, stderr)
	}
	l.valid(ours)
	if r := l.push(ours); r.Sent != 0 || r.Digest != one {
		t.Errorf("again: %+v", r)
	}

	l.docker("pull", "-q", "--platform", "linux/arm64", from)
	if r := l.push("--preserve-digests", ours); r.Digest != whole || l.crane("digest", ours) != whole {
		t.Errorf("two of two platforms are %s, want %s", r.Digest, whole)
	}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		if out, err := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "validate", "--platform", platform, "--remote", ours).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", platform, err, out)
		}
	}
	if r := l.push(ours); r.Sent != 0 || r.Engine.Exports != 0 || r.Digest != whole {
		t.Errorf("what is there: %+v", r)
	}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		l.docker("push", "-q", "--platform", platform, theirs)
		want := l.crane("digest", theirs)
		l.crane("delete", l.ref("ours/app")+"@"+want)
		if r := l.push("--platform", platform, ours); r.Digest != want || r.Engine.Exports != 1 {
			t.Errorf("%s: %+v, docker pushes %s", platform, r, want)
		}
		l.valid(ours)
		if r := l.push("--platform", platform, ours); r.Digest != want || r.Engine.Exports != 0 {
			t.Errorf("%s again: %+v", platform, r)
		}
	}
	if r := l.push("--format", "v2s2", ours); r.MediaType != "application/vnd.docker.distribution.manifest.list.v2+json" {
		t.Errorf("--format v2s2: %+v", r)
	}
	l.docker("rmi", "-f", from, theirs, ours)
	l.docker("pull", "-q", "--platform", "linux/arm64", l.ref("ours/app")+"@"+whole)
	l.gone(l.ref("ours/app") + "@" + whole)
}

// A manifest whose blobs a clean-up took away is no reason to send nothing.
func TestManifestWithoutBlobs(t *testing.T) {
	l := start(t, realreg.Options{})
	if !l.whole {
		t.Skip("this engine keeps no manifests; make engine29 runs one that does")
	}
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 91, docker.Layer{Random: mib}, docker.Layer{Text: mib})
	l.push(ref)
	layer := l.manifest(ref).Layers[1].Digest
	v2 := filepath.Join(l.reg.Root, "docker", "registry", "v2")
	hex := strings.TrimPrefix(layer, "sha256:")
	for _, gone := range []string{
		filepath.Join(v2, "repositories", "team", "app", "_layers", "sha256", hex), filepath.Join(v2, "blobs", "sha256", hex[:2], hex),
	} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	if r := l.push(ref); r.count("uploaded") != 1 {
		t.Errorf("after a layer was lost: %+v", r)
	}
	l.crane("validate", "--remote", ref)
}
