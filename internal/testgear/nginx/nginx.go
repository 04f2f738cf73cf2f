// SPDX-License-Identifier: Apache-2.0

// Package nginx runs nginx in front of a registry on loopback, configured as
// people configure it, for tests against the real thing.
package nginx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

// Options of an nginx. The zero value is plain HTTP that buffers requests, as
// nginx does by default, of any size.
type Options struct {
	// Unbuffered passes the body of a request on as it comes.
	Unbuffered bool
	// MaxBody is the client_max_body_size in bytes; 0 is no limit. A larger
	// request is answered with 413.
	MaxBody int64
	// TLS serves HTTPS with a certificate of an authority made for the
	// occasion, see Nginx.CAFile.
	TLS bool
	// BasicAuth asks for realreg.User and realreg.Password.
	BasicAuth bool
}

// Nginx is a running nginx.
type Nginx struct {
	// Addr is host:port.
	Addr string
	// CAFile is the PEM file of the authority with Options.TLS, else empty.
	CAFile string

	dir  string
	proc *process.Process
}

// Start runs nginx in front of target (host:port) until the end of the test.
// Without the binary the test is skipped, see realreg.Tool.
func Start(t realreg.TB, target string, o Options) *Nginx {
	t.Helper()
	n, err := run(context.Background(), realreg.Tool(t, "nginx"), t.TempDir(), target, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			t.Logf("nginx's log:\n%s", n.Log())
		}
	})
	return n
}

func run(ctx context.Context, bin, dir, target string, o Options) (*Nginx, error) {
	n := &Nginx{dir: dir}
	client := &http.Client{Timeout: time.Second}
	tr := &http.Transport{DisableKeepAlives: true}
	client.Transport = tr
	scheme := "http://"
	if o.TLS {
		var err error
		if n.CAFile, err = realreg.MakeCertificates(dir); err != nil {
			return nil, fmt.Errorf("nginx: %w", err)
		}
		pem, err := os.ReadFile(n.CAFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
		scheme = "https://"
	}
	if o.BasicAuth {
		users := realreg.User + ":{PLAIN}" + realreg.Password + "\n"
		if err := os.WriteFile(n.path("htpasswd"), []byte(users), 0o600); err != nil {
			return nil, err
		}
	}
	start := func() (err error) {
		if n.Addr, err = process.FreePort(); err != nil {
			return err
		}
		if err = os.WriteFile(n.path("nginx.conf"), []byte(n.config(target, o)), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(bin, "-p", dir, "-e", n.path("error.log"), "-c", n.path("nginx.conf"))
		n.proc, err = process.Start(ctx, cmd, process.Answers(client, scheme+n.Addr+"/v2/", nil))
		return err
	}
	if err := process.OnFreePort(start, n.Log); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	return n, nil
}

func (n *Nginx) path(name string) string { return filepath.Join(n.dir, name) }

// config follows the recipe in distribution's documentation.
func (n *Nginx) config(target string, o Options) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if os.Geteuid() == 0 { // else the workers could not reach our directory
		line("user root;")
	}
	line("daemon off;\nworker_processes 2;\npid %q;", n.path("nginx.pid"))
	line("events { worker_connections 256; }")
	line("http {")
	line("  access_log %q;", n.path("access.log"))
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		line("  %s_temp_path %q;", what, n.path(what))
	}
	line("  upstream registry { server %s; }", target)
	line("  server {")
	tls := ""
	if o.TLS {
		tls = " ssl"
	}
	line("    listen %s%s;\n    server_name localhost;", n.Addr, tls)
	if o.TLS {
		line("    ssl_certificate %q;\n    ssl_certificate_key %q;", n.path("server.pem"), n.path("server.key"))
	}
	line("    client_max_body_size %d;", o.MaxBody)
	line("    chunked_transfer_encoding on;")
	line("    location /v2/ {")
	line(`      if ($http_user_agent ~ "^(docker\/1\.(3|4|5(?!\.[0-9]-dev))|Go ).*$" ) { return 404; }`)
	if o.BasicAuth {
		line("      auth_basic \"Registry realm\";\n      auth_basic_user_file %q;", n.path("htpasswd"))
	}
	line("      proxy_pass http://registry;")
	line("      proxy_set_header Host $http_host;")
	line("      proxy_set_header X-Real-IP $remote_addr;")
	line("      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;")
	line("      proxy_set_header X-Forwarded-Proto $scheme;")
	line("      proxy_read_timeout 900;")
	if o.Unbuffered {
		line("      proxy_request_buffering off;\n      proxy_http_version 1.1;")
	}
	line("    }\n  }\n}")
	return b.String()
}

// Stop ends nginx. The master takes its workers along, and kills them after a
// second if it has to.
func (n *Nginx) Stop() { n.proc.End(syscall.SIGTERM, 5*time.Second) }

// Log is nginx's error log.
func (n *Nginx) Log() string {
	b, _ := os.ReadFile(n.path("error.log"))
	return string(b)
}
