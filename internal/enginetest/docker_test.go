// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// asDocker makes rpush the first docker in the PATH of a shell.
func (l *lab) asDocker() (run func(command string) (stdout string, exit int, stderr string)) {
	l.t.Helper()
	dir := l.t.TempDir()
	if err := os.Symlink(string(rpush), filepath.Join(dir, "docker")); err != nil {
		l.t.Fatal(err)
	}
	config := l.t.TempDir()
	plugins := filepath.Join(config, "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Symlink(string(rpush), filepath.Join(plugins, "docker-rpush")); err != nil {
		l.t.Fatal(err)
	}
	path := dir + ":" + filepath.Dir(realreg.Tool(l.t, "docker")) + ":" + os.Getenv("PATH")
	return func(command string) (string, int, string) {
		l.t.Helper()
		cmd := exec.CommandContext(l.t.Context(), "sh", "-c", command)
		cmd.Env = slices.Concat(l.env, []string{"PATH=" + path, "DOCKER_CONFIG=" + config})
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the exit code says it
		return out.String(), cmd.ProcessState.ExitCode(), errs.String()
	}
}

// What docker push prints last, rpush prints when it is called as docker. All
// else is left to the real docker.
func TestCalledAsDocker(t *testing.T) {
	l := start(t, realreg.Options{})
	ref := l.ref("team/app:1")
	l.build(ref, "scratch", 91, docker.Layer{Text: mib}, docker.Layer{Random: mib})
	sh := l.asDocker()

	real, err := exec.Command(l.engine.Command, "push", l.ref("team/app:1")).Output()
	if err != nil {
		t.Fatal(err)
	}
	last := func(s string) string { lines := strings.Split(strings.TrimSpace(s), "\n"); return lines[len(lines)-1] }
	first := func(s string) string { line, _, _ := strings.Cut(s, "\n"); return line }
	out, exit, stderr := sh("docker push " + ref)
	if exit != 0 || last(out) != last(string(real)) || first(out) != first(string(real)) {
		t.Errorf("exit %d, rpush prints\n%s\n%s\ndocker prints\n%s", exit, out, stderr, real)
	}
	if !strings.Contains(stderr, "rpush: ") {
		t.Errorf("rpush did not push: %s", stderr)
	}
	real, err = exec.Command(l.engine.Command, "image", "push", "-q", ref).Output()
	if err != nil {
		t.Fatal(err)
	}
	if out, exit, stderr = sh("docker --log-level warn image push -q " + ref); exit != 0 || out != string(real) || stderr != "" {
		t.Errorf("exit %d, rpush prints %q and %q, docker prints %q", exit, out, stderr, real)
	}

	if out, exit, stderr = sh("docker image ls -q --no-trunc " + ref); exit != 0 || strings.TrimSpace(out) != l.id(ref) {
		t.Errorf("docker image ls: exit %d, %q\n%s", exit, out, stderr)
	}
	if _, exit, stderr = sh("docker no-such-command"); exit == 0 || strings.Contains(stderr, "rpush") {
		t.Errorf("docker no-such-command: exit %d\n%s", exit, stderr)
	}
	if out, exit, stderr = sh("docker rpush " + ref); exit != 0 || !strings.HasPrefix(out, ref+"@sha256:") {
		t.Errorf("docker rpush: exit %d, %q\n%s", exit, out, stderr)
	}
	if out, exit, stderr = sh("docker --host " + l.tap.Host + " rpush version"); exit != 0 || !strings.HasPrefix(out, "rpush ") {
		t.Errorf("docker --host rpush version: exit %d, %q\n%s", exit, out, stderr)
	}
	if out, exit, stderr = sh("docker info -f '{{json .ClientInfo.Plugins}}'"); exit != 0 || !strings.Contains(out, `"Name":"rpush"`) {
		t.Errorf("docker info does not list the plugin: exit %d, %q\n%s", exit, out, stderr)
	}
}
