// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// served is a gateway that runs as a command.
type served struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	errs *strings.Builder
	done chan struct{}
}

var listening = regexp.MustCompile(`listening at https?://(\S+) `)

// serve runs rpush gateway serve until the end of the test.
func serve(t *testing.T, env []string, args ...string) *served {
	t.Helper()
	s := &served{t: t, errs: &strings.Builder{}, done: make(chan struct{})}
	s.cmd = exec.CommandContext(t.Context(), string(rpush), append([]string{"gateway", "serve"}, args...)...)
	s.cmd.Env = env
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	go func() {
		defer close(s.done)
		defer close(addr)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.errs.WriteString(lines.Text() + "\n")
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	if s.addr = <-addr; s.addr == "" {
		<-s.done
		t.Fatalf("the gateway does not start:\n%s", s.errs)
	}
	return s
}

// stop ends the gateway politely, and returns its exit code.
func (s *served) stop() int {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	<-s.done
	s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}

func byCrane(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), args...)
	cmd.Env = binary.Environ(t, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("crane %v: %v\n%s", args, err, out)
	}
}

// A client pushes and pulls with its own credentials through a gateway on
// loopback, over a line that resets every connection.
func TestGatewayServe(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{BasicAuth: true})
	img := binary.Layout(t, 301, 24*mib)
	line := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(8*mib, proxy.Fault{Kind: proxy.ResetClient})})
	s := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", line.Addr())
	login := binary.Login(t, s.addr)
	byCrane(t, []string{login}, "push", img.Dir, s.addr+"/team/app:1")
	if st := line.Stats(); st.Faults < 2 || float64(st.Up) > 1.02*float64(img.Total) {
		t.Errorf("%d resets, forwarded %.4f x the image", st.Faults, float64(st.Up)/float64(img.Total))
	}
	binary.Same(t, img, s.addr+"/team/app:1", login)
	binary.Same(t, img, reg.Addr+"/team/app:1", binary.Login(t, reg.Addr))
	for path, want := range map[string]string{"/healthz": "ok", "/metrics": `rpush_upload_events_total{event="resumed",registry="`} {
		resp, err := http.Get("http://" + s.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %v\n%s\nwant %q", path, err, body, want)
		}
	}
	if exit := s.stop(); exit != 0 {
		t.Errorf("exit %d after SIGTERM, want 0\n%s", exit, s.errs)
	}
}

// A pull survives a line that cuts every connection after some MiB. crane alone
// does not get through.
func TestGatewayPull(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 305, 24*mib)
	rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, reg.Addr+"/team/app:1")
	line := binary.Through(t, reg.Addr, proxy.Options{Plan: func(int) proxy.Fault { return proxy.Fault{Kind: proxy.Cut, AtDown: 5 * mib} }})
	alone := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "pull", "--format=oci", line.Addr()+"/team/app:1", filepath.Join(t.TempDir(), "pulled"))
	alone.Env = binary.Environ(t)
	if out, err := alone.CombinedOutput(); err == nil {
		t.Errorf("crane arrives without the gateway: this test shows nothing\n%s", out)
	}
	before := line.Stats()
	s := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", line.Addr())
	binary.Same(t, img, s.addr+"/team/app:1")
	st := line.Stats()
	ratio := float64(st.Down-before.Down) / float64(img.Total)
	t.Logf("%d cuts, %.4f x the image came", st.Faults-before.Faults, ratio)
	if st.Faults-before.Faults < 4 || ratio > 1.05 {
		t.Errorf("%d cuts, %.4f x the image came, want at least 4 and at most 1.05 x", st.Faults-before.Faults, ratio)
	}
}

// A client that does not finish the head of a request is hung up on.
func TestGatewaySlowHeader(t *testing.T) {
	s := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", "reg.example", "--header-timeout", "200ms")
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil {
		t.Errorf("the gateway waits for ever: %v, %q", err, b)
	}
}

// A client that is killed in the middle of a layer, and a gateway that is killed
// with it, continue: each time the client sends the layer from its first byte, and
// the registry gets only what is missing.
func TestGatewayAndClientKilled(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 303, 96*mib)
	line := binary.Through(t, reg.Addr, proxy.Options{Rate: 60 * mib, Buffer: 256 << 10})
	dir, state := stateOf(t)
	env := binary.Environ(t, state)
	random := rand.New(rand.NewPCG(1, 303))
	push := func(addr string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "push", img.Dir, addr+"/team/app:1")
		cmd.Env = binary.Environ(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	const kills = 4
	for range kills {
		s := serve(t, env, "--listen", "127.0.0.1:0", "--upstream", line.Addr())
		client := push(s.addr)
		ended := make(chan error, 1)
		go func() { ended <- client.Wait() }()
		until := line.Stats().Up + (2+random.Int64N(16))*mib
		for line.Stats().Up < until {
			select {
			case err := <-ended:
				t.Fatalf("crane ended before it was killed: %v\n%s", err, s.errs)
			case <-time.After(5 * time.Millisecond): // to look again
			}
		}
		if random.IntN(2) == 0 { // the gateway sees the client go, or not
			client.Process.Kill()
			<-ended
			s.cmd.Process.Kill()
		} else {
			s.cmd.Process.Kill()
			client.Process.Kill()
			<-ended
		}
		<-s.done
	}
	s := serve(t, env, "--listen", "127.0.0.1:0", "--upstream", line.Addr())
	if err := push(s.addr).Wait(); err != nil {
		t.Fatalf("%v\n%s", err, s.errs)
	}
	ratio := float64(line.Stats().Up) / float64(img.Total)
	t.Logf("%d kills, forwarded %.4f x the image", kills, ratio)
	if ratio > 1.1 {
		t.Errorf("forwarded %.4f x the image, want at most 1.1", ratio)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
	if exit := s.stop(); exit != 0 {
		t.Errorf("exit %d", exit)
	}
	if left := records(t, dir); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A gateway beside distribution 2.8, which loses every upload that breaks, keeps
// them: on a line that resets connections at random, both rpush and a client
// behind another gateway arrive, with hardly a byte sent twice. With
// RPUSH_MATRIX=long these are ten lines and a layer of 150 MiB.
func TestGatewayAccept(t *testing.T) {
	lines, mean, layer := 1, int64(6*mib), int64(48*mib)
	if os.Getenv("RPUSH_MATRIX") == "long" {
		lines, mean, layer = 10, 20_000_000, 150*mib
	}
	reg := realreg.Start(t, realreg.Options{Tool: "docker-registry"})
	img := binary.Layout(t, 304, layer, 5*mib)
	dir, state := stateOf(t)
	beside := serve(t, binary.Environ(t, state), "--listen", "127.0.0.1:0", "--upstream", reg.Addr, "--accept")
	for i := range 2 * lines {
		client := []string{"rpush", "crane"}[i%2]
		repo := fmt.Sprintf("/team/%s%d:1", client, i)
		line := binary.Through(t, beside.addr, proxy.Options{
			Plan: proxy.Seeded(uint64(i), mean, proxy.Fault{Kind: proxy.ResetClient}), Buffer: 256 << 10,
		})
		if client == "rpush" {
			rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, line.Addr()+repo)
		} else {
			agent := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", line.Addr())
			byCrane(t, nil, "push", img.Dir, agent.addr+repo)
		}
		s := line.Stats()
		ratio := float64(s.Up) / float64(img.Total)
		t.Logf("%s: %d resets, forwarded %.4f x the image", client, s.Faults, ratio)
		if s.Faults < 2 || ratio > 1.05 {
			t.Errorf("%s: %d resets, forwarded %.4f x the image, want at least 2 and at most 1.05 x", client, s.Faults, ratio)
		}
		binary.Same(t, img, reg.Addr+repo)
		if left, err := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*")); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", client, left, err)
		}
	}
}

// On an address that others reach, the gateway asks for its own password and
// uses credentials of its own for what is allowed.
func TestGatewayServePublic(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{BasicAuth: true})
	dir := t.TempDir()
	ca, err := realreg.MakeCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(dir, "users")
	// The password is "secret", as realreg's.
	if err := os.WriteFile(users, []byte("ci:$2b$05$qv9N8muHxMCa3BJbIF2JguD9pzlN0c4/cBjLPiOZrd5xeXBhzJjUy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	s := serve(t, binary.Environ(t, binary.Login(t, reg.Addr)), "--listen", "0.0.0.0:0", "--upstream", reg.Addr,
		"--cert-file", cert, "--key-file", key, "--htpasswd", users, "--sign-in", "--allow", reg.Addr+"/team")
	_, port, _ := strings.Cut(s.addr[strings.LastIndex(s.addr, ":")-1:], ":")
	addr := "127.0.0.1:" + port
	img := binary.Layout(t, 302, mib)
	trust := "SSL_CERT_FILE=" + ca
	byCrane(t, []string{trust, binary.Login(t, addr)}, "push", img.Dir, addr+"/team/app:1")
	binary.Same(t, img, reg.Addr+"/team/app:1", binary.Login(t, reg.Addr))

	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	for _, tt := range []struct {
		path, password string
		want           int
	}{
		{"/v2/team/app/tags/list", "secret", 200},
		{"/v2/team/app/tags/list", "wrong", 401},
		{"/v2/team/app/tags/list", "", 401},
		{"/v2/other/app/tags/list", "secret", 403}, // not allowed, and nobody else signs in
		{"/metrics", "", 401},
		{"/metrics", "secret", 200},
		{"/healthz", "", 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.password != "" {
			req.SetBasicAuth("ci", tt.password)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s with %q: got %d, want %d", tt.path, tt.password, resp.StatusCode, tt.want)
		}
	}
}

func TestGatewayServeUsage(t *testing.T) {
	dir := t.TempDir()
	if _, err := realreg.MakeCertificates(dir); err != nil {
		t.Fatal(err)
	}
	tls := []string{"--cert-file", filepath.Join(dir, "server.pem"), "--key-file", filepath.Join(dir, "server.key")}
	for _, tt := range []struct {
		args []string
		exit int
		want string
	}{
		{[]string{"--listen", "0.0.0.0:0", "--upstream", "reg.example"}, 2, "--cert-file and --key-file"},
		{append([]string{"--listen", "0.0.0.0:0", "--upstream", "reg.example"}, tls...), 2, "needs --htpasswd"},
		{[]string{"--sign-in"}, 2, "--sign-in and --allow go together"},
		{[]string{"--allow", "reg.example"}, 2, "go together"},
		{[]string{"--sign-in", "--allow", "reg.example/Case", "--listen", "127.0.0.1:0"}, 2, "neither a registry nor a repository"},
		{[]string{"--upstream", "a.example", "--registry", "b.example"}, 2, "leave out --registry"},
		{[]string{"--authfile", "x"}, 2, "--sign-in"},
		{[]string{"--accept", "--no-state"}, 2, "--accept keeps uploads in --state-dir"},
		{[]string{"--htpasswd", "/nowhere"}, 1, "no such file"},
		{[]string{"--listen", "127.0.0.1:99999"}, 1, "--listen"},
		{[]string{"--max-requests", "0"}, 2, "--max-requests"},
		{[]string{"extra"}, 2, "unexpected argument"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // or it would serve for ever
		cmd := exec.CommandContext(ctx, string(rpush), append([]string{"gateway", "serve"}, tt.args...)...)
		cmd.Env = binary.Environ(t)
		defer cancel()
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != tt.exit || !strings.Contains(string(out), tt.want) {
			t.Errorf("%v: exit %d, want %d\n%s\nwant %q", tt.args, cmd.ProcessState.ExitCode(), tt.exit, out, tt.want)
		}
	}
}
