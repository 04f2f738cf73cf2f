// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

const (
	mib = 1 << 20

	regHost = "reg.test"
	// itself stands for the registry's own address.
	itself = "itself.test"
)

// site is a scripted registry, and the gateway that serves it.
type site struct {
	t        *testing.T
	reg      *scripted.Registry
	upstream *httptest.Server
	addr     string // of the gateway

	acceptDir string
	srv       *httptest.Server
	server    *gateway.Server

	mu   sync.Mutex
	seen []*http.Request // at the registry, without bodies
}

func newSite(t *testing.T, ro scripted.Options, so gateway.ServerOptions, wrap func(http.Handler) http.Handler, tries ...int) *site {
	t.Helper()
	s := &site{t: t, reg: scripted.New(ro), acceptDir: so.AcceptDir}
	var h http.Handler = s.reg
	if wrap != nil {
		h = wrap(h)
	}
	s.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.upstream.Close)
	u, err := url.Parse(s.upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	if so.Upstream == itself {
		so.Upstream = u.Host
		for i, a := range so.Allow {
			so.Allow[i] = strings.Replace(a, itself, u.Host, 1)
		}
		so.Connect = func(context.Context, string) (gateway.Upstream, error) { return gateway.Upstream{URL: u}, nil }
	}
	if so.Connect == nil {
		so.Connect = func(_ context.Context, registry string) (gateway.Upstream, error) {
			if registry != regHost {
				return gateway.Upstream{}, fmt.Errorf("no connection to %s", registry)
			}
			return gateway.Upstream{URL: u}, nil
		}
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	g, err := gateway.New(gateway.Options{Tries: append(tries, 0)[0], Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	s.server, err = g.NewServer(so)
	if err != nil {
		t.Fatal(err)
	}
	s.srv = httptest.NewServer(s.server)
	t.Cleanup(s.close)
	s.addr = strings.TrimPrefix(s.srv.URL, "http://")
	return s
}

// close stops the gateway.
func (s *site) close() {
	s.srv.Close()
	s.server.Close()
}

// requests returns what reached the registry since the last call.
func (s *site) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.seen
	s.seen = nil
	return out
}

// raw sends bytes as they are, and returns the status of each answer.
func (s *site) raw(text string) (statuses []int) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return statuses
		}
		io.Copy(io.Discard, resp.Body)
		statuses = append(statuses, resp.StatusCode)
	}
}

// do sends one request to the gateway, and returns the answer.
func (s *site) do(method, path, body string, header ...string) (*http.Response, string) {
	s.t.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = s.srv.URL + path
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, string(b)
}

func (s *site) write(repo string, o ...remote.Option) {
	s.t.Helper()
	img, err := random.Image(100<<10, 3)
	if err != nil {
		s.t.Fatal(err)
	}
	ref, err := name.ParseReference(s.addr + "/" + repo + ":1")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(ref, img, o...); err != nil {
		s.t.Fatal(err)
	}
	got, err := remote.Image(ref, o...)
	if err != nil {
		s.t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		s.t.Fatal(err)
	}
	if have, err := got.Digest(); err != nil || have != want {
		s.t.Errorf("pulled %v, %v; want %v", have, err, want)
	}
	layers, err := got.Layers()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed() // verifies the digest
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			s.t.Error(err)
		}
	}
}

func TestServeOneRegistry(t *testing.T) {
	for _, style := range []scripted.LocationStyle{scripted.Absolute, scripted.Relative} {
		s := newSite(t, scripted.Options{Location: style}, gateway.ServerOptions{Upstream: regHost}, nil)
		s.write("team/app")
		for _, v := range s.reg.Violations() {
			t.Error(v)
		}
	}
}

func TestServeByPath(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{}, nil)
	s.write(regHost + "/team/app")
	if resp, _ := s.do("GET", "/v2/", ""); resp.StatusCode != 200 {
		t.Errorf("GET /v2/ got %d", resp.StatusCode)
	}
	for _, q := range s.requests() {
		if strings.Contains(q.URL.Path, regHost) {
			t.Errorf("the registry was asked for %s", q.URL.Path)
		}
	}
}

// Locations bring containerd back with the parameter ns.
func TestServeByNS(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{}, nil)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/?ns="+regHost, "")
	at := resp.Header.Get("Location")
	if resp.StatusCode != 202 || !strings.HasPrefix(at, "/v2/team/app/blobs/uploads/") || !strings.Contains(at, "ns="+regHost) {
		t.Fatalf("status %d, Location %q", resp.StatusCode, at)
	}
	const body = "hello"
	dgst := digest.FromString(body)
	sep := "&"
	resp, text := s.do("PUT", at+sep+"digest="+dgst.String(), body)
	if resp.StatusCode != 201 {
		t.Fatalf("status %d: %s", resp.StatusCode, text)
	}
	if got := resp.Header.Get("Location"); got != "/v2/team/app/blobs/"+dgst.String()+"?ns="+regHost {
		t.Errorf("the blob's Location is %q", got)
	}
	for _, q := range s.requests() {
		if q.URL.Query().Has("ns") {
			t.Errorf("the registry was sent %s", q.URL)
		}
	}
}

// Uploads elsewhere than below the repository come back to the gateway, and
// nobody can make or move such a path.
func TestSealedLocations(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host got credentials")
		}
		w.Header().Set("X-Path", r.URL.RequestURI())
		w.WriteHeader(http.StatusCreated)
	}))
	defer other.Close()
	for _, place := range []string{"/artifacts-uploads/team/7?state=a%2Bb", other.URL + "/store/7?state=a%2Bb"} {
		s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case http.MethodPost:
					w.Header().Set("Location", place)
					w.WriteHeader(http.StatusAccepted)
				case http.MethodHead: // a commit at another host is confirmed
					w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
					w.Header().Set("Content-Length", "1")
				default:
					io.Copy(io.Discard, r.Body)
					w.Header().Set("X-Path", r.URL.RequestURI())
					w.WriteHeader(http.StatusCreated)
				}
			})
		})
		resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "", "Authorization", "Basic eDp5")
		at := resp.Header.Get("Location")
		if !strings.HasPrefix(at, "/v2/team/app/blobs/uploads/rpush.") {
			t.Fatalf("Location %q", at)
		}
		dgst := digest.FromString("x").String()
		resp, _ = s.do("PUT", at+"?digest="+dgst, "x", "Authorization", "Basic eDp5")
		want := strings.TrimPrefix(place, other.URL) + "&digest=" + dgst
		if got := resp.Header.Get("X-Path"); resp.StatusCode != 201 || got != want {
			t.Errorf("status %d at %q, want 201 at %q", resp.StatusCode, got, want)
		}
		for _, bad := range []string{
			strings.Replace(at, "team/app", "team/other", 1), // another repository's
			at[:len(at)-9] + strings.Map(func(c rune) rune { return map[bool]rune{true: 'B', false: 'A'}[c == 'A'] }, at[len(at)-9:len(at)-8]) + at[len(at)-8:],
			"/v2/team/app/blobs/uploads/rpush.",
			"/v2/team/app/blobs/uploads/rpush.aHR0cDovLzE2OS4yNTQuMTY5LjI1NC8",
		} {
			s.requests()
			if resp, _ := s.do("PUT", bad+"?digest="+dgst, "x"); resp.StatusCode != 404 || len(s.requests()) != 0 {
				t.Errorf("%s: status %d", bad, resp.StatusCode)
			}
		}
	}
}

// So do the locations of a status and of a refused offset.
func TestSealedLocationsOfStatus(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Location", "/artifacts-uploads/team/7")
			w.Header().Set("Range", "0-9")
			switch r.Method {
			case http.MethodPost:
				w.WriteHeader(http.StatusAccepted)
			case http.MethodPatch:
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			case http.MethodPut:
				w.WriteHeader(http.StatusCreated)
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		})
	})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	for _, method := range []string{"GET", "HEAD", "PATCH"} {
		body := ""
		if method == "PATCH" {
			body = "xyz"
		}
		resp, _ := s.do(method, at, body, "Content-Range", "5-7")
		if got := resp.Header.Get("Location"); !strings.HasPrefix(got, "/v2/team/app/blobs/uploads/rpush.") {
			t.Errorf("%s: status %d, Location %q", method, resp.StatusCode, got)
		}
	}
}

func TestOnlyItsRegistries(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Registries: []string{regHost}}, nil)
	for path, want := range map[string]int{
		"/v2/" + regHost + "/a/manifests/1":        404, // the registry's
		"/v2/other.test/a/manifests/1":             403,
		"/v2/169.254.169.254/latest/manifests/1":   403,
		"/v2/a/manifests/1?ns=other.test":          403,
		"/v2/a/manifests/1?ns=169.254.169.254":     403,
		"/v2/?ns=other.test":                       403,
		"/v2/" + regHost + "/../x/manifests/1":     404,
		"/v2/" + regHost + "/a/manifests/1/../../": 404,
	} {
		if resp, body := s.do("GET", path, ""); resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d\n%s", path, resp.StatusCode, want, body)
		}
	}
	one := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, nil)
	if resp, _ := one.do("GET", "/v2/a/manifests/1?ns=other.test", ""); resp.StatusCode != 404 || len(one.requests()) != 0 {
		t.Errorf("another registry than the one served: %d", resp.StatusCode)
	}
}

func TestBrowsersAndStrangersAreRefused(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, nil)
	for _, header := range [][]string{
		{"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Host", "evil.example"}, {"Host", "evil.example:5077"},
	} {
		if resp, _ := s.do("GET", "/v2/", "", header...); resp.StatusCode != 403 && resp.StatusCode != 421 {
			t.Errorf("%v: %d", header, resp.StatusCode)
		}
	}
	for _, host := range []string{"localhost:5077", "127.0.0.2", "[::1]:5077", "registry.localhost"} {
		if resp, _ := s.do("GET", "/v2/", "", "Host", host); resp.StatusCode != 200 {
			t.Errorf("Host %s: %d", host, resp.StatusCode)
		}
	}
	if n := len(s.requests()); n != 4 {
		t.Errorf("%d requests reached the registry, want 4", n)
	}
}

// A client's password for the gateway reaches no registry.
func TestPasswordOfTheGateway(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{
		Upstream: regHost, Authenticate: func(_ context.Context, user, password string) (bool, error) {
			if user == "busy" {
				return false, errors.New("busy")
			}
			return user == "ci" && password == "right", nil
		},
	}, nil)
	if resp, _ := s.do("GET", "/v2/", "", "Authorization", "Basic YnVzeTp4"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a password that cannot be checked: %d", resp.StatusCode)
	}
	for _, header := range [][]string{nil, {"Authorization", "Basic Y2k6d3Jvbmc="}, {"Authorization", "Bearer x"}, {"Authorization", "Basic %%"}} {
		if resp, _ := s.do("GET", "/v2/", "", header...); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != `Basic realm="rpush gateway"` {
			t.Errorf("%v: %d %q", header, resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests of strangers reached the registry", n)
	}
	s.write("team/app", remote.WithAuth(&authn.Basic{Username: "ci", Password: "right"}))
	for _, q := range s.requests() {
		if q.Header.Get("Authorization") != "" {
			t.Fatalf("%s %s has Authorization", q.Method, q.URL.Path)
		}
	}
}

// The gateway's own credentials are for what --allow names.
func TestSignIn(t *testing.T) {
	for _, scheme := range []scripted.Scheme{scripted.Basic, scripted.Bearer} {
		s := newSite(t, scripted.Options{Auth: scripted.Auth{Scheme: scheme, User: "robot", Password: "secret", TokenRequests: 7}},
			gateway.ServerOptions{
				Upstream: itself, Allow: []string{itself + "/team"},
				Keychain: keychain{authn.FromConfig(authn.AuthConfig{Username: "robot", Password: "secret"})},
			}, nil)
		s.write("team/app")
		s.write("team/app", remote.WithAuth(&authn.Basic{Username: "somebody", Password: "else"}))
		for _, repo := range []string{"teammate/app", "other/app"} {
			resp, _ := s.do("POST", "/v2/"+repo+"/blobs/uploads/", "")
			if resp.StatusCode != 401 {
				t.Errorf("%s: POST without credentials got %d, want 401", repo, resp.StatusCode)
			}
			if resp, _ := s.do("GET", "/v2/"+repo+"/tags/list", ""); resp.StatusCode != 401 {
				t.Errorf("%s: tags got %d, want 401", repo, resp.StatusCode)
			}
		}
		if resp, _ := s.do("GET", "/v2/_catalog", ""); resp.StatusCode != 401 {
			t.Errorf("the catalog got %d, want 401", resp.StatusCode)
		}
		// A mount takes nothing out of a repository that is not allowed.
		dgst := digest.FromString("private")
		s.reg.PutBlob("private/app", dgst.String(), []byte("private"))
		s.requests()
		resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/?from=private/app&mount="+dgst.String(), "")
		if resp.StatusCode != 202 {
			t.Errorf("a mount from elsewhere got %d, want 202", resp.StatusCode)
		}
		for _, q := range s.requests() {
			if q.Method == http.MethodPost && q.URL.Query().Has("from") {
				t.Errorf("the registry was asked for %s", q.URL)
			}
		}
	}
}

type keychain struct{ auth authn.Authenticator }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.auth, nil }

// What two servers could split in two ways reaches the registry once or never.
func TestSmuggling(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, nil)
	const evil = "DELETE /v2/team/app/manifests/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
	head := "POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: localhost\r\n"
	for what, text := range map[string]string{
		"TE and CL":         head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two CLs":           head + "Content-Length: 0\r\nContent-Length: 60\r\n\r\n" + evil,
		"CL with a plus":    head + "Content-Length: +0\r\n\r\n",
		"TE identity":       head + "Transfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nabcd",
		"TE twice":          head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + evil,
		"space before":      head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + evil,
		"bare LF chunk":     head + "Transfer-Encoding: chunked\r\n\r\n0\n\n" + evil,
		"header in a value": head + "X-A: b\rTransfer-Encoding: chunked\r\n\r\n" + evil,
		"two Hosts":         "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
		"absolute":          "GET http://evil.example/v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"upgrade":           "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, Authorization\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
		"CONNECT":           "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
		"CONNECT loopback":  "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
		"TRACE":             "TRACE /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"HTTP/2":            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		statuses := s.raw(text)
		seen := s.requests()
		if len(seen) > strings.Count(text, "HTTP/1.1") || len(seen) > 1 && what != "header in a value" {
			t.Errorf("%s: %d requests reached the registry", what, len(seen))
		}
		for _, q := range seen {
			if q.Method == http.MethodDelete && !strings.Contains(what, "two CLs") || q.Header.Get("Upgrade") != "" || strings.Contains(q.Host, "evil") {
				t.Errorf("%s: the registry was sent %s %s to %s", what, q.Method, q.URL, q.Host)
			}
		}
		if slices.Contains([]string{"CONNECT", "CONNECT loopback", "TRACE", "two CLs", "CL with a plus", "two Hosts", "absolute", "space before"}, what) &&
			(len(statuses) == 0 || statuses[0] < 400) {
			t.Errorf("%s: got %v, want a refusal", what, statuses)
		}
	}
}

// A gateway that is its own registry answers, and does not ask itself for ever.
func TestLoop(t *testing.T) {
	var self *url.URL
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost, Connect: func(context.Context, string) (gateway.Upstream, error) {
		return gateway.Upstream{URL: self}, nil
	}}, nil)
	self, _ = url.Parse(s.srv.URL)
	if resp, _ := s.do("GET", "/v2/a/tags/list", ""); resp.StatusCode != http.StatusLoopDetected {
		t.Errorf("got %d", resp.StatusCode)
	}
}

// More requests than there may be get an answer that clients retry.
func TestTooManyRequests(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 2)
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost, MaxRequests: 1}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			<-release
			h.ServeHTTP(w, r)
		})
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.Get(s.srv.URL + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	if resp, _ := s.do("GET", "/v2/", ""); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d", resp.StatusCode)
	}
	close(release)
	<-done
}

// A client that stops in the middle of a body is given up, and its upload too.
func TestStalledClient(t *testing.T) {
	gone := make(chan struct{})
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost, IdleTimeout: 200 * time.Millisecond}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			if r.Method == http.MethodPatch {
				close(gone)
			}
		})
	})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc", resp.Header.Get("Location"))
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(c); err != nil {
		t.Errorf("the gateway keeps a client that sends nothing: %v, %q", err, b)
	}
	<-gone
}

// Requests that are safe to repeat survive resets and failures of the registry.
func TestRepeats(t *testing.T) {
	var mu sync.Mutex
	broken := map[string]int{}
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key := r.Method + r.URL.Path
			if strings.Contains(key, "/uploads/") && r.Method != http.MethodPost {
				h.ServeHTTP(w, r)
				return
			}
			mu.Lock()
			broken[key]++
			n := broken[key]
			mu.Unlock()
			switch n {
			case 1:
				if c, ok := w.(http.Hijacker); ok {
					conn, _, _ := c.Hijack()
					conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
			case 2:
				w.WriteHeader(http.StatusServiceUnavailable)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	s.write("team/app")
	if resp, _ := s.do("GET", "/v2/team/app/manifests/none", ""); resp.StatusCode != 404 {
		t.Errorf("an absent manifest: %d", resp.StatusCode)
	}
}

// A download continues where it broke, also from where the registry stores
// blobs.
func TestDownloadContinues(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	dgst := digest.FromBytes(blob).String()
	for _, away := range []bool{false, true} {
		var sent sync.Map
		serve := func(w http.ResponseWriter, r *http.Request) {
			sent.Store(r.Header.Get("Range"), true)
			http.ServeContent(&dying{w, 300 << 10}, r, "", time.Time{}, bytes.NewReader(blob))
		}
		store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				t.Error("the storage got credentials")
			}
			serve(w, r)
		}))
		defer store.Close()
		s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if away {
					http.Redirect(w, r, store.URL+"/blob?sig=1", http.StatusTemporaryRedirect)
					return
				}
				serve(w, r)
			})
		})
		resp, got := s.do("GET", "/v2/team/app/blobs/"+dgst, "", "Authorization", "Basic eDp5")
		if resp.StatusCode != 200 || got != string(blob) {
			t.Errorf("away %t: status %d, %d bytes of %d", away, resp.StatusCode, len(got), len(blob))
		}
		resp, got = s.do("GET", "/v2/team/app/blobs/"+dgst, "", "Range", "bytes=1000-900000")
		if resp.StatusCode != 206 || got != string(blob[1000:900001]) || resp.Header.Get("Content-Range") != "bytes 1000-900000/1048576" {
			t.Errorf("away %t: a part: status %d, %d bytes, %q", away, resp.StatusCode, len(got), resp.Header.Get("Content-Range"))
		}
		if _, ok := sent.Load(""); !ok {
			t.Error("the first request has a Range")
		}
	}
}

// dying is an answer whose connection is reset after left bytes.
type dying struct {
	http.ResponseWriter
	left int
}

func (d *dying) Write(p []byte) (int, error) {
	n, err := d.ResponseWriter.Write(p[:min(len(p), d.left)])
	if d.left -= n; d.left == 0 {
		http.NewResponseController(d.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// The client gets an answer it understands when the registry cannot be reached.
func TestNoRegistry(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost, Connect: func(context.Context, string) (gateway.Upstream, error) {
		return gateway.Upstream{URL: &url.URL{Scheme: "http", Host: addr}}, nil
	}}, nil, 2)
	resp, body := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	if resp.StatusCode != 503 || !strings.Contains(body, `"code":"UNAVAILABLE"`) {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
	if resp, body := s.do("PUT", "/v2/team/app/manifests/1", strings.Repeat("x", 9<<20)); resp.StatusCode != 413 {
		t.Errorf("a manifest of 9 MiB: got %d %s", resp.StatusCode, body)
	}
}

// A POST that opens no upload session may do something else twice.
func TestOtherPostsAreNotRepeated(t *testing.T) {
	posts := map[string]int{}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		posts[r.URL.Path]++ // one request after the other
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer upstream.Close()
	u, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Options{Tries: 2})
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.To(gateway.Upstream{URL: u})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(h)
	defer front.Close()
	for _, path := range []string{"/api/v2.0/projects", "/v2/team/app/blobs/uploads/"} {
		resp, err := http.Post(front.URL+path, "", nil) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	if posts["/api/v2.0/projects"] != 1 || posts["/v2/team/app/blobs/uploads/"] < 2 {
		t.Errorf("the registry was sent %v", posts)
	}
}

// A manifest whose body never arrives whole is no success.
func TestManifestThatBreaks(t *testing.T) {
	s := newSite(t, scripted.Options{}, gateway.ServerOptions{Upstream: regHost}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			(&dying{w, 50}).Write(make([]byte, 100))
		})
	}, 2)
	if resp, body := s.do("GET", "/v2/team/app/manifests/latest", ""); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}
