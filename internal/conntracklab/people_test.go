// SPDX-License-Identifier: Apache-2.0

//go:build linux

package conntracklab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

// within namespaces, as somebody with fewer rights than the tests.
func asNobody(t *testing.T, script string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", "host", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return finish(t, cmd)
}

// An ordinary user gets what is possible, and is told what cannot.
func TestOrdinaryUser(t *testing.T) {
	if !apart(t, "setpriv") {
		return
	}
	newLab(t)
	sh(t, "host", "nft -f - <<'EOF'\n"+withDNAT+"EOF")
	do(t, "install", "-m", "755", string(rpush), "/run/rpush")

	r := asNobody(t, "/run/rpush doctor --output json "+hostAddr)
	d := r.report(t)
	if r.exit != 1 || d.Verdict != "unknown" || d.check("rules") != "unknown" || d.check("translation") != "unknown" || d.check("table") != "sound" {
		t.Errorf("got exit %d, %+v", r.exit, d)
	}
	if !d.Registry.Own || !strings.Contains(strings.Join(d.Advice, "\n"), "sudo") {
		t.Errorf("got %+v", d)
	}
	r = asNobody(t, "/run/rpush doctor --output json --fix=drop --apply "+hostAddr)
	if r.exit != 1 || !strings.Contains(r.stderr, "this needs root") {
		t.Errorf("a fix: exit %d, %s", r.exit, r.stderr)
	}
	r = asNobody(t, "/run/rpush doctor --output json --fix=liberal --apply "+hostAddr)
	if r.exit != 1 || !strings.Contains(r.stderr, "this needs root") {
		t.Errorf("a fix: exit %d, %s", r.exit, r.stderr)
	}
	r = asNobody(t, "/run/rpush doctor --output json --selftest "+hostAddr)
	t.Logf("self-test: %+v", r.report(t).SelfTest)
	if s := r.report(t).SelfTest; s.Error == "" && s.Beyond != "reset" {
		t.Errorf("self-test: got %+v", s)
	}
	if d := doctor(t, 4, "--strict", "--selftest", hostAddr); d.SelfTest.Beyond != "reset" || d.SelfTest.Delayed == "" || d.check("self-test") != "at risk" {
		t.Errorf("self-test as root: got %+v", d.SelfTest)
	}
}

// With /proc read-only all can be read, and the setting cannot be made.
func TestReadOnlyProc(t *testing.T) {
	if !apart(t) {
		return
	}
	newLab(t)
	sh(t, "host", "nft -f - <<'EOF'\n"+withDNAT+"EOF")
	readOnly := func(args string) result {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", "host", "sh", "-c",
			"mount -o remount,bind,ro /proc && exec "+string(rpush)+" doctor --output json "+args)
		return finish(t, cmd)
	}
	if r := readOnly("--strict " + hostAddr); r.exit != 4 || r.report(t).Verdict != "at risk" {
		t.Errorf("got exit %d, %s", r.exit, r.stdout)
	}
	before := state(t)
	if r := readOnly("--fix=liberal --apply " + hostAddr); r.exit != 1 || !strings.Contains(r.stderr, "read-only file system") {
		t.Errorf("liberal: exit %d, %s", r.exit, r.stderr)
	}
	if after := state(t); after != before {
		t.Errorf("something is left:\n%s", after)
	}
	if r := readOnly("--strict --fix=drop --apply " + hostAddr); r.exit != 0 {
		t.Errorf("drop: exit %d, %s", r.exit, r.stderr)
	}
}

// docker runs the client of the engine, or skips.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(do(t, "docker", args...))
}

// The real engine publishes a real registry, which is pushed to through the
// host's own address. Nothing of this host's rules is changed but by the engine.
func TestDockerEngine(t *testing.T) {
	if os.Geteuid() != 0 {
		require.Missing(t, "this needs root")
	}
	if out, err := exec.CommandContext(t.Context(), "docker", "version").CombinedOutput(); err != nil {
		require.Missing(t, "no Docker engine: %v\n%s", err, out)
	}
	own := ownAddress(t)
	begin := time.Now()
	image := makeImage(t)
	t.Logf("the image was made in %s", time.Since(begin))
	id := docker(t, "create", "-p", "5000", image, "/registry", "serve", "/config.yml")
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", "-v", id).Run() }) // also where it cannot be started
	docker(t, "start", id)
	_, hostPort, err := net.SplitHostPort(strings.Fields(docker(t, "port", id, "5000/tcp"))[0])
	if err != nil {
		t.Fatal(err)
	}
	to := docker(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", id) + ":5000"
	addr := net.JoinHostPort(own, hostPort)
	waitFor(t, addr)

	img := binary.Layout(t, 3, 8*mib)
	rpush.Push(t, binary.Environ(t), "--plain-http", "oci:"+img.Dir, addr+"/team/app:1")
	dir := filepath.Join(t.TempDir(), "pulled")
	do(t, realreg.Tool(t, "crane"), "pull", "--insecure", "--format=oci", addr+"/team/app:1", dir)
	if err := ocilayout.Compare(img.Dir, dir); err != nil {
		t.Error(err)
	}

	ask := func(exit int, args ...string) report {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), string(rpush), append([]string{"doctor", "--output", "json"}, args...)...)
		r := finish(t, cmd)
		if r.exit != exit {
			t.Errorf("doctor %v: exit %d, want %d\n%s", args, r.exit, exit, r.stdout)
		}
		return r.report(t)
	}
	d := ask(4, "--strict", addr)
	t.Logf("%s: %+v, %+v", d.Headline, d.Mappings, d.Guards)
	if d.Where != "here" || d.Verdict != "at risk" || !d.Registry.Own || len(d.Protection) != 0 {
		t.Errorf("got %+v", d)
	}
	if len(d.Mappings) != 1 || d.Mappings[0].By != "Docker" || d.Mappings[0].To != to {
		t.Errorf("the engine's translation to %s: got %+v", to, d.Mappings)
	}
	if len(d.Proxies) == 0 || d.Proxies[0].Program != "docker-proxy" || d.Proxies[0].To != to {
		t.Errorf("the engine's proxy to %s: got %+v", to, d.Proxies)
	}
	if !strings.Contains(strings.Join(d.Advice, "\n"), to) {
		t.Errorf("no way around the translation: %q", d.Advice)
	}
	if d = ask(0, "localhost:"+hostPort); d.Where != "here" {
		t.Errorf("by localhost: got %+v", d)
	}
	if d = ask(0, addr, "--fix=drop"); len(d.Fix.Steps) != 1 || !strings.Contains(d.Fix.Steps[0].Command, "tcp dport { "+hostPort+" } ct state invalid") {
		t.Errorf("the plan: got %+v", d.Fix)
	}
	if d = ask(0, "203.0.113.7:5999"); d.Verdict != "not applicable" || d.Where != "elsewhere" ||
		d.Headline != "this machine does not NAT 203.0.113.7:5999: run this on the host that publishes port 5999" {
		t.Errorf("another machine: got %+v", d)
	}

	// In containers: without privileges, and in the way that is advised. Whether
	// legacy rules protect cannot be read without their program.
	legacy := 0
	if b, _ := os.ReadFile("/proc/net/ip_tables_names"); len(b) > 0 {
		legacy = 1
	}
	for _, c := range []struct {
		name, where string
		exit        int
		args        []string
	}{
		{"nobody", "undecided", 1, []string{"--cap-drop", "ALL", "--user", "65534"}},
		{"root without rights", "undecided", 1, []string{"--cap-drop", "ALL", "--read-only"}},
		{"of the host's network", "here", legacy, []string{"--net", "host", "--cap-add", "NET_ADMIN"}},
	} {
		args := slices.Concat([]string{"run", "--rm", "--init=false"}, c.args, []string{image, "/rpush", "doctor", "--output", "json", addr})
		r := finish(t, exec.CommandContext(t.Context(), "docker", args...))
		d := r.report(t)
		t.Logf("%s: %s", c.name, d.Headline)
		if r.exit != c.exit || d.Where != c.where {
			t.Errorf("%s: exit %d, got %+v", c.name, r.exit, d)
		}
		if c.where == "undecided" && !strings.Contains(strings.Join(d.Advice, "\n"), "--net=host") {
			t.Errorf("%s: the advice is %q", c.name, d.Advice)
		}
	}
}

// ownAddress is one of this host that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !strings.HasPrefix(n.IP.String(), "172.17.") {
			return n.IP.String()
		}
	}
	require.Missing(t, "this host has no address but loopback")
	return ""
}

// makeImage builds one from nothing but the registry and rpush.
func makeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "rpush"), "github.com/rpush-go/rpush/cmd/rpush")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	do(t, "cp", realreg.Tool(t, "registry"), filepath.Join(dir, "registry"))
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY registry rpush config.yml /\n",
		"config.yml": "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /data\nhttp:\n  addr: :5000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tag := fmt.Sprintf("rpush-lab:%d", os.Getpid())
	cmd := exec.CommandContext(t.Context(), "docker", "build", "-q", "-t", tag, dir)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("docker", "rmi", "-f", tag).Run() })
	return tag
}

func waitFor(t *testing.T, addr string) {
	t.Helper()
	for range 200 {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("nothing answers at %s", addr)
}
