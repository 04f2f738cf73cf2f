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

// Podman's socket is as good as docker's, and so is what it saves.
func TestPodman(t *testing.T) {
	if !rpush.Apart(t, "ip", "podman", "docker", "registry", "crane") {
		return
	}
	if out, err := exec.CommandContext(t.Context(), realreg.Tool(t, "ip"), "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	reg := realreg.Start(t, realreg.Options{})
	stranger := realreg.Start(t, realreg.Options{})
	p := docker.StartPodman(t, reg.Addr)
	l := newLab(t, p.Engine, p.Socket, reg)

	one, two := l.ref("team/app:one"), l.ref("team/app:two")
	l.build(one, "scratch", 121, docker.Layer{Text: mib}, docker.Layer{Random: mib})
	id := l.id(one)
	l.docker("tag", one, two)
	first := l.push(one)
	if first.Engine.Exports != 1 || l.tap.Saves.Load() != 1 || first.count("uploaded") != len(first.Blobs) {
		t.Errorf("the first push: %+v", first)
	}
	l.arrived(one, id)
	if got := l.docker("inspect", "-f", "{{.RepoDigests}}", one); !strings.Contains(got, l.ref("team/app")+"@"+first.Digest) {
		t.Errorf("podman did not note the digest: %s", got)
	}
	if r := l.push(one); r.Sent != 0 || r.Engine.Exports != 0 || r.Digest != first.Digest {
		t.Errorf("the second push: %+v", r)
	}
	out, exit, stderr := l.text("-a", l.ref("team/app"))
	if exit != 0 || strings.Count(out, "\n") != 2 || !strings.HasPrefix(out, one+"@") {
		t.Errorf("-a: exit %d, stdout %q\n%s", exit, out, stderr)
	}
	l.arrived(two, id)
	if n := l.tap.Saves.Load(); n != 1 {
		t.Errorf("podman saved %d times, want once", n)
	}

	// Podman speaks TLS to this one, and is told so nowhere.
	ref := stranger.Addr + "/team/app:1"
	_, exit, stderr = l.text("docker-daemon:"+one, ref)
	if exit != 0 || !strings.Contains(stderr, "warning: the image is pushed, but the engine did not note its digest") {
		t.Errorf("to a registry that podman cannot speak to: exit %d\n%s", exit, stderr)
	}
	l.arrived(ref, id)

	// What podman itself builds is OCI, and keeps its ID in archives of both kinds.
	native := l.ref("native/app:1")
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": strings.Repeat("text", 1000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Podman(t.Context(), "build", "-q", "-t", native, dir); err != nil {
		t.Fatal(err)
	}
	id = l.id(native)
	l.push("--no-engine-update", native)
	l.arrived(native, id)
	for _, format := range []string{"oci-archive", "docker-archive"} {
		ref := l.ref(format + "/app:1")
		cmd := l.command("-", ref)
		if err := p.Pipe(t.Context(), cmd, "save", "-q", "--format", format, native); err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		l.arrived(ref, id)
	}
}
