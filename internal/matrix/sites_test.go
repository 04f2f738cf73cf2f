// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/haproxy"
	"github.com/rpush-go/rpush/internal/testgear/nginx"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/tokens"
)

const (
	mib = 1 << 20

	two   = "docker-registry" // distribution 2.8.2 of Debian 12
	three = "registry"        // distribution 3.1.1
)

var rpush binary.Rpush

func TestMain(m *testing.M) { os.Exit(binary.Main(m, &rpush)) }

// site is a registry with what stands before it.
type site struct {
	addr    string // where clients go
	caFile  string // of HTTPS
	login   bool
	noEmpty bool         // it takes no empty blob, from any client
	restart func() error // kills what holds the sessions, and starts it again
}

// call is what it takes to push by way of the hosts.
func (s *site) call(t *testing.T, hosts ...string) (env, flags []string) {
	t.Helper()
	env = s.env(t, hosts...)
	if s.caFile != "" {
		flags = []string{"--ca-file", s.caFile}
	}
	return binary.Environ(t, env...), flags
}

func (s *site) env(t *testing.T, hosts ...string) (env []string) {
	t.Helper()
	if s.login {
		env = append(env, binary.Login(t, hosts...))
	}
	if s.caFile != "" {
		env = append(env, "SSL_CERT_FILE="+s.caFile)
	}
	return env
}

// setup starts a site until the end of the test.
type setup struct {
	name  string
	start func(t *testing.T) *site
	// most bounds what TestResets forwards, in images. A registry that keeps
	// what it received needs no more than one; elsewhere each break costs the
	// request under way, or on some the session.
	most float64
	// slow sites are in the suite's long form: RPUSH_MATRIX=long. Otherwise
	// TestResets leaves out distribution 2, and TestChaos has fewer runs.
	slow bool
}

func isLong() bool { return os.Getenv("RPUSH_MATRIX") == "long" }

func direct(tool string, o realreg.Options) func(t *testing.T) *site {
	return func(t *testing.T) *site {
		o := o
		o.Tool = tool
		r := realreg.Start(t, o)
		return &site{addr: r.Addr, caFile: r.CAFile, login: o.BasicAuth,
			restart: func() error { return r.Restart(context.Background()) }}
	}
}

func behind(tool string, o nginx.Options) func(t *testing.T) *site {
	return func(t *testing.T) *site {
		s := direct(tool, realreg.Options{})(t)
		n := nginx.Start(t, s.addr, o)
		s.addr, s.caFile, s.login = n.Addr, n.CAFile, o.BasicAuth
		return s
	}
}

func behindHAProxy(tool string, o haproxy.Options) func(t *testing.T) *site {
	return func(t *testing.T) *site {
		s := direct(tool, realreg.Options{})(t)
		s.addr = haproxy.Start(t, s.addr, o).Addr
		return s
	}
}

func withTokens(t *testing.T) *site {
	s, _ := tokenSite(t)
	return s
}

// tokenSite's tokens live for two seconds.
func tokenSite(t *testing.T) (*site, *tokens.Server) {
	server := tokens.Start(t, 2*time.Second)
	s := direct(three, realreg.Options{Token: server.Auth()})(t)
	s.login = true
	return s, server
}

func onS3(tool string, noRedirect bool) func(t *testing.T) *site {
	return func(t *testing.T) *site {
		s := realreg.StartS3(t)
		s.NoRedirect = noRedirect
		if tool == three {
			s.PartSize = 5 * mib // the least that S3 takes
		}
		at := direct(tool, realreg.Options{S3: s})(t)
		at.noEmpty = tool == two
		return at
	}
}

func withRedis(t *testing.T) *site {
	return direct(three, realreg.Options{Redis: realreg.StartRedis(t)})(t)
}

// inProcess is go-containerregistry's registry. A restart keeps its memory.
func inProcess(t *testing.T) *site {
	handler := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	var srv *http.Server
	serve := func(addr string) (string, error) {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return "", err
		}
		srv = &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
		go srv.Serve(ln)
		return ln.Addr().String(), nil
	}
	addr, err := serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	return &site{addr: addr, restart: func() error {
		srv.Close()
		time.Sleep(300 * time.Millisecond)
		_, err := serve(addr)
		return err
	}}
}

// The proxies people put before a registry. The last one is that of the report
// rpush was written for.
var fronts = []struct {
	name string
	o    nginx.Options
}{
	{"buffering", nginx.Options{}},
	{"unbuffered", nginx.Options{Unbuffered: true}},
	{"20 MiB limit", nginx.Options{MaxBody: 20 * mib}},
	{"TLS and password", reported},
}

var reported = nginx.Options{TLS: true, BasicAuth: true}

func setups() []setup {
	all := []setup{
		{name: "distribution 3", start: direct(three, realreg.Options{}), most: 1.05},
		{name: "distribution 3, tokens", start: withTokens, most: 1.05},
		{name: "distribution 3, Redis", start: withRedis, most: 1.05},
		{name: "distribution 2", start: direct(two, realreg.Options{}), most: 2},
		{name: "go-containerregistry", start: inProcess, most: 2},
		{name: "distribution 3 on S3", start: onS3(three, false), most: 1.5, slow: true},
		{name: "distribution 3 on S3, no redirects", start: onS3(three, true), most: 1.5, slow: true},
		{name: "distribution 2 on S3", start: onS3(two, false), most: 2, slow: true},
		{name: "distribution 2 on S3, no redirects", start: onS3(two, true), most: 2, slow: true},
	}
	all = append(all,
		setup{name: "distribution 3 behind HAProxy", start: behindHAProxy(three, haproxy.Options{}), most: 1.25, slow: true},
		setup{name: "distribution 2 behind HAProxy", start: behindHAProxy(two, haproxy.Options{}), most: 2, slow: true})
	for _, f := range fronts {
		most := 2.0
		if f.o.Unbuffered {
			most = 1.05
		}
		all = append(all,
			setup{name: "distribution 3 behind nginx, " + f.name, start: behind(three, f.o), most: most},
			setup{name: "distribution 2 behind nginx, " + f.name, start: behind(two, f.o), most: 2})
	}
	return all
}

// excerpt is the beginning and the end of a long log.
func excerpt(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	if len(lines) > 160 {
		lines = append(append(lines[:80:80], "..."), lines[len(lines)-80:]...)
	}
	return strings.Join(lines, "\n")
}
