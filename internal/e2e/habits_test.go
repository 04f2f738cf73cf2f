// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

// The flags that docker's, crane's and skopeo's users type do what they say.
func TestHabits(t *testing.T) {
	reg, other := realreg.Start(t, realreg.Options{}), realreg.Start(t, realreg.Options{})
	e, f := buildx(t, 5, false), buildx(t, 6, false)
	is := func(ref, want string) {
		t.Helper()
		if got := crane(t, "digest", ref); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}

	t.Run("tags", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "digest")
		out := pushes(t, nil, nil, "-t", "2", "--tag=3,"+other.Addr+"/app:4", "--digestfile", file, "--retry-times", "2", "--disable-content-trust",
			"oci:"+e.Dir, "docker://"+reg.Addr+"/app:1")
		for _, ref := range []string{reg.Addr + "/app:1", reg.Addr + "/app:2", reg.Addr + "/app:3", other.Addr + "/app:4"} {
			is(ref, e.Index.Digest)
			if !strings.Contains(out, ref+"@"+e.Index.Digest) {
				t.Errorf("stdout has no line for %s: %q", ref, out)
			}
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != e.Index.Digest {
			t.Errorf("--digestfile: %q, %v", b, err)
		}
	})
	t.Run("all tags", func(t *testing.T) {
		pushes(t, nil, nil, "--all-tags", "docker://"+reg.Addr+"/app", reg.Addr+"/everything")
		for _, tag := range []string{"1", "2", "3"} {
			is(reg.Addr+"/everything:"+tag, e.Index.Digest)
		}
		if _, stderr, exit := pushed(t, nil, nil, "-a", "oci:"+e.Dir, reg.Addr+"/x:1"); exit != 2 {
			t.Errorf("a tag with --all-tags: exit %d, %s", exit, stderr)
		}
	})
	t.Run("platform", func(t *testing.T) {
		pushes(t, nil, nil, "--platform", "linux/amd64", "oci:"+e.Dir, reg.Addr+"/one:1")
		is(reg.Addr+"/one:1", e.AMD64.Digest)
		pushes(t, nil, nil, "--platform=linux/arm64", "docker://"+reg.Addr+"/app:1", reg.Addr+"/arm:1")
		is(reg.Addr+"/arm:1", e.ARM64.Digest)
		pushes(t, nil, nil, "--platform=linux/arm64,linux/amd64", "oci:"+e.Dir, reg.Addr+"/two:1")
		var idx struct{ Manifests []ocilayout.Entry }
		if err := json.Unmarshal([]byte(crane(t, "manifest", reg.Addr+"/two:1")), &idx); err != nil || len(idx.Manifests) != 4 {
			t.Errorf("an index of two platforms and their attestations: %+v, %v", idx, err)
		}
		crane(t, "validate", "--remote", reg.Addr+"/one:1")
		_, stderr, exit := pushed(t, nil, nil, "--platform", "windows/amd64", "oci:"+e.Dir, reg.Addr+"/one:1")
		if exit != 1 || !strings.Contains(stderr, "linux/amd64, linux/arm64/v8") {
			t.Errorf("no such platform: exit %d, %s", exit, stderr)
		}
	})
	t.Run("a part of a layout", func(t *testing.T) {
		part := buildx(t, 7, false)
		if err := os.Remove(ocilayout.BlobPath(part.Dir, part.ARM64.Digest)); err != nil {
			t.Fatal(err)
		}
		pushes(t, nil, nil, "--platform", "linux/amd64", "oci:"+part.Dir, reg.Addr+"/part:1")
		is(reg.Addr+"/part:1", part.AMD64.Digest)
		_, stderr, exit := pushed(t, nil, nil, "oci:"+part.Dir, reg.Addr+"/part:2")
		if exit != 1 || !strings.Contains(stderr, "--platform") {
			t.Errorf("a platform is missing: exit %d, %s", exit, stderr)
		}
	})
	t.Run("no-clobber", func(t *testing.T) {
		pushes(t, nil, nil, "--no-clobber", "oci:"+e.Dir, reg.Addr+"/app:1") // the same
		_, stderr, exit := pushed(t, nil, nil, "--no-clobber", "-t", "1", "oci:"+f.Dir, reg.Addr+"/app:new")
		if exit != 1 || !strings.Contains(stderr, "exists already") || !strings.Contains(stderr, e.Index.Digest) {
			t.Errorf("exit %d, %s", exit, stderr)
		}
		is(reg.Addr+"/app:1", e.Index.Digest)
		pushes(t, nil, nil, "--no-clobber", "oci:"+f.Dir, reg.Addr+"/app:5")
		is(reg.Addr+"/app:5", f.Index.Digest)
	})
	t.Run("dry-run", func(t *testing.T) {
		out := pushes(t, nil, nil, "--dry-run", "oci:"+f.Dir, other.Addr+"/dry:1")
		if n := strings.Count(out, "missing"); n != 10+5 {
			t.Errorf("%d lines say missing, want 15:\n%s", n, out)
		}
		log, err := other.AccessLog()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range log {
			if strings.HasPrefix(a.Path, "/v2/dry/") && a.Method != http.MethodHead && a.Method != http.MethodGet {
				t.Errorf("%s %s", a.Method, a.Path)
			}
		}
		if out := pushes(t, nil, nil, "--dry-run", "oci:"+f.Dir, reg.Addr+"/app:5"); strings.Contains(out, "missing") {
			t.Errorf("all is there:\n%s", out)
		}
	})
	t.Run("content trust", func(t *testing.T) {
		for _, c := range []struct {
			env  string
			args []string
			exit int
		}{
			{"DOCKER_CONTENT_TRUST=1", nil, 2}, {"DOCKER_CONTENT_TRUST=1", []string{"--disable-content-trust"}, 0},
			{"DOCKER_CONTENT_TRUST=0", nil, 0}, {"X=", []string{"--disable-content-trust=false"}, 2},
		} {
			_, stderr, exit := pushed(t, nil, []string{c.env}, append(c.args, "oci:"+e.Dir, reg.Addr+"/app:1")...)
			if exit != c.exit || exit != 0 && !strings.Contains(stderr, "cosign") {
				t.Errorf("%s %v: exit %d, want %d: %s", c.env, c.args, exit, c.exit, stderr)
			}
		}
	})
}

// Credentials are taken from wherever docker's, podman's and skopeo's users have
// them, go to the registry that they are for, and are named when they fail.
func TestSignIn(t *testing.T) {
	from, to := realreg.Start(t, realreg.Options{BasicAuth: true}), realreg.Start(t, realreg.Options{BasicAuth: true})
	open := realreg.Start(t, realreg.Options{})
	e := buildx(t, 8, false)
	auths := func(password string, hosts ...string) string {
		all := map[string]map[string]string{}
		for _, h := range hosts {
			all[h] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(realreg.User + ":" + password))}
		}
		b, err := json.Marshal(map[string]any{"auths": all})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "auth.json")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good, both := file(auths(realreg.Password, to.Addr)), file(auths(realreg.Password, to.Addr, from.Addr))
	wrong := file(auths("wrong", to.Addr))
	creds := realreg.User + ":" + realreg.Password
	layout := "oci:" + e.Dir
	for i, c := range []struct {
		name  string
		env   string
		stdin string
		args  []string
		says  string // of a failure
	}{
		{name: "creds", args: []string{"--creds", creds, layout}},
		{name: "dest-creds", args: []string{"--dest-creds", creds, layout}},
		{name: "a variable", env: "RPUSH_CREDS=" + creds, args: []string{layout}},
		{name: "password-stdin", stdin: realreg.Password + "\n", args: []string{"--username", realreg.User, "--password-stdin", layout}},
		{name: "authfile", args: []string{"--authfile", good, layout}},
		{name: "REGISTRY_AUTH_FILE", env: "REGISTRY_AUTH_FILE=" + good, args: []string{layout}},
		{name: "DOCKER_AUTH_CONFIG", env: "DOCKER_AUTH_CONFIG=" + auths(realreg.Password, to.Addr), args: []string{layout}},
		{name: "nothing", args: []string{layout}, says: "no credentials found"},
		{name: "wrong creds", args: []string{"--creds", realreg.User + ":no", layout}, says: "credentials: --creds"},
		{name: "a wrong variable", env: "RPUSH_CREDS=ci:no", args: []string{layout}, says: "credentials: RPUSH_CREDS"},
		{name: "a wrong file", env: "REGISTRY_AUTH_FILE=" + good, args: []string{"--authfile", wrong, layout}, says: wrong},
		{name: "none", env: "REGISTRY_AUTH_FILE=" + good, args: []string{"--no-creds", layout}, says: "credentials: --no-creds"},
		{name: "a token", args: []string{"--registry-token", "x", layout}, says: "credentials: --registry-token"},
		{name: "a missing file", args: []string{"--authfile", "/no/such/file", layout}, says: "/no/such/file"},
		{name: "source", args: []string{"--creds", creds, "--src-creds", creds, "docker://" + from.Addr + "/app:1"}},
		{name: "both from a file", args: []string{"--authfile", both, "--src-authfile", both, "docker://" + from.Addr + "/app:1"}},
		{name: "not the source's", args: []string{"--creds", creds, "docker://" + from.Addr + "/app:1"}, says: "docker login " + from.Addr},
		{name: "none at the source", args: []string{"--creds", creds, "docker://" + from.Addr + "/app:1"}, says: "docker login " + from.Addr + " or --src-creds"},
		{name: "wrong at the source", args: []string{"--creds", creds, "--src-creds", "ci:no", "docker://" + from.Addr + "/app:1"}, says: "credentials: --src-creds"},
		{name: "an open source", args: []string{"--creds", creds, "docker://" + open.Addr + "/app:1"}},
	} {
		if i == 0 {
			pushes(t, nil, nil, "--creds", creds, layout, from.Addr+"/app:1")
			pushes(t, nil, nil, layout, open.Addr+"/app:1")
		}
		t.Run(c.name, func(t *testing.T) {
			_, stderr, exit := pushed(t, strings.NewReader(c.stdin), []string{c.env}, append(c.args, fmt.Sprintf("%s/app%d:1", to.Addr, i))...)
			if want := map[bool]int{true: 0, false: 1}[c.says == ""]; exit != want || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, want %d and %q: %s", exit, want, c.says, stderr)
			}
			if strings.Contains(stderr, realreg.Password) {
				t.Errorf("the password is in: %s", stderr)
			}
		})
	}
	ref := to.Addr + "/a:1"
	for _, args := range [][]string{
		{"--creds", "nopassword", layout, ref},
		{"--username", "x", layout, ref},
		{"--creds", creds, "--no-creds", layout, ref},
		{"--cert-file", "x", layout, ref},
		{"--username", "x", "--password-stdin", "-", ref},
		{"--src-creds", creds, layout, ref},
		{"--mount-from", "other.example/base", layout, ref},
		{"--username", "x", "--password-stdin", "--src-username", "x", "--src-password-stdin", "docker://" + ref, ref},
	} {
		if _, stderr, exit := pushed(t, strings.NewReader("x"), nil, args...); exit != 2 {
			t.Errorf("%v: exit %d, %s", args, exit, stderr)
		}
	}
}

// clientCertificate makes an authority, and a client's pair signed by it.
func clientCertificate(t *testing.T) (pool *x509.CertPool, cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return pool, cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// A registry with a CA of its own that asks for a client's certificate, with
// flags and with docker's and podman's directories.
func TestCertificates(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	pool, cert, key := clientCertificate(t)
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: reg.Addr})
		r.Out.Host = r.In.Host
		r.Out.Header.Set("X-Forwarded-Proto", "https")
	}})
	front.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	front.StartTLS()
	t.Cleanup(front.Close)
	host := front.Listener.Addr().String()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	write := func(dir string, files map[string][]byte) string {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	full := map[string][]byte{"ca.crt": ca, "client.cert": cert, "client.key": key}
	dir := write(filepath.Join(t.TempDir(), "certs"), full)
	home := t.TempDir()
	write(filepath.Join(home, ".config", "containers", "certs.d", host), full)
	half := write(filepath.Join(t.TempDir(), "half"), map[string][]byte{"ca.crt": ca, "client.cert": cert})
	noClient := write(filepath.Join(t.TempDir(), "none"), map[string][]byte{"ca.crt": ca})
	e := buildx(t, 9, false)
	at := func(n string) string { return filepath.Join(dir, n) }
	for i, c := range []struct {
		name string
		env  string
		args []string
		says string
	}{
		{name: "files", args: []string{"--ca-file", at("ca.crt"), "--cert-file", at("client.cert"), "--key-file", at("client.key")}},
		{name: "directory", args: []string{"--cert-dir", dir}},
		{name: "skopeo's name", args: []string{"--dest-cert-dir", dir}},
		{name: "certs.d", env: "HOME=" + home},
		{name: "insecure", args: []string{"--insecure", "--cert-file", at("client.cert"), "--key-file", at("client.key")}},
		{name: "no client certificate", args: []string{"--cert-dir", noClient}, says: "certificate required"},
		{name: "no key", args: []string{"--cert-dir", half}, says: "client.key"},
		{name: "nothing", says: "--ca-file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := slices.Concat(c.args, []string{"--retry-for", "0", "oci:" + e.Dir, fmt.Sprintf("%s/app%d:1", host, i)})
			_, stderr, exit := pushed(t, nil, []string{c.env}, args...)
			if want := map[bool]int{true: 0, false: 1}[c.says == ""]; exit != want || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, want %d and %q: %s", exit, want, c.says, stderr)
			}
		})
	}
	// From there, with the source's flags.
	pushes(t, nil, nil, "--src-cert-dir", dir, "docker://"+host+"/app0:1", reg.Addr+"/back:1")
}

// forward passes bytes from a listener to target.
func forward(t *testing.T, network, addr, target string) string {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		require.Missing(t, "%s %s: %v", network, addr, err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				d, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer d.Close()
				go func() { _, _ = io.Copy(d, c); d.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(c, d)
			}()
		}
	}()
	return ln.Addr().String()
}

func TestIPv6(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	addr := forward(t, "tcp6", "[::1]:0", reg.Addr)
	e := buildx(t, 10, false)
	pushes(t, nil, nil, "oci:"+e.Dir, addr+"/app:1")
	if got := crane(t, "digest", reg.Addr+"/app:1"); got != e.Index.Digest {
		t.Errorf("digest %s, want %s", got, e.Index.Digest)
	}
}

// A proxy is used where its variable says so, for http and https, and not where
// NO_PROXY does.
func TestHTTPProxies(t *testing.T) {
	plain, secure := realreg.Start(t, realreg.Options{}), realreg.Start(t, realreg.Options{TLS: true})
	var asked, tunnels atomic.Int32
	targets := map[string]string{"plain.invalid:5000": plain.Addr, "secure.invalid:5000": secure.Addr}
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Host = targets[r.In.Host]; r.Out.Host = r.In.Host }}
	web := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			asked.Add(1)
			pass.ServeHTTP(w, r)
			return
		}
		tunnels.Add(1)
		d, err := net.Dial("tcp", targets[r.Host])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer d.Close()
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(d, rw); d.(*net.TCPConn).CloseWrite() }()
		_, _ = io.Copy(c, d)
	}))
	e := buildx(t, 11, false)
	pushes(t, nil, []string{"HTTP_PROXY=http://" + web}, "--plain-http", "oci:"+e.Dir, "plain.invalid:5000/app:1")
	pushes(t, nil, []string{"HTTPS_PROXY=http://" + web}, "--insecure", "oci:"+e.Dir, "secure.invalid:5000/app:1")
	if asked.Load() == 0 || tunnels.Load() == 0 {
		t.Errorf("%d requests and %d tunnels", asked.Load(), tunnels.Load())
	}
	if got := crane(t, "digest", plain.Addr+"/app:1"); got != e.Index.Digest {
		t.Errorf("digest %s, want %s", got, e.Index.Digest)
	}
	_, stderr, exit := pushed(t, nil, []string{"HTTP_PROXY=http://" + web, "NO_PROXY=plain.invalid"}, "--plain-http", "--retry-for", "0", "oci:"+e.Dir, "plain.invalid:5000/app:2")
	if exit == 0 {
		t.Errorf("NO_PROXY was passed over: %s", stderr)
	}
	// What a proxy says instead of connecting is its own, and no word of a registry.
	for status, want := range map[int]int{http.StatusProxyAuthRequired: 1, http.StatusForbidden: 1, http.StatusServiceUnavailable: 3} {
		closed := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) }))
		_, stderr, exit := pushed(t, nil, []string{"HTTPS_PROXY=http://" + closed}, "--insecure", "--retry-for", "1s", "oci:"+e.Dir, "secure.invalid:5000/app:3")
		if exit != want || !strings.Contains(stderr, fmt.Sprintf("the proxy %s answered %d", closed, status)) || !strings.Contains(stderr, "hint: the proxy is at fault") {
			t.Errorf("%d of the proxy: exit %d, want %d: %s", status, exit, want, stderr)
		}
	}
}
