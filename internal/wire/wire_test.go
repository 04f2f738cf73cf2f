// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"bytes"
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
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var limits = Limits{Stall: time.Minute, Answer: time.Minute}

// tempFile makes a file with n different bytes.
func tempFile(t testing.TB, n int) (string, []byte) {
	t.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func open(t testing.TB, path string, offset int64) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func newTransport(t testing.TB) *Transport {
	tr := New(Options{UserAgent: "rpush/test", Stall: 10 * time.Second})
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func patch(t testing.TB, url string, body Body, n int64) *http.Request {
	t.Helper()
	req, err := http.NewRequest(http.MethodPatch, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Body, req.ContentLength = body, n
	return req
}

// Parts of a file, around the size of a piece, arrive as they are, all over
// one connection.
func TestFileBodyParts(t *testing.T) {
	const c = leastPiece
	path, data := tempFile(t, 3*c)
	var got []byte
	conns := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		conns[r.RemoteAddr] = true
	}))
	defer srv.Close()
	tr := newTransport(t)
	for _, offset := range []int64{0, 1, c - 1} {
		for _, n := range []int64{1, 2, 4095, 4096, 4097, c - 1, c, c + 1, 2 * c, 2*c + 1} {
			body := NewBody(open(t, path, offset), n)
			var seen atomic.Int64
			a, err := Send(t.Context(), tr, patch(t, srv.URL, body, n), limits, func(n int64) { seen.Add(n) })
			if err != nil || a.Status != 200 {
				t.Fatalf("offset %d length %d: %v", offset, n, err)
			}
			if !bytes.Equal(got, data[offset:offset+n]) {
				t.Fatalf("offset %d length %d: got %d other bytes", offset, n, len(got))
			}
			if body.Sent() != n || body.Err() != nil || body.take() {
				t.Errorf("offset %d length %d: sent %d, error %v", offset, n, body.Sent(), body.Err())
			}
			if s := seen.Load(); s < n || s > n+1000 {
				t.Errorf("offset %d length %d: %d bytes were seen leaving", offset, n, s)
			}
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections were used, want 1", len(conns))
	}
}

// A file's bytes must not pass through this process: its Read is called for
// what fits beside the headers, and sendfile moves the rest.
func TestFileBodyKeepsSendfile(t *testing.T) {
	const n = 8 << 20
	path, _ := tempFile(t, n)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	body := &countingBody{fileBody: NewBody(open(t, path, 0), n).(*fileBody)}
	if _, err := Send(t.Context(), newTransport(t), patch(t, srv.URL, body, n), limits, nil); err != nil {
		t.Fatal(err)
	}
	if reads := body.reads.Load(); reads > 4 {
		t.Errorf("Read was called %d times for %d bytes: no sendfile", reads, n)
	}
}

type countingBody struct {
	*fileBody
	reads atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	b.reads.Add(1)
	return b.fileBody.Read(p)
}

func TestStreamBody(t *testing.T) {
	data := []byte("0123456789")
	for _, n := range []int64{0, 1, 9, 10} {
		b := NewBody(io.NopCloser(bytes.NewReader(data)), n)
		got, err := io.ReadAll(b)
		if err != nil || string(got) != string(data[:n]) || b.Sent() != n {
			t.Errorf("length %d: got %q, %v", n, got, err)
		}
		b.Close()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, ErrSpent) {
			t.Errorf("read after close: %v, want ErrSpent", err)
		}
	}
}

func TestShortSourceIsNamed(t *testing.T) {
	path, _ := tempFile(t, 1<<20)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	for name, r := range map[string]io.ReadCloser{
		"file":   open(t, path, 0),
		"stream": io.NopCloser(strings.NewReader("short")),
		"broken": io.NopCloser(io.MultiReader(strings.NewReader("x"), iotestErr{syscall.EIO})),
	} {
		body := NewBody(r, 2<<20)
		_, err := Send(t.Context(), newTransport(t), patch(t, srv.URL, body, 2<<20), limits, nil)
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		var short *ShortError
		if !errors.As(body.Err(), &short) {
			t.Errorf("%s: the body says %v, the exchange %v", name, body.Err(), err)
		}
		if name == "broken" && !errors.Is(body.Err(), syscall.EIO) {
			t.Errorf("the cause is gone from %v", body.Err())
		}
	}
}

type iotestErr struct{ err error }

func (r iotestErr) Read([]byte) (int, error) { return 0, r.err }

// A transport that sends a request again after a 401 must not reach the server
// with a body that is used up.
func TestSpentBodyIsNotSentAgain(t *testing.T) {
	var requests atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		io.Copy(io.Discard, r.Body)
	}))
	defer srv.Close()
	tr := newTransport(t)
	body := NewBody(io.NopCloser(strings.NewReader("x")), 1)
	req := patch(t, srv.URL, body, 1)
	twice := roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := tr.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		return tr.RoundTrip(r)
	})
	if _, err := Send(t.Context(), twice, req, limits, nil); !errors.Is(err, ErrSpent) {
		t.Errorf("got %v, want ErrSpent", err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("the server saw %d requests, want 1", n)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// acceptOne accepts one connection and hands it over.
func acceptOne(t *testing.T) (addr string, conn chan *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn = make(chan *net.TCPConn, 1)
	go func() {
		c, err := ln.Accept()
		ln.Close()
		if err == nil {
			conn <- c.(*net.TCPConn)
		}
	}()
	return "http://" + ln.Addr().String(), conn
}

// Giving up kills the connection: the peer sees a reset, not an end, and no
// megabytes more.
func TestCancelResets(t *testing.T) {
	path, _ := tempFile(t, 64<<20)
	url, conn := acceptOne(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	var moved atomic.Int64
	go func() {
		for moved.Load() == 0 { // only what the peer's kernel took is told
			time.Sleep(time.Millisecond)
		}
		cancel(cause)
	}()
	_, err := Send(ctx, newTransport(t), patch(t, url, NewBody(open(t, path, 0), 64<<20), 64<<20), limits, func(n int64) { moved.Add(n) })
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
	var we *Error
	if !errors.As(err, &we) || we.Conn.Remote == "" || we.Conn.Sent < 1<<16 {
		t.Errorf("the error tells nothing of the connection: %+v", we)
	}
	c := <-conn
	defer c.Close()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read %v, want a reset", err)
	}
}

func TestStall(t *testing.T) {
	path, _ := tempFile(t, 64<<20)
	url, conn := acceptOne(t) // and nobody reads
	began := time.Now()
	_, err := Send(t.Context(), newTransport(t), patch(t, url, NewBody(open(t, path, 0), 64<<20), 64<<20),
		Limits{Stall: 300 * time.Millisecond, Answer: time.Hour}, nil)
	if !errors.Is(err, ErrStall) {
		t.Errorf("got %v after %s, want ErrStall", err, time.Since(began))
	}
	(<-conn).Close()
}

// Slow is not stalled: here every read of the peer comes well within the
// limit, and the whole takes many times as long.
func TestSlowIsNoStall(t *testing.T) {
	const n = 12 << 20
	path, _ := tempFile(t, n)
	url, conn := acceptOne(t)
	got := make(chan int64)
	go func() {
		c := <-conn
		defer c.Close()
		buf, sum := make([]byte, 256<<10), int64(0)
		for sum < n {
			m, err := c.Read(buf)
			sum += int64(m)
			if err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, c)
		got <- sum
	}()
	tr := newTransport(t)
	a, err := Send(t.Context(), tr, patch(t, url, NewBody(open(t, path, 0), n), n),
		Limits{Stall: time.Second, Answer: 10 * time.Second}, nil)
	if err != nil || a.Status != http.StatusAccepted {
		t.Errorf("got %v", err)
	}
	tr.CloseIdleConnections()
	<-got
}

func TestNoAnswer(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-release
	}))
	defer srv.Close()
	defer close(release)
	_, err := Send(t.Context(), newTransport(t), patch(t, srv.URL, NewBody(io.NopCloser(strings.NewReader("x")), 1), 1),
		Limits{Stall: time.Hour, Answer: 200 * time.Millisecond}, nil)
	if !errors.Is(err, ErrNoAnswer) {
		t.Errorf("got %v, want ErrNoAnswer", err)
	}
}

// An answer that comes before the body is sent is used, and the connection,
// which still has a body on it, is not.
func TestEarlyAnswer(t *testing.T) {
	path, _ := tempFile(t, 64<<20)
	url, conn := acceptOne(t)
	end := make(chan error, 1)
	go func() {
		c := <-conn
		defer c.Close()
		io.ReadFull(c, make([]byte, 1000))
		io.WriteString(c, "HTTP/1.1 416 No\r\nContent-Length: 2\r\nRange: 0-9\r\n\r\nno")
		time.Sleep(100 * time.Millisecond)
		_, err := io.Copy(io.Discard, c)
		end <- err
	}()
	body := NewBody(open(t, path, 0), 64<<20)
	a, err := Send(t.Context(), newTransport(t), patch(t, url, body, 64<<20), limits, nil)
	if err != nil || a.Status != 416 || string(a.Body) != "no" || a.Header.Get("Range") != "0-9" {
		t.Errorf("got %+v, %v", a, err)
	}
	if err := <-end; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read %v, want a reset", err)
	}
	if body.Sent() >= 64<<20 {
		t.Error("all of it was sent")
	}
}

// A server that refuses a body and closes at once is heard out: net/http would
// report the write that failed.
func TestEarlyAnswerAndClose(t *testing.T) {
	path, _ := tempFile(t, 8<<20)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.ReadFull(c, make([]byte, 1000))
			io.WriteString(c, "HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			c.Close() // with unread bytes: a reset
		}
	}()
	heard := 0
	for range 50 {
		a, err := Send(t.Context(), newTransport(t), patch(t, "http://"+ln.Addr().String(), NewBody(open(t, path, 0), 8<<20), 8<<20), limits, nil)
		if err == nil && a.Status == 413 {
			heard++
		}
	}
	// How often depends on the machine; TestRefusedBodyIsAnswered does not.
	if heard == 0 {
		t.Error("the answer was never heard")
	}
}

// An interim answer does not begin the patience for the rest of an answer.
func TestInterimAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		stop := network.Serve(t, "registry.test:5000", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusProcessing)
			time.Sleep(700 * time.Millisecond)
			w.WriteHeader(http.StatusCreated)
		})
		tr := New(Options{Dial: network.Dial})
		a, err := Send(t.Context(), tr, patch(t, "http://registry.test:5000", NewBody(io.NopCloser(strings.NewReader("x")), 1), 1),
			Limits{Stall: 200 * time.Millisecond, Answer: 10 * time.Second}, nil)
		if err != nil || a.Status != http.StatusCreated {
			t.Errorf("got %+v, %v", a, err)
		}
		tr.CloseIdleConnections()
		stop()
	})
}

// A transport of somebody else's keeps sendfile too, and nothing but the file's
// position tells that bytes move.
func TestForeignTransportIsNoStall(t *testing.T) {
	const n = 24 << 20
	path, _ := tempFile(t, n)
	url, conn := acceptOne(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := <-conn
		defer c.Close()
		c.SetReadBuffer(64 << 10)
		buf := make([]byte, 256<<10)
		for sum := 0; sum < n; {
			m, err := c.Read(buf)
			if sum += m; err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		io.Copy(io.Discard, c)
	}()
	tr := &http.Transport{DisableKeepAlives: true}
	_, err := Send(t.Context(), tr, patch(t, url, NewBody(open(t, path, 0), n), n), Limits{Stall: 700 * time.Millisecond, Answer: 10 * time.Second}, nil)
	if errors.Is(err, ErrStall) {
		t.Errorf("got %v", err)
	}
	<-done
}

// net/textproto quotes the header that it cannot read; an upload location may be
// in it.
func TestMalformedHeaderIsNotQuoted(t *testing.T) {
	url, conn := acceptOne(t)
	go func() {
		c := <-conn
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, "HTTP/1.1 202 Accepted\r\nLocation https//secret\r\n\r\n")
	}()
	_, err := Send(t.Context(), newTransport(t), patch(t, url, NewBody(io.NopCloser(strings.NewReader("x")), 1), 1), limits, nil)
	if err == nil || err.Error() != "the answer has a malformed header" {
		t.Errorf("got %v", err)
	}
}

func TestUserAgent(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.UserAgent() }))
	defer srv.Close()
	req, _ := http.NewRequest(http.MethodGet, srv.URL, nil)
	req.Header.Set("User-Agent", "somebody")
	if _, err := Send(t.Context(), newTransport(t), req, limits, nil); err != nil || got != "rpush/test" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A registry on a public address must not make this machine talk to its own
// network. Which registry is public is set by hand: no test reaches one.
func TestExternalRefusesPrivateAddresses(t *testing.T) {
	hits := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits++ }))
	defer srv.Close()
	tr := newTransport(t)
	get := func() error {
		rt := tr.External("reg.example:443")
		defer rt.CloseIdleConnections()
		req, _ := http.NewRequest(http.MethodGet, srv.URL, nil)
		_, err := Send(t.Context(), rt, req, limits, nil)
		return err
	}
	if err := get(); !errors.Is(err, ErrPrivate) || hits != 0 {
		t.Errorf("registry of unknown address: %v, %d requests arrived; want ErrPrivate", err, hits)
	}
	tr.public["reg.example:443"] = true
	if err := get(); !errors.Is(err, ErrPrivate) || hits != 0 {
		t.Errorf("public registry: %v, %d requests arrived; want ErrPrivate", err, hits)
	}
	tr.public["reg.example:443"] = false
	if err := get(); err != nil || hits != 1 {
		t.Errorf("private registry: %v, %d requests arrived; want 1", err, hits)
	}
}

// Connections that ended out of sight are not kept in mind for ever.
func TestTrackerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := Track(nil)
		for range 3 {
			a, b := net.Pipe()
			defer a.Close()
			defer b.Close()
			tr.conn(a)
			time.Sleep(remember + time.Second)
		}
		if n := len(tr.conns); n != 1 {
			t.Errorf("%d connections, want the last", n)
		}
	})
}
