// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// These tests go over real sockets.

// client does what go-containerregistry and oras-go do, with an http.Client.
type client struct {
	t    *testing.T
	http *http.Client
	url  string
}

func (c client) do(method, url string, body func(*http.Request)) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if body != nil {
		body(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (c client) upload(data []byte, body func(*http.Request)) {
	c.t.Helper()
	resp := c.do(http.MethodPost, c.url+"/v2/team/app/blobs/uploads/", nil)
	at, err := resp.Location()
	if err != nil {
		c.t.Fatalf("%s: %v", resp.Status, err)
	}
	resp = c.do(http.MethodPatch, at.String(), body)
	if at, err = resp.Location(); err != nil || resp.StatusCode != http.StatusAccepted {
		c.t.Fatalf("PATCH: %s: %v", resp.Status, err)
	}
	if resp = c.do(http.MethodPut, withDigest(at, data), nil); resp.StatusCode != http.StatusCreated {
		c.t.Fatalf("PUT: %s", resp.Status)
	}
}

func file(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func opened(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// sendfileConn sees whether net would find a file below what it is given.
type sendfileConn struct {
	*net.TCPConn
	direct, copied *atomic.Int64
}

func (c sendfileConn) ReadFrom(r io.Reader) (int64, error) {
	from := r
	if l, ok := r.(*io.LimitedReader); ok {
		from = l.R
	}
	to := c.copied
	if f, ok := from.(syscall.Conn); ok {
		if _, err := f.SyscallConn(); err == nil {
			to = c.direct
		}
	}
	n, err := c.TCPConn.ReadFrom(r)
	to.Add(n)
	return n, err
}

// Where the base would have used sendfile it does, on the first attempt and on
// those that continue it.
func TestTransportKeepsSendfile(t *testing.T) {
	data := content(16 << 20)
	path := file(t, data)
	for name, body := range map[string]func(*http.Request){
		"file":    func(r *http.Request) { r.Body, r.ContentLength = opened(t, path), int64(len(data)) },
		"GetBody": func(r *http.Request) { getFile(t, r, path, int64(len(data))) },
	} {
		for _, broken := range []bool{false, true} {
			o := scripted.Options{}
			if broken {
				o.Intercept = brokenBody(5 << 20)
			}
			reg := scripted.New(o)
			srv := httptest.NewServer(reg)
			var direct, copied atomic.Int64
			base := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return sendfileConn{c.(*net.TCPConn), &direct, &copied}, nil
			}}
			c := client{t, &http.Client{Transport: newTransport(t, base, resume.TransportOptions{})}, srv.URL}
			c.upload(data, body)
			if !bytes.Equal(reg.Blob("team/app", digest.FromBytes(data).String()), data) {
				t.Errorf("%s: the blob is not there", name)
			}
			// What fits beside the headers is read.
			if copied.Load() > 64<<10 || direct.Load() < int64(len(data))-64<<10 {
				t.Errorf("%s, broken %v: %d bytes by sendfile, %d by copying", name, broken, direct.Load(), copied.Load())
			}
			base.CloseIdleConnections()
			reg.Close()
			srv.Close()
		}
	}
}

func getFile(t *testing.T, r *http.Request, path string, n int64) {
	r.GetBody = func() (io.ReadCloser, error) { return os.Open(path) }
	r.Body, r.ContentLength = opened(t, path), n
}

// Over HTTP/2 as well, where a connection is not one upload's to kill.
func TestTransportHTTP2(t *testing.T) {
	for name, a := range map[string]scripted.Action{
		"healthy": {}, "broken": {BreakBody: true, BodyLimit: 1 << 20}, "answer lost": {AfterReset: true}, "503": {Before: 503},
	} {
		t.Run(name, func(t *testing.T) {
			reg := scripted.New(scripted.Options{Intercept: on(scripted.Patch, 1, a)})
			var major atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				major.Store(int64(r.ProtoMajor))
				reg.ServeHTTP(w, r)
			}))
			srv.EnableHTTP2 = true
			srv.StartTLS()
			defer srv.Close()
			defer reg.Close()
			base := srv.Client().Transport.(*http.Transport)
			c := client{t, &http.Client{Transport: newTransport(t, base, resume.TransportOptions{})}, srv.URL}
			data := content(4 << 20)
			c.upload(data, func(r *http.Request) {
				r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
				r.Body, _ = r.GetBody()
				r.ContentLength = int64(len(data))
			})
			if !bytes.Equal(reg.Blob("team/app", digest.FromBytes(data).String()), data) || major.Load() != 2 {
				t.Errorf("the blob is not there, or it came by HTTP/%d", major.Load())
			}
			base.CloseIdleConnections()
		})
	}
}

// Redirects are the client's to follow. Trailers arrive in both directions.
func TestTransportRedirectsAndTrailers(t *testing.T) {
	reg := scripted.New(scripted.Options{Intercept: brokenBody(100_000)})
	defer reg.Close()
	var trailer atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(w, r, strings.TrimPrefix(r.URL.Path, "/moved"), http.StatusTemporaryRedirect)
		case r.URL.Path == "/v2/trailing/blobs/uploads/":
			w.Header().Set("Location", "/v2/trailing/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case strings.HasPrefix(r.URL.Path, "/v2/trailing/"):
			io.Copy(io.Discard, r.Body)
			trailer.Store(r.Trailer.Get("X-Sum"))
			w.Header().Set("Trailer", "X-Took")
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "taken")
			w.Header().Set("X-Took", "1s")
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	c := client{t, &http.Client{Transport: newTransport(t, base, resume.TransportOptions{})}, srv.URL + "/moved"}
	data := content(300_000)
	c.upload(data, func(r *http.Request) {
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		r.Body, _ = r.GetBody()
		r.ContentLength = int64(len(data))
	})
	if !bytes.Equal(reg.Blob("team/app", digest.FromBytes(data).String()), data) {
		t.Error("the blob is not there")
	}

	resp := c.do(http.MethodPost, srv.URL+"/v2/trailing/blobs/uploads/", nil)
	at, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	resp = c.do(http.MethodPatch, at.String(), func(r *http.Request) {
		r.Body = io.NopCloser(bytes.NewReader(data))
		r.ContentLength = -1
		r.Trailer = http.Header{"X-Sum": {"42"}}
	})
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "taken" || resp.Trailer.Get("X-Took") != "1s" || trailer.Load() != "42" {
		t.Errorf("got %q, %v, trailers %v and %q", body, err, resp.Trailer, trailer.Load())
	}
}

// A body given up is reset, on a connection that the base made: what the kernel
// still holds is not delivered.
func TestTransportKillsConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	begun, over, ended := make(chan bool), make(chan bool), make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 202 Accepted\r\nLocation: /v2/a/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n")
		c.Read(make([]byte, 4096)) // the beginning of the body
		close(begun)
		<-over
		_, err = io.Copy(io.Discard, c)
		ended <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt := newTransport(t, base, resume.TransportOptions{})
	req, err := http.NewRequest(http.MethodPost, "http://"+ln.Addr().String()+"/v2/a/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	data := content(64 << 20) // more than any buffer holds
	req, err = http.NewRequestWithContext(ctx, http.MethodPatch, at.String(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-begun
		cancel()
	}()
	if _, err := rt.RoundTrip(req); !errors.Is(err, context.Canceled) || !errors.Is(err, resume.ErrInterrupted) {
		t.Errorf("got %v", err)
	}
	close(over)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

// After a lost commit a redirect counts only for what its target holds. The
// target is asked with the method that its URL is signed for.
func TestTransportLostCommitBehindRedirects(t *testing.T) {
	data := content(1000)
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>please log in")
	}
	serve := func(data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
	}
	for name, c := range map[string]struct {
		storage http.HandlerFunc
		signed  string // the one method that the URL is good for; empty: the method of the request
		here    bool   // the redirect stays on the registry
		lost    scripted.Action
		puts    int
		fails   bool
	}{
		"login here":              {storage: page, here: true, lost: scripted.Action{BeforeReset: true}, puts: 2},
		"not here":                {storage: http.NotFound, here: true, lost: scripted.Action{BeforeReset: true}, puts: 2},
		"stored here":             {storage: serve(data), here: true, lost: scripted.Action{AfterReset: true}, puts: 1},
		"login elsewhere":         {storage: page, lost: scripted.Action{BeforeReset: true}, puts: 1, fails: true},
		"stored":                  {storage: serve(data), lost: scripted.Action{AfterReset: true}, puts: 1},
		"stored, signed for GET":  {storage: serve(data), signed: http.MethodGet, lost: scripted.Action{AfterReset: true}, puts: 1},
		"stored, whole answers":   {storage: func(w http.ResponseWriter, _ *http.Request) { w.Write(data) }, signed: http.MethodGet, lost: scripted.Action{AfterReset: true}, puts: 1},
		"other size":              {storage: serve(data[1:]), lost: scripted.Action{BeforeReset: true}, puts: 1, fails: true},
		"other size, signed GET":  {storage: serve(data[1:]), signed: http.MethodGet, lost: scripted.Action{BeforeReset: true}, puts: 1, fails: true},
		"not stored":              {storage: http.NotFound, lost: scripted.Action{BeforeReset: true}, puts: 1, fails: true},
		"stored, answers nothing": {storage: serve(data), signed: "NONE", lost: scripted.Action{AfterReset: true}, puts: 1, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			signed := func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if r.Method != r.URL.Query().Get("signed") {
					w.WriteHeader(http.StatusForbidden) // as S3 does
					return
				}
				if ranged := r.Header.Get("Range") == "bytes=0-0"; ranged != (r.Method == http.MethodGet) {
					t.Errorf("%s %v", r.Method, r.Header)
				}
				c.storage(w, r)
			}
			storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					t.Errorf("credentials sent to storage: %v", r.Header)
				}
				signed(w, r)
			}))
			defer storage.Close()
			reg := scripted.New(scripted.Options{Intercept: on(scripted.Put, 1, c.lost)})
			defer reg.Close()
			var puts atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/bucket/key":
					signed(w, r)
					return
				case strings.Contains(r.URL.Path, "/blobs/sha256:"):
					to := "/bucket/key?signed=" + cmp.Or(c.signed, r.Method)
					if !c.here {
						to = storage.URL + to
					}
					http.Redirect(w, r, to, http.StatusFound)
					return
				case r.Method == http.MethodPut:
					puts.Add(1)
				}
				reg.ServeHTTP(w, r)
			}))
			defer srv.Close()
			base := &http.Transport{}
			defer base.CloseIdleConnections()
			o := resume.TransportOptions{External: base, RetryFor: time.Second, Random: func() float64 { return 0 }}
			cl := client{t, &http.Client{Transport: newTransport(t, base, o)}, srv.URL}
			at, err := cl.do(http.MethodPost, srv.URL+"/v2/team/app/blobs/uploads/", nil).Location()
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequest(http.MethodPut, withDigest(at, data), bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer x")
			resp, err := cl.http.Do(req)
			if err == nil {
				resp.Body.Close()
			}
			if ok := err == nil && resp.StatusCode == http.StatusCreated; ok == c.fails {
				t.Errorf("got %v, %v", resp, err)
			}
			if got := int(puts.Load()); got != c.puts {
				t.Errorf("%d PUTs, want %d", got, c.puts)
			}
			if asked.Load() == 0 {
				t.Error("the target of the redirect was not asked")
			}
		})
	}
}

// What another host answers to the transport's own requests, or where one of
// them is led, is not the registry's answer to the client.
func TestTransportKeepsForeignAnswersBack(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="http://other.test/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer other.Close()
	for name, elsewhere := range map[string]bool{"401 of another host": true, "redirect": false} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				w.Header().Set("Location", "/v2/team/app/blobs/uploads/1")
				w.WriteHeader(http.StatusAccepted)
			case r.Method == http.MethodPatch:
				io.CopyN(io.Discard, r.Body, 1000)
				panic(http.ErrAbortHandler)
			case elsewhere:
				w.Header().Set("Location", other.URL+"/storage/1")
				w.Header().Set("Range", "0-999")
				w.WriteHeader(http.StatusNoContent)
			default:
				http.Redirect(w, r, "/login", http.StatusFound)
			}
		}))
		base := &http.Transport{}
		c := client{t, &http.Client{Transport: newTransport(t, base, resume.TransportOptions{External: base, RetryFor: time.Second})}, srv.URL}
		at, err := c.do(http.MethodPost, srv.URL+"/v2/team/app/blobs/uploads/", nil).Location()
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(http.MethodPatch, at.String(), bytes.NewReader(content(3_000_000)))
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := c.http.Transport.RoundTrip(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: got %s %v", name, resp.Status, resp.Header)
		}
		base.CloseIdleConnections()
		srv.Close()
	}
}

// A request that waits for its turn on an HTTP/2 connection leaves it to those
// that have theirs.
func TestTransportSparesSharedConnections(t *testing.T) {
	begun := make(chan bool)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/v2/team/app/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodGet:
			w.(http.Flusher).Flush()
			close(begun)
			<-begun
			time.Sleep(time.Second) // until the upload has been given up
			io.WriteString(w, "whole")
		}
	}))
	srv.EnableHTTP2 = true
	srv.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1}
	srv.StartTLS()
	defer srv.Close()
	base := srv.Client().Transport.(*http.Transport).Clone()
	base.HTTP2 = &http.HTTP2Config{StrictMaxConcurrentRequests: true}
	defer base.CloseIdleConnections()
	hc := &http.Client{Transport: newTransport(t, base, resume.TransportOptions{})}
	resp, err := hc.Post(srv.URL+"/v2/team/app/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error, 1)
	go func() {
		resp, err := hc.Get(srv.URL + "/pull")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		pulled <- err
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, at.String(), strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := hc.Do(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, %v", resp, err)
	}
	if err := <-pulled; err != nil {
		t.Errorf("the pull on the same connection: %v", err)
	}
}

// How much a session holds is only inferred where its chunks may have gone
// another way: the blob of a lost commit is not judged by it.
func TestTransportCommitOfUnknownSize(t *testing.T) {
	dgst := digest.FromBytes(content(1000)).String()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/v2/team/app/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			panic(http.ErrAbortHandler) // it was carried out
		default:
			if !strings.HasSuffix(r.URL.Path, dgst) {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Docker-Content-Digest", dgst)
			w.Header().Set("Content-Length", "1000")
		}
	}))
	defer srv.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	c := client{t, &http.Client{Transport: newTransport(t, base, resume.TransportOptions{RetryFor: time.Second})}, srv.URL}
	at, err := c.do(http.MethodPost, srv.URL+"/v2/team/app/blobs/uploads/", nil).Location()
	if err != nil {
		t.Fatal(err)
	}
	resp := c.do(http.MethodPut, withDigest(at, content(1000)), nil)
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("got %s", resp.Status)
	}
}
