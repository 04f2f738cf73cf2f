// SPDX-License-Identifier: Apache-2.0

// Package haproxy runs HAProxy in front of a registry on loopback, for tests
// against the real thing.
package haproxy

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// Options of an HAProxy.
type Options struct {
	// Timeout is how long either side may send nothing while something is expected
	// of it: timeout client and timeout server. 0 is a minute.
	Timeout time.Duration
}

// HAProxy is a running HAProxy.
type HAProxy struct {
	// Addr is host:port.
	Addr string

	dir  string
	proc *process.Process
}

// Start runs HAProxy in front of target (host:port) until the end of the test.
// Without the binary the test is skipped, see realreg.Tool.
func Start(t realreg.TB, target string, o Options) *HAProxy {
	t.Helper()
	h, err := run(context.Background(), realreg.Tool(t, "haproxy"), t.TempDir(), target, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		h.proc.End(syscall.SIGTERM, time.Second)
		if t.Failed() {
			t.Logf("HAProxy's log:\n%s", h.Log())
		}
	})
	return h
}

func run(ctx context.Context, bin, dir, target string, o Options) (*HAProxy, error) {
	h := &HAProxy{dir: dir}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	start := func() (err error) {
		if h.Addr, err = process.FreePort(); err != nil {
			return err
		}
		if err = os.WriteFile(h.path("haproxy.cfg"), []byte(h.config(target, o)), 0o600); err != nil {
			return err
		}
		log, err := os.Create(h.path("haproxy.log"))
		if err != nil {
			return err
		}
		defer log.Close()
		cmd := exec.Command(bin, "-db", "-f", h.path("haproxy.cfg")) // -db stays in the foreground
		cmd.Stdout, cmd.Stderr = log, log
		h.proc, err = process.Start(ctx, cmd, process.Answers(client, "http://"+h.Addr+"/v2/", nil))
		return err
	}
	if err := process.OnFreePort(start, h.Log); err != nil {
		return nil, fmt.Errorf("haproxy: %w", err)
	}
	return h, nil
}

func (h *HAProxy) path(name string) string { return filepath.Join(h.dir, name) }

func (h *HAProxy) config(target string, o Options) string {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("global\n  maxconn 256\n  log stdout format raw local0 info")
	line("defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 10s")
	line("  timeout client %dms\n  timeout server %dms", timeout.Milliseconds(), timeout.Milliseconds())
	line("frontend registry\n  bind %s\n  default_backend registry", h.Addr)
	line("backend registry\n  server one %s", target)
	return b.String()
}

// Log has a line for each request, with the state of the session at its end.
func (h *HAProxy) Log() string {
	b, _ := os.ReadFile(h.path("haproxy.log"))
	return string(b)
}
