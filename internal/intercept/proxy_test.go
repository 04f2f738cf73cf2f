// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a proxy whose own hosts say where a request was for.
func start(t *testing.T, o Options) *Proxy {
	t.Helper()
	if o.Handler == nil {
		o.Handler = func(_ context.Context, at *url.URL) (http.Handler, error) {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s|%s|%s|%s|%q", at, r.Method, r.URL.RequestURI(), b, r.Header["Proxy-Authorization"])
			}), nil
		}
	}
	p, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// through is a client that uses the proxy and trusts the certificates.
func through(t *testing.T, proxy string, pems ...[]byte) *http.Client {
	t.Helper()
	u, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, b := range pems {
		pool.AppendCertsFromPEM(b)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func fetch(t *testing.T, c *http.Client, method, at, body string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return fmt.Sprintf("%d %s", res.StatusCode, b), err
}

func TestServesItsOwnHosts(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example", "other.example:5000", "192.0.2.7", "[2001:db8::1]:5000"}})
	c := through(t, p.URL(), p.PEM())
	for at, want := range map[string]string{
		"https://reg.example/v2/":           "https://reg.example",
		"https://reg.example:443/v2/":       "https://reg.example",
		"http://reg.example/v2/":            "http://reg.example",
		"https://other.example:5000/v2/":    "https://other.example:5000",
		"http://other.example:5000/v2/":     "http://other.example:5000",
		"https://192.0.2.7/v2/":             "https://192.0.2.7",
		"https://[2001:db8::1]:5000/v2/":    "https://[2001:db8::1]:5000",
		"https://REG.example/v2/a%2Fb?c=%2": "https://REG.example",
	} {
		got, err := fetch(t, c, http.MethodPut, at, "body")
		_, uri, _ := strings.Cut(at, "/v2/")
		uri = "/v2/" + uri
		if want := fmt.Sprintf(`200 %s|PUT|%s|body|[]`, want, uri); err != nil || !strings.EqualFold(got, want) {
			t.Errorf("%s: got %q, %v, want %q", at, got, err, want)
		}
	}
}

// A client that speaks plain HTTP inside of CONNECT, as some do, is served too.
func TestPlainHTTPInsideConnect(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example:5000"}})
	u, _ := url.Parse(p.URL())
	c, err := connectThrough(t.Context(), dial(t, u.Host), u, "reg.example:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /v2/ HTTP/1.1\r\nHost: reg.example:5000\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(c)
	if !strings.Contains(string(b), "http://reg.example:5000|GET|/v2/") {
		t.Errorf("got %q, %v", b, err)
	}
}

// A host that speaks plain HTTP looks so through the proxy as well: clients that
// may use HTTP notice it by that.
func TestPlainHostLooksPlain(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example:5000"}, Handler: func(_ context.Context, at *url.URL) (http.Handler, error) {
		if at.Scheme == "https" {
			return nil, ErrPlain
		}
		return http.NotFoundHandler(), nil
	}})
	c := through(t, p.URL(), p.PEM())
	if _, err := fetch(t, c, http.MethodGet, "https://reg.example:5000/v2/", ""); err == nil || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		t.Errorf("https: %v", err)
	}
	if got, err := fetch(t, c, http.MethodGet, "http://reg.example:5000/v2/", ""); err != nil || !strings.HasPrefix(got, "404") {
		t.Errorf("http: %q, %v", got, err)
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Connections to one host wait for one handler, and Close does not wait until the
// host answers.
func TestCloseEndsWaitingForAHandler(t *testing.T) {
	const clients = 3
	var calls, ended atomic.Int32
	called := make(chan struct{}, clients)
	p := start(t, Options{Hosts: []string{"reg.example"}, Handler: func(ctx context.Context, _ *url.URL) (http.Handler, error) {
		calls.Add(1)
		called <- struct{}{}
		<-ctx.Done()
		ended.Add(1)
		return nil, ctx.Err()
	}})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			if got, err := fetch(t, through(t, p.URL(), p.PEM()), http.MethodGet, "https://reg.example/v2/", ""); err == nil {
				t.Errorf("got %q", got)
			}
		})
	}
	<-called
	p.Close()
	if c, e := calls.Load(), ended.Load(); c != e {
		t.Errorf("%d of %d calls go on after Close", c-e, c)
	}
	wg.Wait()
}

func TestOneCallForAHandler(t *testing.T) {
	const clients = 3
	var calls atomic.Int32
	begun, proceed := make(chan struct{}, clients), make(chan struct{})
	p := start(t, Options{Hosts: []string{"reg.example"}, Handler: func(context.Context, *url.URL) (http.Handler, error) {
		calls.Add(1)
		begun <- struct{}{}
		<-proceed
		return http.NotFoundHandler(), nil
	}})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			if got, err := fetch(t, through(t, p.URL(), p.PEM()), http.MethodGet, "https://reg.example/v2/", ""); err != nil || !strings.HasPrefix(got, "404") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	<-begun
	close(proceed)
	wg.Wait()
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls, want 1", n)
	}
}

// Close returns when no request is served any more.
func TestCloseWaitsForRequests(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			begun := make(chan struct{})
			var ended atomic.Bool
			p := start(t, Options{Hosts: []string{"reg.example"}, Handler: func(context.Context, *url.URL) (http.Handler, error) {
				return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					close(begun)
					<-r.Context().Done()
					for range 1000 {
						runtime.Gosched()
					}
					ended.Store(true)
				}), nil
			}})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = fetch(t, through(t, p.URL(), p.PEM()), http.MethodPost, scheme+"://reg.example/v2/", "")
			})
			<-begun
			p.Close()
			if !ended.Load() {
				t.Error("a request is served after Close")
			}
			wg.Wait()
		})
	}
}

// A proxy of the environment that does not answer does not keep Close waiting.
func TestCloseEndsAConnectUnderWay(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan struct{})
	go func() {
		if c, err := ln.Accept(); err == nil {
			defer c.Close()
			_, _ = http.ReadRequest(bufio.NewReader(c))
			close(asked)
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	p := start(t, Options{Forward: func(*url.URL) (*url.URL, error) { return url.Parse("http://" + ln.Addr().String()) }})
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = fetch(t, through(t, p.URL()), http.MethodGet, "https://other.example/", "") })
	<-asked
	began := time.Now()
	p.Close()
	if d := time.Since(began); d >= dialTimeout {
		t.Errorf("Close took %s", d)
	}
	wg.Wait()
}

// Connections to other hosts are not looked into: the client sees the server's
// own certificate.
func TestTunnelsOtherHosts(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	}))
	defer srv.Close()
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	large := strings.Repeat("x", 4<<20)

	for name, forward := range map[string]string{"direct": "", "through another proxy": start(t, Options{}).URL()} {
		t.Run(name, func(t *testing.T) {
			o := Options{Hosts: []string{"reg.example"}}
			if forward != "" {
				o.Forward = func(*url.URL) (*url.URL, error) { return url.Parse(forward) }
			}
			p := start(t, o)
			if got, err := fetch(t, through(t, p.URL(), own), http.MethodPost, srv.URL, large); err != nil || got != "200 "+large {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if _, err := fetch(t, through(t, p.URL(), p.PEM()), http.MethodPost, srv.URL, "x"); err == nil {
				t.Error("the certificate of another host was ours")
			}
		})
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, r.Header)
	}))
	defer plain.Close()
	p := start(t, Options{Hosts: []string{"reg.example"}})
	got, err := fetch(t, through(t, p.URL()), http.MethodGet, plain.URL, "")
	if err != nil || !strings.Contains(got, strings.TrimPrefix(plain.URL, "http://")) || strings.Contains(got, "Proxy-") || strings.Contains(got, "Forwarded") {
		t.Errorf("got %q, %v", got, err)
	}
}

// Plain HTTP to other hosts is passed on as it is.
func TestPassesPlainHTTPOnUnchanged(t *testing.T) {
	forwarded := http.Header{
		"Forwarded": {"for=192.0.2.1"}, "X-Forwarded-For": {"192.0.2.1", "192.0.2.2"},
		"X-Forwarded-Host": {"a.example"}, "X-Forwarded-Proto": {"https"},
	}
	const query = "a=1;b=%zz&c=+&&d"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != query {
			t.Errorf("query: got %q, want %q", r.URL.RawQuery, query)
		}
		for k, want := range forwarded {
			if got := r.Header[k]; !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", k, got, want)
			}
		}
	}))
	defer srv.Close()
	p := start(t, Options{Hosts: []string{"reg.example"}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = forwarded.Clone()
	res, err := through(t, p.URL()).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

// Others on this machine can connect to the port, but not use it.
func TestStrangersAreRefused(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example"}})
	u, _ := url.Parse(p.URL())
	for name, user := range map[string]*url.Userinfo{"nobody": nil, "a wrong password": url.UserPassword("rpush", "x")} {
		v := *u
		v.User = user
		if got, err := fetch(t, through(t, v.String()), http.MethodGet, "http://reg.example/v2/", ""); err != nil || !strings.HasPrefix(got, "407 ") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if _, err := fetch(t, through(t, v.String(), p.PEM()), http.MethodGet, "https://reg.example/v2/", ""); err == nil {
			t.Errorf("%s got a tunnel", name)
		}
	}
}

func TestRefusesWhatIsNoHost(t *testing.T) {
	p := start(t, Options{})
	u, _ := url.Parse(p.URL())
	for _, to := range []string{"reg.example", "reg.example:", "reg.example:0", "reg.example:99999", ":443"} {
		if c, err := connectThrough(t.Context(), dial(t, u.Host), u, to); err == nil {
			c.Close()
			t.Errorf("CONNECT %q was taken", to)
		}
	}
}

// A request for an https URL that comes without CONNECT must not go on in the
// clear.
func TestRefusesHTTPSWithoutConnect(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example"}})
	u, _ := url.Parse(p.URL())
	password, _ := u.User.Password()
	for _, at := range []string{"https://reg.example/v2/", "https://other.example/", "ftp://reg.example/"} {
		c := dial(t, u.Host)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		basic := base64.StdEncoding.EncodeToString([]byte("rpush:" + password))
		req.Header.Set("Proxy-Authorization", "Basic "+basic)
		if err := req.WriteProxy(c); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s, want 400", at, res.Status)
		}
	}
}

// Whoever got hold of the authority's key could vouch for the named hosts only.
func TestAuthorityIsConstrained(t *testing.T) {
	for _, tt := range []struct {
		hosts     []string
		good, bad []string
	}{
		{[]string{"reg.example"}, []string{"reg.example"}, []string{"other.example", "192.0.2.1", "2001:db8::1"}},
		{[]string{"192.0.2.1"}, []string{"192.0.2.1"}, []string{"192.0.2.2", "reg.example", "2001:db8::1"}},
		{[]string{"2001:db8::1", "reg.example"}, []string{"2001:db8::1", "reg.example"}, []string{"2001:db8::2", "example"}},
	} {
		a, err := newAuthority(tt.hosts)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(a.pem())
		verify := func(host string) error {
			c, err := a.certificate(host)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(c.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host})
			return err
		}
		for _, h := range tt.good {
			if err := verify(h); err != nil {
				t.Errorf("%v: %s: %v", tt.hosts, h, err)
			}
		}
		for _, h := range tt.bad {
			if verify(h) == nil {
				t.Errorf("%v: %s is vouched for", tt.hosts, h)
			}
		}
		if d := time.Until(a.cert.NotAfter); d > lifetime {
			t.Errorf("it lives for %s", d)
		}
	}
}

func TestEnvironment(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example"}})
	dir := t.TempDir()
	roots, aws := dir+"/roots", dir+"/aws"
	for path, content := range map[string]string{roots: "ROOTS", aws: "AWS"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env, err := p.Environment([]string{
		"HOME=/h", "SSL_CERT_FILE=" + roots, "AWS_CA_BUNDLE=" + aws, "https_proxy=http://corp.example:3128", "NO_PROXY=reg.example",
	}, dir, []byte("EXTRA"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		if _, twice := got[k]; twice {
			t.Errorf("%s is there twice", k)
		}
		got[k] = v
	}
	for _, k := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		if got[k] != p.URL() {
			t.Errorf("%s=%s", k, got[k])
		}
	}
	for _, k := range []string{"NO_PROXY", "no_proxy", "PIP_CERT"} {
		if _, ok := got[k]; ok {
			t.Errorf("%s is set", k)
		}
	}
	if got["HOME"] != "/h" {
		t.Error("HOME is gone")
	}
	for k, want := range map[string]string{
		"SSL_CERT_FILE": "ROOTS\nEXTRA\n", "CURL_CA_BUNDLE": "ROOTS\nEXTRA\n", "REQUESTS_CA_BUNDLE": "ROOTS\nEXTRA\n",
		"AWS_CA_BUNDLE": "AWS\nEXTRA\n", "NODE_EXTRA_CA_CERTS": "EXTRA\n",
	} {
		b, err := os.ReadFile(got[k])
		if err != nil || !bytes.Equal(b, slices.Concat([]byte(want), p.PEM())) {
			t.Errorf("%s: %q, %v", k, b, err)
		}
	}
}

// A command that runs with an SSL_CERT_FILE that is not there runs through the
// gateway too.
func TestEnvironmentWithoutTheNamedFile(t *testing.T) {
	p := start(t, Options{Hosts: []string{"reg.example"}})
	dir := t.TempDir()
	env, err := p.Environment([]string{"SSL_CERT_FILE=" + dir + "/missing"}, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "SSL_CERT_FILE=") })
	if i < 0 {
		t.Fatalf("SSL_CERT_FILE is not set: %q", env)
	}
	if b, err := os.ReadFile(strings.TrimPrefix(env[i], "SSL_CERT_FILE=")); err != nil || !bytes.Equal(b, p.PEM()) {
		t.Errorf("got %q, %v", b, err)
	}
}
