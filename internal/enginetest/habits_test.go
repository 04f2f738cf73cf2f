// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// text calls rpush without --output json.
func (l *lab) text(args ...string) (stdout string, exit int, stderr string) {
	l.t.Helper()
	r := l.command(args...)
	var out, errs strings.Builder
	r.Stdout, r.Stderr = &out, &errs
	r.Run()
	return out.String(), r.ProcessState.ExitCode(), errs.String()
}

func TestDryRunSendsNothing(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 71, docker.Layer{Text: mib}, docker.Layer{Random: mib})
	dry := l.push("--dry-run", ref)
	if dry.Sent != 0 || dry.count("pending") != 3 || l.tap.Pulls.Load() != 0 {
		t.Errorf("the dry run: %+v, the engine was told %d times", dry, l.tap.Pulls.Load())
	}
	if names := spooled(t, l); len(names) != 0 {
		t.Errorf("the dry run left %q in the spool", names)
	}
	if _, err := l.engine.Run(t.Context(), "pull", "-q", ref); err == nil {
		t.Error("the dry run published")
	}
	l.fresh()
	pushed := l.push(ref)
	if pushed.Digest != dry.Digest || pushed.Size != dry.Size {
		t.Errorf("pushed %s of %d bytes, the dry run said %s of %d", pushed.Digest, pushed.Size, dry.Digest, dry.Size)
	}
	l.arrived(ref, l.id(ref))
	l.push("--no-engine-update", ref)
	there := 3
	if l.whole {
		there = 0 // the manifest is, and stands for all of it
	}
	if again := l.push("--dry-run", ref); again.count("existed") != there || again.count("pending") != 0 || again.Engine.Exports != 0 {
		t.Errorf("the dry run of what is there: %+v", again)
	}
}

func TestSeveralNames(t *testing.T) {
	l := start(t, realreg.Options{})
	ref, other := l.ref("team/app:1"), l.ref("mirror/app:7")
	l.build(ref, "scratch", 72, docker.Layer{Text: mib}, docker.Layer{Random: mib})
	file := filepath.Join(t.TempDir(), "digest")
	out, exit, stderr := l.text("-t", "2", "-t", other, "--digest-file", file, ref)
	if exit != 0 {
		t.Fatalf("exit %d\n%s", exit, stderr)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%[2]s@%[1]s\n%[3]s@%[1]s\n%[4]s@%[1]s\n", raw, ref, l.ref("team/app:2"), other)
	if out != want {
		t.Errorf("stdout is %q, want %q", out, want)
	}
	for _, r := range []string{ref, l.ref("team/app:2"), other} {
		l.arrived(r, l.id(ref))
	}
	// The second repository takes the layers from the first.
	third := l.ref("third/app:1")
	l.fresh()
	if r := l.push("--mount-from", l.ref("team/app"), "docker-daemon:"+ref, third); r.Sent != 0 || r.count("uploaded") != 0 {
		t.Errorf("--mount-from: %+v", r)
	}
}

func TestAllTags(t *testing.T) {
	l := start(t, realreg.Options{})
	one, two := l.ref("team/app:one"), l.ref("team/app:two")
	l.build(one, "scratch", 73, docker.Layer{Text: mib})
	l.build(two, one, 74, docker.Layer{Random: mib})
	out, exit, stderr := l.text("-a", l.ref("team/app"))
	if exit != 0 || strings.Count(out, "\n") != 2 || !strings.HasPrefix(out, one+"@") {
		t.Fatalf("exit %d, stdout %q\n%s", exit, out, stderr)
	}
	l.arrived(one, l.id(one))
	l.arrived(two, l.id(two))
	out, exit, stderr = l.text("--all-tags", "docker-daemon:"+l.ref("team/app"), l.ref("copy/app"))
	if exit != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("exit %d, stdout %q\n%s", exit, out, stderr)
	}
	l.arrived(l.ref("copy/app:two"), l.id(two))
	if _, exit, stderr = l.text("-a", l.ref("nobody/here")); exit != 1 || !strings.Contains(stderr, "has no image") {
		t.Errorf("no tag: exit %d\n%s", exit, stderr)
	}
	if _, exit, stderr = l.text("-a", "docker-daemon:"+one, l.ref("copy/app")); exit != 2 {
		t.Errorf("one image is picked: exit %d\n%s", exit, stderr)
	}
}

func TestNoClobberOfTheEngine(t *testing.T) {
	l := start(t, realreg.Options{})
	one, two := l.ref("team/app:one"), l.ref("team/app:two")
	l.build(one, "scratch", 75, docker.Layer{Text: mib})
	l.build(two, "scratch", 76, docker.Layer{Text: mib})
	l.push(one)
	saves := l.tap.Saves.Load()
	if _, exit, stderr := l.text("--no-clobber", "docker-daemon:"+two, one); exit != 1 || !strings.Contains(stderr, "exists already") {
		t.Errorf("another image: exit %d\n%s", exit, stderr)
	}
	if _, exit, stderr := l.text("--no-clobber", "-t", "one", "docker-daemon:"+two, two); exit != 1 || !strings.Contains(stderr, one+" exists already") {
		t.Errorf("another image under a further tag: exit %d\n%s", exit, stderr)
	}
	if l.tap.Saves.Load() != saves && !l.whole { // containerd's may be an index, of which not all is there
		t.Error("the image was read though its tag is taken")
	}
	l.push("--no-clobber", one)
	l.arrived(one, l.id(one))
}

// The digest does not depend on how the image came out of the engine, nor does
// what is known: nothing is compressed or sent twice.
func TestSameFromAnArchive(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 78, docker.Layer{Text: 3 * mib}, docker.Layer{Random: mib})
	want := l.push(ref)
	file := filepath.Join(t.TempDir(), "saved.tar")
	l.docker("save", "-o", file, ref)
	check := func(what string, got report) {
		t.Helper()
		if got.Digest != want.Digest || got.Sent != 0 || got.Engine.Compressed != 0 {
			t.Errorf("%s it is %s, %d bytes are sent and %d layers compressed; from the engine %s", what, got.Digest, got.Sent, got.Engine.Compressed, want.Digest)
		}
	}
	check("from an archive", l.push("docker-archive:"+file, ref))
	if _, exit, stderr := l.text("--referrers", "docker-archive:"+file, ref); !l.whole && (exit != 2 || !strings.Contains(stderr, "--referrers has no effect")) {
		t.Errorf("--referrers: exit %d\n%s", exit, stderr)
	}
	if out, exit, stderr := l.text("--dry-run", "-t", l.ref("other/app:2"), "docker-archive:"+file, ref); exit != 0 ||
		!strings.HasPrefix(out, ref+"\n") || !strings.Contains(out, "\n"+l.ref("other/app:2")+"\n") {
		t.Errorf("a dry run for two repositories: exit %d, stdout %q\n%s", exit, out, stderr)
	}
	// What is known is only where the image was pushed to.
	l.fresh()
	check("without a cache", l.push("docker-archive:"+file, ref))
	if l.whole {
		return // its blobs go out as they are
	}
	l.fresh()
	other := l.push("--cache-from", ref, file, l.ref("other/app:1"))
	if other.Digest != want.Digest || other.count("mounted") != 2 || other.Engine.Compressed != 0 {
		t.Errorf("--cache-from: %+v", other)
	}
	// Nothing is known: the layers go out while the next one is compressed.
	l.fresh()
	zstd := l.push("--compression", "zstd", "docker-archive:"+file, l.ref("fourth/app:1"))
	if zstd.Digest == want.Digest || zstd.Engine.Compressed != 2 || zstd.MediaType != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("with zstd: %+v", zstd)
	}
}

// What a flag cannot do for the engine is said.
func TestFlagsOfOtherSources(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 77, docker.Layer{Text: 10})
	preserved, preserving := 1, "keeps no manifest"
	if l.whole {
		preserved, preserving = 0, "pushed "+ref
	}
	for _, tt := range []struct {
		args []string
		exit int
		want string
	}{
		{[]string{"--platform", "linux/s390x"}, 1, "not for linux/s390x but for linux/" + runtime.GOARCH},
		{[]string{"--platform", "linux/" + runtime.GOARCH}, 0, "pushed " + ref},
		{[]string{"--platform", "linux/amd64,linux/arm64"}, 2, "--platform picks one platform"},
		{[]string{"--referrers"}, 2, "--referrers has no effect"},
		{[]string{"--digest-tags"}, 2, "--digest-tags has no effect"},
		{[]string{"--allow-nondistributable-artifacts"}, 2, "has no effect"},
		{[]string{"--src-creds", "a:b"}, 2, "--src-creds applies to the registry"},
		{[]string{"--preserve-digests"}, preserved, preserving},
	} {
		if _, exit, stderr := l.text(append(tt.args, ref)...); exit != tt.exit || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit %d, want %d\n%s\nwant %q", tt.args, exit, tt.exit, stderr, tt.want)
		}
	}
}
