// SPDX-License-Identifier: Apache-2.0

// Package realreg runs the registry of the distribution project as a process,
// on loopback and a directory, for tests against the real thing.
package realreg

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
)

// The user of Options.BasicAuth.
const (
	User     = "ci"
	Password = "secret"

	htpasswd = User + ":$2b$05$qv9N8muHxMCa3BJbIF2JguD9pzlN0c4/cBjLPiOZrd5xeXBhzJjUy\n"
)

// Options of a registry. The zero value is plain HTTP without authorisation.
type Options struct {
	// Tool is the binary Start looks for; empty is "registry" (distribution 3).
	// Debian's package of distribution 2.8 calls it "docker-registry".
	Tool string
	// Secret signs the state of upload sessions. Without one every process
	// makes its own, so that a Restart invalidates the sessions' locations.
	Secret string
	// TLS serves HTTPS with a certificate of an authority made for the
	// occasion, see Registry.CAFile.
	TLS bool
	// Names and addresses are in that certificate beside those of loopback.
	Names []string
	// BasicAuth asks for User and Password.
	BasicAuth bool
	// RelativeURLs makes the locations relative.
	RelativeURLs bool
	// Token, when set, asks for bearer tokens.
	Token *TokenAuth
	// Redis, when set, is the host:port of the cache of blob descriptors.
	Redis string
	// S3, when set, is where everything is stored, instead of a directory.
	S3 *S3
	// Addr, when set, is where it listens, instead of a free port of loopback.
	Addr string
	// Through, when set, is a command that runs the one that follows it:
	// ip netns exec NAME. Dial is then how to get there.
	Through []string
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

// TokenAuth says whose tokens a registry believes.
type TokenAuth struct {
	Realm   string // URL the client is sent to
	Service string
	Issuer  string
	CAFile  string // PEM of the authority behind the key that signs
}

// Registry is a process. Its methods may be called from any goroutine.
type Registry struct {
	// Addr is host:port, the same after Restart.
	Addr string
	// Root is the storage directory.
	Root string
	// CAFile is the PEM file of the authority with Options.TLS, else empty.
	CAFile string

	bin, dir string
	through  []string
	client   *http.Client

	mu   sync.Mutex
	proc *process.Process
}

// Start runs a registry until the end of the test. Without the binary the test
// is skipped, see Tool.
func Start(t TB, o Options) *Registry {
	t.Helper()
	name := o.Tool
	if name == "" {
		name = "registry"
	}
	bin := Tool(t, name)
	r, err := Run(context.Background(), bin, t.TempDir(), o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		r.Stop()
		if t.Failed() {
			t.Logf("the registry's log:\n%s", r.Log())
		}
	})
	return r
}

// Run starts the binary bin with everything it keeps in dir, and returns when
// it answers. The context bounds the start only; call Stop.
func Run(ctx context.Context, bin, dir string, o Options) (*Registry, error) {
	r := &Registry{bin: bin, dir: dir, Root: filepath.Join(dir, "storage"), client: &http.Client{Timeout: time.Second}}
	r.through = o.Through
	tr := &http.Transport{DisableKeepAlives: true, DialContext: o.Dial}
	r.client.Transport = tr
	if err := os.MkdirAll(r.Root, 0o755); err != nil {
		return nil, err
	}
	if o.TLS {
		var err error
		if r.CAFile, err = MakeCertificates(dir, o.Names...); err != nil {
			return nil, fmt.Errorf("realreg: %w", err)
		}
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	if o.BasicAuth {
		if err := os.WriteFile(r.path("htpasswd"), []byte(htpasswd), 0o600); err != nil {
			return nil, err
		}
	}
	start := func() (err error) {
		if r.Addr = o.Addr; r.Addr == "" {
			if r.Addr, err = process.FreePort(); err != nil {
				return err
			}
		}
		if err := os.WriteFile(r.path("config.yml"), []byte(r.config(o)), 0o600); err != nil {
			return err
		}
		return r.start(ctx)
	}
	if err := process.OnFreePort(start, r.Log); err != nil {
		return nil, fmt.Errorf("realreg: %w", err)
	}
	return r, nil
}

func (r *Registry) path(name string) string { return filepath.Join(r.dir, name) }

// config is YAML in a form that the quoting of Go strings fits.
func (r *Registry) config(o Options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 0.1\nlog:\n  level: info\n  formatter: json\n  accesslog:\n    disabled: false\n")
	fmt.Fprintf(&b, "storage:\n")
	if o.S3 != nil {
		b.WriteString(o.S3.config())
	} else {
		fmt.Fprintf(&b, "  filesystem:\n    rootdirectory: %q\n", r.Root)
	}
	fmt.Fprintf(&b, "  delete:\n    enabled: true\n")
	fmt.Fprintf(&b, "  maintenance:\n    uploadpurging:\n      enabled: false\n")
	if o.Redis != "" {
		fmt.Fprintf(&b, "  cache:\n    blobdescriptor: redis\n")
	}
	fmt.Fprintf(&b, "http:\n  addr: %q\n  relativeurls: %t\n", r.Addr, o.RelativeURLs)
	if o.Secret != "" {
		fmt.Fprintf(&b, "  secret: %q\n", o.Secret)
	}
	if o.TLS {
		fmt.Fprintf(&b, "  tls:\n    certificate: %q\n    key: %q\n", r.path("server.pem"), r.path("server.key"))
	}
	if o.BasicAuth {
		fmt.Fprintf(&b, "auth:\n  htpasswd:\n    realm: realreg\n    path: %q\n", r.path("htpasswd"))
	}
	if a := o.Token; a != nil {
		fmt.Fprintf(&b, "auth:\n  token:\n    realm: %q\n    service: %q\n    issuer: %q\n    rootcertbundle: %q\n",
			a.Realm, a.Service, a.Issuer, a.CAFile)
	}
	if o.Redis != "" { // distribution 2 reads addr, 3 reads addrs
		fmt.Fprintf(&b, "redis:\n  addr: %q\n  addrs: [%q]\n", o.Redis, o.Redis)
	}
	return b.String()
}

// URL is the base of the registry, without a slash at the end.
func (r *Registry) URL() string {
	if r.CAFile != "" {
		return "https://" + r.Addr
	}
	return "http://" + r.Addr
}

// start runs the process and waits until it answers. The files it writes to
// are its own, so that no goroutine has to copy.
func (r *Registry) start(ctx context.Context) error {
	access, err := os.OpenFile(r.path("access.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer access.Close()
	log, err := os.OpenFile(r.path("registry.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(slices.Clone(r.through), r.bin, "serve", r.path("config.yml"))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = access, log
	// The AWS SDK takes AWS_ variables over the configuration, and distribution 2
	// does not start with a bundle of its own kind of authorities.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	cmd.Env = append(cmd.Env, "OTEL_TRACES_EXPORTER=none")
	p, err := process.Start(ctx, cmd, r.answers)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.proc = p
	r.mu.Unlock()
	return nil
}

func (r *Registry) answers(ctx context.Context) bool {
	return process.Answers(r.client, r.URL()+"/v2/", func(res *http.Response) bool {
		return res.StatusCode == http.StatusOK || res.StatusCode == http.StatusUnauthorized
	})(ctx)
}

// Stop ends the process, softly if it goes within a second.
func (r *Registry) Stop() { r.end(os.Interrupt) }

// Kill ends the process as a crash does.
func (r *Registry) Kill() { r.end(os.Kill) }

func (r *Registry) end(sig os.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc != nil {
		r.proc.End(sig, time.Second)
	}
}

// Restart kills the process and starts it on the same address and storage.
func (r *Registry) Restart(ctx context.Context) error {
	r.Kill()
	var err error
	for range 5 { // the port may be held for a moment
		if err = r.start(ctx); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("realreg: %w: %s", err, process.LastLine(r.Log()))
}

// BlobPath is the file a committed blob is in.
func (r *Registry) BlobPath(digest string) string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	if len(hex) < 2 {
		hex += "__" // nowhere
	}
	return filepath.Join(r.Root, "docker", "registry", "v2", "blobs", algorithm, hex[:2], hex, "data")
}

// Log is what the registry wrote to stderr.
func (r *Registry) Log() string {
	b, _ := os.ReadFile(r.path("registry.log"))
	return string(b)
}

// Access is a line of the access log.
type Access struct {
	Method    string
	Path      string // with the query
	Status    int
	Bytes     int64 // of the answer
	UserAgent string
}

// The combined log format; the query of an upload may be long but has no space.
var accessLine = regexp.MustCompile(`^\S+ \S+ \S+ \[[^]]*\] "(\S+) (\S+) [^"]*" (\d+) (\d+) "[^"]*" "([^"]*)"$`)

// AccessLog is every request served, over all restarts. A request is logged
// when it ends, so one just answered may come a moment late.
func (r *Registry) AccessLog() ([]Access, error) {
	b, err := os.ReadFile(r.path("access.log"))
	if err != nil {
		return nil, err
	}
	var log []Access
	for line := range strings.Lines(string(b)) {
		m := accessLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || m[5] == process.Probe {
			continue
		}
		status, err1 := strconv.Atoi(m[3])
		size, err2 := strconv.ParseInt(m[4], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		log = append(log, Access{Method: m[1], Path: m[2], Status: status, Bytes: size, UserAgent: m[5]})
	}
	return log, nil
}
