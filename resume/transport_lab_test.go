// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// passing is a registry client of other make, over a transport.
type passing struct {
	t      *testing.T
	reg    *scripted.Registry
	net    *memnet.Network
	base   *http.Transport
	rt     http.RoundTripper
	dir    string
	events []resume.Event
	log    bytes.Buffer
	header http.Header // of every request
	bodies []*watched
	asked  atomic.Int64 // requests with a body
	// raw is what went out, byte by byte, over all connections.
	mu  sync.Mutex
	raw bytes.Buffer
}

// onTransport runs f in a bubble of its own and checks what must hold always.
// Without options the client goes without the transport.
// newTransport is resume.NewTransport, which must not fail.
func newTransport(t testing.TB, base http.RoundTripper, o resume.TransportOptions) http.RoundTripper {
	t.Helper()
	rt, err := resume.NewTransport(base, o)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

func onTransport(t *testing.T, ro scripted.Options, o *resume.TransportOptions, f func(*passing)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := &passing{t: t, net: memnet.New(), dir: dir, header: http.Header{}}
		p.reg = scripted.New(ro)
		srv := &http.Server{Handler: p.reg}
		for _, host := range []string{"reg.test:80", "other.test:80"} {
			ln, err := p.net.Listen(host)
			if err != nil {
				t.Fatal(err)
			}
			go srv.Serve(ln)
		}
		p.base = &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := p.net.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &recorded{c, p}, nil
		}}
		p.rt = p.base
		external := &http.Transport{DialContext: p.net.Dial}
		if o != nil {
			own := *o
			own.OnEvent = func(e resume.Event) { p.events = append(p.events, e) }
			own.Random = func() float64 { return 0.5 }
			own.External = external
			own.SpoolDir = dir
			own.Logger = debugLogger(&p.log)
			p.rt = newTransport(t, p.base, own)
		}
		defer func() {
			p.rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
			p.base.CloseIdleConnections()
			external.CloseIdleConnections()
			srv.Close()
			p.reg.Close()
			time.Sleep(time.Hour)
			synctest.Wait()
			for _, b := range p.bodies {
				if !b.closed.Load() {
					t.Errorf("a body was not closed")
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "rpush-*")); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		}()
		f(p)
		p.checkViolations()
		if s := p.log.String(); strings.Contains(s, "_state") || strings.Contains(s, "session-0") || strings.Contains(s, "secret") {
			t.Errorf("an upload location or a credential was logged:\n%s", s)
		}
	})
}

// checkViolations lets the client's own requests be as the client makes them.
func (p *passing) checkViolations() {
	theirs := map[string]int{}
	for _, v := range p.reg.Violations() {
		_, what, _ := strings.Cut(v, ": ")
		switch what {
		case "no Content-Range", "no Content-Length", "Transfer-Encoding chunked although the size is known":
			if theirs[what]++; theirs[what] <= int(p.asked.Load()) {
				continue
			}
		}
		p.t.Errorf("violation: %s", v)
	}
}

// recorded keeps what is written to a connection.
type recorded struct {
	net.Conn
	p *passing
}

func (r *recorded) Write(b []byte) (int, error) {
	n, err := r.Conn.Write(b)
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.raw.Write(b[:n])
	return n, err
}

// SetLinger lets a kill be one.
func (r *recorded) SetLinger(sec int) error {
	if l, ok := r.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// watched is a body of which it is known whether it was closed.
type watched struct {
	io.Reader
	p      *passing
	closed atomic.Bool
}

func (p *passing) watch(r io.Reader) *watched {
	w := &watched{Reader: r, p: p}
	p.bodies = append(p.bodies, w)
	return w
}

func (w *watched) Read(b []byte) (int, error) {
	if w.closed.Load() {
		return 0, errors.New("read after close")
	}
	return w.Reader.Read(b)
}

func (w *watched) Close() error { w.closed.Store(true); return nil }

// The ways clients bring a body.
type style struct {
	name  string
	patch bool // PATCH and PUT, as go-containerregistry; else one PUT
	// body sets Body, GetBody and ContentLength.
	body func(p *passing, req *http.Request, data []byte)
}

var styles = []style{
	{"PATCH, GetBody", true, bodyAgain},
	{"PUT, GetBody", false, bodyAgain},
	{"PUT, pipe", false, bodyPipe},
	{"PATCH, file", true, bodyFile},
	{"PUT, file", false, bodyFile},
	{"PATCH, spool", true, bodyOnce},
	{"PUT, spool", false, bodyOnce},
	{"PATCH, length unknown", true, bodyUnknown},
	{"PUT, length unknown", false, bodyUnknown},
}

func bodyAgain(p *passing, req *http.Request, data []byte) {
	req.GetBody = func() (io.ReadCloser, error) { return p.watch(bytes.NewReader(data)), nil }
	req.Body, _ = req.GetBody()
	req.ContentLength = int64(len(data))
}

// bodyPipe is what containerd does: a pipe for each attempt, whose writer looks
// for the next only when the last was closed.
func bodyPipe(p *passing, req *http.Request, data []byte) {
	pipes := make(chan *io.PipeWriter, 1)
	req.GetBody = func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		pipes <- w
		return r, nil
	}
	go func() {
		for {
			select {
			case w := <-pipes:
				io.Copy(w, bytes.NewReader(data))
				w.Close()
			case <-req.Context().Done():
				return
			}
		}
	}()
	req.Body, _ = req.GetBody()
	req.ContentLength = int64(len(data))
}

func bodyFile(p *passing, req *http.Request, data []byte) {
	f, err := os.CreateTemp(p.dir, "blob-")
	if err == nil {
		_, err = f.Write(append([]byte("before"), data...)) // the body begins where the file stands
	}
	if err == nil {
		_, err = f.Seek(6, io.SeekStart)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	req.Body, req.ContentLength = f, int64(len(data))
}

func bodyOnce(p *passing, req *http.Request, data []byte) {
	req.Body, req.ContentLength = p.watch(bytes.NewReader(data)), int64(len(data))
}

func bodyUnknown(p *passing, req *http.Request, data []byte) {
	req.Body, req.ContentLength = p.watch(bytes.NewReader(data)), -1
}

func (p *passing) request(ctx context.Context, method, u string) *http.Request {
	p.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	for k, v := range p.header {
		req.Header[k] = v
	}
	return req
}

func (p *passing) do(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		p.asked.Add(1)
	}
	resp, err := p.rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.Request != req {
		return nil, errors.New("the answer is to another request")
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, err
}

// open opens a session; the POST, which no transport repeats, is tried again.
func (p *passing) open(ctx context.Context) (*url.URL, error) {
	var last error
	for range 3 {
		resp, err := p.do(p.request(ctx, http.MethodPost, "http://reg.test/v2/team/app/blobs/uploads/"))
		if err == nil && resp.StatusCode == http.StatusAccepted {
			return resp.Location()
		}
		if last = err; err == nil {
			last = fmt.Errorf("POST: %s", resp.Status)
		}
	}
	return nil, last
}

func withDigest(u *url.URL, data []byte) string {
	q := u.Query()
	q.Set("digest", digest.FromBytes(data).String())
	u.RawQuery = q.Encode() // again, as the clients do
	return u.String()
}

// upload is what such a client does, without a second try.
func (p *passing) upload(ctx context.Context, s style, data []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at, err := p.open(ctx)
	if err != nil {
		return err
	}
	if !s.patch {
		req := p.request(ctx, http.MethodPut, withDigest(at, data))
		s.body(p, req, data)
		return p.wants(req, http.StatusCreated, data)
	}
	req := p.request(ctx, http.MethodPatch, at.String())
	s.body(p, req, data)
	resp, err := p.do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("PATCH: %s", resp.Status)
	}
	if at, err = resp.Location(); err != nil {
		return err
	}
	return p.wants(p.request(ctx, http.MethodPut, withDigest(at, data)), http.StatusCreated, data)
}

func (p *passing) wants(req *http.Request, status int, data []byte) error {
	resp, err := p.do(req)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != status:
		return fmt.Errorf("%s: %s", req.Method, resp.Status)
	case status == http.StatusCreated && resp.Header.Get("Docker-Content-Digest") != digest.FromBytes(data).String():
		return fmt.Errorf("%s: digest %q", req.Method, resp.Header.Get("Docker-Content-Digest"))
	case status == http.StatusCreated && !strings.HasSuffix(resp.Header.Get("Location"), "/v2/team/app/blobs/"+digest.FromBytes(data).String()):
		return fmt.Errorf("%s: location %q", req.Method, resp.Header.Get("Location"))
	}
	return nil
}

// delivers fails unless the registry has data in the end.
func (p *passing) delivers(s style, data []byte) {
	p.t.Helper()
	if err := p.upload(context.Background(), s, data); err != nil {
		p.t.Fatalf("%v\n%s", err, p.log.String())
	}
	p.has(data)
}

func (p *passing) has(data []byte) {
	p.t.Helper()
	if got := p.reg.Blob("team/app", digest.FromBytes(data).String()); !bytes.Equal(got, data) || got == nil {
		p.t.Fatalf("the registry has %d bytes, want %d", len(got), len(data))
	}
}

func (p *passing) count(kinds ...scripted.Kind) (n int) {
	for _, r := range p.reg.Requests() {
		for _, k := range kinds {
			if r.Kind == k {
				n++
			}
		}
	}
	return n
}

// trace is what the registry was asked, in words.
func (p *passing) trace() string {
	var words []string
	for _, r := range p.reg.Requests() {
		w := r.Kind.String()
		if r.Length > 0 {
			w += fmt.Sprintf(" %d+%d", max(r.Start, 0), r.Length)
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}
