// SPDX-License-Identifier: Apache-2.0

package realreg

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
)

// RedisOptions say how a Redis runs. The zero value is one that anyone may use,
// without TLS.
type RedisOptions struct {
	// TLS serves TLS alone, with a certificate of an authority made for the test.
	TLS bool
	// User is a line of an ACL file, "user rpush on >password ...". The default user
	// is then off.
	User string
}

// Redis is a redis-server that keeps nothing on disk.
type Redis struct {
	// Addr is its host and port.
	Addr string
	// CAFile is the PEM file of the authority with RedisOptions.TLS, else empty.
	CAFile string

	bin, dir string
	o        RedisOptions
	roots    *x509.CertPool
	p        *process.Process
}

// StartRedis runs Redis until the end of the test, for Options.Redis. Without
// the binary the test is skipped, see Tool.
func StartRedis(t TB) (addr string) {
	t.Helper()
	return RunRedis(t, RedisOptions{}).Addr
}

// RunRedis runs Redis until the end of the test. Without the binary the test is
// skipped, see Tool.
func RunRedis(t TB, o RedisOptions) *Redis {
	t.Helper()
	r := &Redis{bin: Tool(t, "redis-server"), dir: t.TempDir(), o: o}
	if o.TLS {
		var err error
		if r.CAFile, err = MakeCertificates(r.dir); err != nil {
			t.Fatalf("%v", err)
		}
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			t.Fatalf("%v", err)
		}
		r.roots = x509.NewCertPool()
		r.roots.AppendCertsFromPEM(pem)
	}
	if o.User != "" {
		if err := os.WriteFile(filepath.Join(r.dir, "users.acl"), []byte("user default off\n"+o.User+"\n"), 0o600); err != nil {
			t.Fatalf("%v", err)
		}
	}
	start := func() (err error) {
		if r.Addr, err = process.FreePort(); err != nil {
			return err
		}
		return r.run()
	}
	if err := process.OnFreePort(start, logFile(r.dir, redisLog)); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(r.Stop)
	return r
}

// Stop ends Redis. It may be called again.
func (r *Redis) Stop() { r.p.End(os.Interrupt, 2*time.Second) }

// Signal sends one to the process.
func (r *Redis) Signal(t TB, s os.Signal) {
	t.Helper()
	if err := r.p.Signal(s); err != nil {
		t.Fatalf("%v", err)
	}
}

// Restart starts Redis again at its address, empty.
func (r *Redis) Restart(t TB) {
	t.Helper()
	r.Stop()
	if err := r.run(); err != nil {
		t.Fatalf("%v", err)
	}
}

const redisLog = "redis.log"

func (r *Redis) run() error {
	out, err := os.Create(filepath.Join(r.dir, redisLog))
	if err != nil {
		return err
	}
	defer out.Close()
	host, port, _ := net.SplitHostPort(r.Addr)
	args := []string{"--bind", host, "--dir", r.dir, "--save", "", "--appendonly", "no"}
	if r.o.TLS {
		args = append(args, "--port", "0", "--tls-port", port, "--tls-auth-clients", "no",
			"--tls-cert-file", filepath.Join(r.dir, "server.pem"), "--tls-key-file", filepath.Join(r.dir, "server.key"), "--tls-ca-cert-file", r.CAFile)
	} else {
		args = append(args, "--port", port)
	}
	if r.o.User != "" {
		args = append(args, "--aclfile", filepath.Join(r.dir, "users.acl"))
	}
	cmd := exec.Command(r.bin, args...)
	cmd.Stdout, cmd.Stderr = out, out
	r.p, err = process.Start(context.Background(), cmd, r.answers)
	return err
}

// answers reports whether Redis answers, if only that it wants a password.
func (r *Redis) answers(ctx context.Context) bool {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addr)
	if err != nil {
		return false
	}
	defer c.Close()
	if r.o.TLS {
		host, _, _ := net.SplitHostPort(r.Addr)
		c = tls.Client(c, &tls.Config{RootCAs: r.roots, ServerName: host})
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "PING\r\n")
	answer, _ := bufio.NewReader(c).ReadString('\n')
	return strings.HasPrefix(answer, "+PONG") || strings.HasPrefix(answer, "-NOAUTH")
}
