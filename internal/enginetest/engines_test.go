// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/process"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// A network where names and addresses can be what the test needs.
const (
	secureIP, hubIP = "198.51.100.2", "198.51.100.3"

	network = "198.51.100.1/24" // all of it is this host
	plain   = "198.51.100.1:5000"
	secure  = secureIP + ":5000"
	hub     = hubIP + ":443"
	proxyAt = "198.51.100.4:3128"
	nobody  = "198.51.100.5:1" // where nothing listens

	hosts = `127.0.0.1 localhost
198.51.100.1 direct.example unlisted.example
198.51.100.2 unlisted-tls.example
198.51.100.3 index.docker.io registry-1.docker.io
`
)

// site is an engine with settings, in namespaces of its own, before a registry
// at plain.
type site struct {
	*lab
	daemon *docker.Daemon
	image  string // small
	certs  string // what its TLS port asks for
	tls    string // that port
	other  *realreg.Registry
	mirror *realreg.Registry
	hub    *realreg.Registry
	proxy  *binary.Forward
}

func TestEngineOfItsOwn(t *testing.T) {
	if !rpush.Apart(t, "ip", "dockerd", "docker", "registry", "crane") {
		return
	}
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", network, "dev", "lo"}} {
		if out, err := exec.CommandContext(t.Context(), realreg.Tool(t, "ip"), args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}

	s := &site{certs: t.TempDir()}
	reg := realreg.Start(t, realreg.Options{Addr: plain})
	s.other = realreg.Start(t, realreg.Options{Addr: secure, TLS: true, Names: []string{secureIP}})
	s.mirror = realreg.Start(t, realreg.Options{TLS: true})
	s.hub = realreg.Start(t, realreg.Options{Addr: hub, TLS: true, Names: []string{hubIP, "index.docker.io", "registry-1.docker.io"}})
	s.proxy = binary.StartForward(t, proxyAt, map[string]string{"proxied.example:5000": plain})
	if _, err := realreg.MakeCertificates(s.certs); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.tls, err = process.FreePort(); err != nil {
		t.Fatal(err)
	}
	s.daemon = docker.StartDaemon(t, []string{
		"--host", "tcp://" + s.tls, "--tlsverify", "--tlscacert", filepath.Join(s.certs, "ca.pem"),
		"--tlscert", filepath.Join(s.certs, "server.pem"), "--tlskey", filepath.Join(s.certs, "server.key"),
		"--insecure-registry", plain, "--insecure-registry", secure,
		"--insecure-registry", "proxied.example:5000", "--insecure-registry", "direct.example:5000",
		"--registry-mirror", s.mirror.URL(),
	}, []string{
		"HTTP_PROXY=http://" + proxyAt, "HTTPS_PROXY=http://" + proxyAt,
		"NO_PROXY=198.51.100.0/24,docker.io,direct.example,unlisted.example,unlisted-tls.example",
	})
	s.lab = newLab(t, s.daemon.Engine, s.daemon.Socket, reg)
	s.image = s.ref("lab/app:1")
	s.build(s.image, "scratch", 101, docker.Layer{Random: mib})

	t.Run("TLS", s.overTLS)
	t.Run("unreachable", s.unreachable)
	t.Run("insecure registries", s.insecure)
	t.Run("proxies", s.proxies)
	t.Run("mirrors", s.mirrors)
	t.Run("broken off", s.brokenOff)
	t.Run("proxy with a password", s.secretProxy) // the last: it restarts the engine
}

// nothing checks that a repository of the plain registry is empty.
func (s *site) nothing(t *testing.T, repo string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.reg.Root, "docker", "registry", "v2", "repositories", repo)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was sent to %s: %v", repo, err)
	}
}

func (s *site) overTLS(t *testing.T) {
	ref := s.ref("tls/app:1")
	s.docker("tag", s.image, ref)
	host := "DOCKER_HOST=tcp://" + s.tls
	strangers, anonymous := t.TempDir(), t.TempDir()
	if _, err := realreg.MakeCertificates(strangers); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(s.certs, "ca.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(anonymous, "ca.pem"), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want, hint string
		env              []string
	}{
		{"no certificate", "certificate", "must have a cert.pem and key.pem", []string{host, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + anonymous}},
		{"nothing at all", "certificate signed by unknown authority", "must have the ca.pem", []string{host, "DOCKER_TLS_VERIFY=1"}},
		{"another authority", "certificate signed by unknown authority", "must have the ca.pem", []string{host, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + strangers}},
		{"no TLS", "HTTPS server", "DOCKER_TLS_VERIFY=1", []string{host}},
	} {
		_, exit, stderr := s.as(t, tt.env...).text(ref)
		if exit != 1 || !strings.Contains(stderr, tt.want) || !strings.Contains(stderr, "hint: ") || !strings.Contains(stderr, tt.hint) {
			t.Errorf("%s: exit %d\n%s\nwant %q and a hint %q", tt.name, exit, stderr, tt.want, tt.hint)
		}
	}
	s.nothing(t, "tls/app")

	// As docker takes certificates: where the variable says, beside its config,
	// unverified, out of a context.
	config := t.TempDir()
	if err := os.CopyFS(config, os.DirFS(s.certs)); err != nil {
		t.Fatal(err)
	}
	s.docker("--config", config, "context", "create", "lab", "--docker", fmt.Sprintf(
		"host=tcp://%s,ca=%[2]s/ca.pem,cert=%[2]s/cert.pem,key=%[2]s/key.pem", s.tls, s.certs))
	for name, env := range map[string][]string{
		"DOCKER_CERT_PATH": {host, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + s.certs},
		"DOCKER_CONFIG":    {host, "DOCKER_TLS_VERIFY=1", "DOCKER_CONFIG=" + config},
		"DOCKER_TLS":       {"DOCKER_HOST=" + s.tls, "DOCKER_TLS=1", "DOCKER_CERT_PATH=" + s.certs},
		"a context":        {"DOCKER_CONFIG=" + config, "DOCKER_CONTEXT=lab"},
	} {
		l := s.as(t, env...)
		if r := l.push("--no-engine-update", ref); r.Digest == "" {
			t.Errorf("%s: %+v", name, r)
		}
		s.exists(t, ref, s.id(ref))
	}
}

// exists checks the image at the plain registry.
func (s *site) exists(t *testing.T, ref, id string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "manifest", "--insecure", ref).CombinedOutput()
	if err != nil || !strings.Contains(string(out), id) {
		t.Errorf("%s is not at the registry: %v\n%s", id, err, out)
	}
	out, err = exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "validate", "--insecure", "--remote", ref).CombinedOutput()
	if err != nil {
		t.Errorf("crane validate: %v\n%s", err, out)
	}
}

// The address of an engine is said as it is, and why it does not answer.
func (s *site) unreachable(t *testing.T) {
	ref := s.ref("nobody/app:1")
	closed := filepath.Join(t.TempDir(), "docker.sock")
	for _, tt := range []struct{ host, want, hint string }{
		{"tcp://" + nobody, "connection refused", "start the engine"},
		{"unix://" + closed, "no such file", "start the engine"},
	} {
		_, exit, stderr := s.as(t, "DOCKER_HOST="+tt.host).text(ref)
		if exit != 1 || !strings.Contains(stderr, tt.host) || !strings.Contains(stderr, tt.want) || !strings.Contains(stderr, "hint: "+tt.hint) {
			t.Errorf("%s: exit %d\n%s\nwant %q and a hint %q", tt.host, exit, stderr, tt.want, tt.hint)
		}
	}
	// One who may not use the socket.
	dir, err := os.MkdirTemp("", "rpush-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "rpush")
	b, err := os.ReadFile(string(rpush))
	if err == nil {
		err = errors.Join(os.WriteFile(program, b, 0o755), os.Chmod(dir, 0o755)) //nolint:gosec // others run it
	}
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join("/run", "docker.sock")
	if err := os.Symlink(s.daemon.Socket, sock); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, ref)
	cmd.Env = []string{"HOME=" + dir, "DOCKER_HOST=unix://" + sock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "hint: add this user to the group") {
		t.Errorf("without permission: %v\n%s", cmd.ProcessState, out)
	}
}

func (s *site) insecure(t *testing.T) {
	for _, tt := range []struct {
		host, refused string
		args          []string
	}{
		{plain, "", nil},
		{secure, "", nil},
		{plain, "HTTP response to HTTPS client", []string{"--tls-verify"}},
		{secure, "unknown authority", []string{"--tls-verify"}},
		{"unlisted.example:5000", "HTTP response to HTTPS client", nil},
		{"unlisted-tls.example:5000", "certificate", nil},
	} {
		ref := tt.host + "/insecure/app:1"
		l := s.as(t, "DOCKER_HOST="+s.tap.Host)
		_, exit, stderr := l.text(append(tt.args, "--retry-for", "0", "docker-daemon:"+s.image, ref)...)
		if want := tt.refused != ""; (exit == 1) != want || exit > 1 || !strings.Contains(stderr, tt.refused) {
			t.Errorf("%s %v: exit %d\n%s\nwant %q", ref, tt.args, exit, stderr, tt.refused)
		}
		if tt.refused == "" {
			s.exists(t, ref, s.id(s.image))
			if got := s.docker("inspect", "-f", "{{.RepoDigests}}", s.image); !strings.Contains(got, tt.host+"/insecure/app@") {
				t.Errorf("the engine did not note the digest: %s\n%s", got, stderr)
			}
		}
	}
}

// The engine's proxies carry the push, whatever rpush's own environment says,
// and not where the engine's say that they do not.
func (s *site) proxies(t *testing.T) {
	for _, tt := range []struct {
		host    string
		proxied bool
		env     []string
	}{
		{"proxied.example:5000", true, nil},
		{"proxied.example:5000", true, []string{"HTTP_PROXY=http://" + nobody, "HTTPS_PROXY=http://" + nobody}},
		{"proxied.example:5000", true, []string{"NO_PROXY=*"}},
		{"direct.example:5000", false, nil},
		{plain, false, []string{"HTTP_PROXY=http://" + nobody, "HTTPS_PROXY=http://" + nobody}},
	} {
		before := s.proxy.Bytes.Load()
		repo := fmt.Sprintf("proxies/app%d", len(tt.env))
		l := s.as(t, append(tt.env, "DOCKER_HOST="+s.tap.Host)...)
		r := l.push("--no-engine-update", "--retry-for", "0", "docker-daemon:"+s.image, tt.host+"/"+repo+":1")
		through := s.proxy.Bytes.Load() - before
		if tt.proxied && through < r.Sent || !tt.proxied && through != 0 {
			t.Errorf("%s with %v: %d bytes went through the proxy, %d were sent", tt.host, tt.env, through, r.Sent)
		}
		s.exists(t, s.ref(repo+":1"), s.id(s.image))
	}
	if s.proxy.Bytes.Load() < mib {
		t.Errorf("%d bytes went through the proxy, less than one layer", s.proxy.Bytes.Load())
	}
}

// The engine shows no password of a proxy. Those of rpush's own environment are
// used, and that is said.
func (s *site) secretProxy(t *testing.T) {
	s.daemon.Kill()
	s.daemon.Env = []string{"HTTP_PROXY=http://user:secret@" + nobody, "HTTPS_PROXY=http://user:secret@" + nobody}
	s.daemon.Start(t)
	before := s.proxy.Bytes.Load()
	l := s.as(t, "DOCKER_HOST="+s.tap.Host, "HTTP_PROXY=http://"+proxyAt, "HTTPS_PROXY=http://"+proxyAt)
	_, exit, stderr := l.text("--no-engine-update", "docker-daemon:"+s.image, "proxied.example:5000/secret/app:1")
	if exit != 0 || !strings.Contains(stderr, "warning: the engine's proxy asks for a password") || s.proxy.Bytes.Load() == before {
		t.Errorf("exit %d, %d bytes through the proxy\n%s", exit, s.proxy.Bytes.Load()-before, stderr)
	}
	s.exists(t, s.ref("secret/app:1"), s.id(s.image))
}

// What the engine pulled from a mirror of Docker Hub is learnt from there.
func (s *site) mirrors(t *testing.T) {
	// The base is at the mirror; its blobs, and nothing else, at Docker Hub.
	base := s.mirror.Addr + "/library/base:1"
	s.build(base, "scratch", 104, docker.Layer{Random: mib}, docker.Layer{Text: mib})
	s.docker("push", "-q", base)
	s.docker("rmi", "-f", base)
	s.docker("pull", "-q", "base:1")
	s.gone("base:1")
	if got := s.docker("inspect", "-f", "{{.RepoDigests}}", "base:1"); !strings.Contains(got, "[base@sha256:") {
		t.Fatalf("the base was pulled as %s", got)
	}
	for _, of := range []string{"blobs", "repositories/library/base/_layers"} {
		rel := filepath.Join("docker", "registry", "v2", of)
		if err := os.CopyFS(filepath.Join(s.hub.Root, rel), os.DirFS(filepath.Join(s.mirror.Root, rel))); err != nil {
			t.Fatal(err)
		}
	}

	app := "docker.io/team/app:1"
	s.build(app, "base:1", 105, docker.Layer{Random: 1000})
	both := filepath.Join(t.TempDir(), "ca.pem")
	var pems []byte
	for _, file := range []string{s.hub.CAFile, s.mirror.CAFile} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pems = append(pems, b...)
	}
	if err := os.WriteFile(both, pems, 0o600); err != nil {
		t.Fatal(err)
	}
	l := s.as(t, "DOCKER_HOST="+s.tap.Host, "SSL_CERT_FILE="+both)
	r := l.push("--no-engine-update", app)
	if r.count("mounted") != 2 || r.Engine.Compressed != 1 || r.Sent > 100<<10 {
		t.Errorf("got %+v, want 2 layers mounted and 1 compressed", r)
	}
	log, err := s.mirror.AccessLog()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(log, func(a realreg.Access) bool {
		return strings.HasPrefix(a.UserAgent, "rpush/") && a.Method == "GET" && a.Status == 200 &&
			strings.HasPrefix(a.Path, "/v2/library/base/manifests/sha256:")
	}) {
		t.Errorf("rpush did not ask the mirror: %+v", log)
	}
}
