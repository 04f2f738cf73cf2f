// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const addr = "registry.test:80"

// pair is both ends of a connection.
func pair(t *testing.T, n *Network) (client, server net.Conn) {
	t.Helper()
	ln, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = n.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func bubble(t *testing.T, name string, f func(t *testing.T, n *Network)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f(t, New())
			time.Sleep(time.Second) // writers may learn of a reset after readers
		})
	})
}

func wantErrno(t *testing.T, what string, err error, op string, want syscall.Errno) {
	t.Helper()
	var o *net.OpError
	var s *os.SyscallError
	if !errors.As(err, &o) || !errors.As(err, &s) || !errors.Is(err, want) || o.Op != op || o.Net != "tcp" || s.Syscall != op {
		t.Errorf("%s: got %v, want %v of a %s", what, err, want, op)
	}
}

func TestConn(t *testing.T) {
	bubble(t, "more than the buffer passes whole", func(t *testing.T, n *Network) {
		c, s := pair(t, n)
		body := bytes.Repeat([]byte("0123456789abcdef!"), 20_000)
		go func() { c.Write(body); c.Close() }()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(body))
		}
		_, err = s.Write([]byte("x"))
		wantErrno(t, "write to a closed peer", err, "write", syscall.EPIPE)
		if n.Up() != int64(len(body)) || n.Down() != 0 || n.Conns() != 1 {
			t.Errorf("counted %d up, %d down, %d conns", n.Up(), n.Down(), n.Conns())
		}
	})
	bubble(t, "a full buffer blocks the writer", func(t *testing.T, n *Network) {
		c, s := pair(t, n)
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		k, err := c.Write(make([]byte, bufferSize+1))
		if k != bufferSize || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %d, %v", k, err)
		}
		s.Read(make([]byte, 10))
		c.SetWriteDeadline(time.Time{})
		if k, err := c.Write(make([]byte, 10)); k != 10 || err != nil {
			t.Errorf("after a read: got %d, %v", k, err)
		}
	})
	bubble(t, "half close", func(t *testing.T, n *Network) {
		c, s := pair(t, n)
		c.(interface{ CloseWrite() error }).CloseWrite()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: got %v", err)
		}
		s.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("answer: got %v", err)
		}
	})
	bubble(t, "reset by linger", func(t *testing.T, n *Network) {
		c, s := pair(t, n)
		c.Write([]byte("unread"))
		c.(interface{ SetLinger(int) error }).SetLinger(0)
		c.Close()
		_, err := s.Read(make([]byte, 1))
		wantErrno(t, "read", err, "read", syscall.ECONNRESET)
		_, err = s.Write([]byte("x"))
		wantErrno(t, "write", err, "write", syscall.ECONNRESET)
		if _, err = c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("own end: got %v", err)
		}
	})
	bubble(t, "a reset wakes a blocked reader and writer", func(t *testing.T, n *Network) {
		c, s := pair(t, n)
		errs := make(chan error, 2)
		go func() { _, err := s.Read(make([]byte, 1)); errs <- err }()
		go func() { _, err := s.Write(make([]byte, 2*bufferSize)); errs <- err }()
		synctest.Wait()
		c.(interface{ SetLinger(int) error }).SetLinger(0)
		c.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v", err)
			}
		}
	})
	bubble(t, "deadlines", func(t *testing.T, n *Network) {
		c, _ := pair(t, n)
		begin := time.Now()
		go func() { // moved while a reader waits
			time.Sleep(time.Second)
			c.SetReadDeadline(time.Now().Add(time.Hour))
		}()
		c.SetReadDeadline(begin.Add(time.Minute))
		_, err := c.Read(make([]byte, 1))
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() || time.Since(begin) != time.Hour+time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		c.SetReadDeadline(time.Now().Add(-1))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past deadline: got %v", err)
		}
	})
	bubble(t, "own close wakes a reader", func(t *testing.T, n *Network) {
		c, _ := pair(t, n)
		go func() { time.Sleep(time.Second); c.Close() }()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	for _, lose := range []bool{false, true} {
		bubble(t, "up", func(t *testing.T, n *Network) {
			n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1, Lose: lose} }
			c, s := pair(t, n)
			k, err := c.Write([]byte("0123456789"))
			if k != 7 {
				t.Errorf("wrote %d", k)
			}
			wantErrno(t, "write", err, "write", syscall.ECONNRESET)
			got, err := io.ReadAll(s)
			wantErrno(t, "read", err, "read", syscall.ECONNRESET)
			if want := "0123456"; !lose && string(got) != want || lose && len(got) != 0 {
				t.Errorf("lose %v: got %q", lose, got)
			}
			if n.Up() != 7 || n.Breaks() != 1 {
				t.Errorf("counted %d, %d breaks", n.Up(), n.Breaks())
			}
		})
	}
	bubble(t, "down of nothing loses the answer", func(t *testing.T, n *Network) {
		n.Plan = func(int) Limits { return Limits{Up: -1, Down: 0} }
		c, s := pair(t, n)
		c.Write([]byte("act"))
		io.ReadFull(s, make([]byte, 3))
		if k, err := s.Write([]byte("done")); k != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("answer: got %d, %v", k, err)
		}
		_, err := c.Read(make([]byte, 1))
		wantErrno(t, "read", err, "read", syscall.ECONNRESET)
	})
	bubble(t, "break points over all connections", func(t *testing.T, n *Network) {
		n.BreakUpAt(12, 5, 12)
		var got []string
		for range 5 {
			c, s := pair(t, n)
			c.Write([]byte("0123"))
			c.Close()
			b, err := io.ReadAll(s)
			if err != nil {
				b = append(b, '!')
			}
			got = append(got, string(b))
		}
		// 4; 1 more to 5; 4 and 3 to 12; the second 12 lets nothing pass.
		if g, w := strings.Join(got, " "), "0123 0! 0123 012! !"; g != w {
			t.Errorf("got %q, want %q", g, w)
		}
		if n.Breaks() != 3 || n.Up() != 12 {
			t.Errorf("got %d breaks, %d bytes", n.Breaks(), n.Up())
		}
	})
	bubble(t, "break point down", func(t *testing.T, n *Network) {
		n.BreakDownAt(2)
		n.Lose = true
		c, s := pair(t, n)
		s.Write([]byte("0123"))
		if b, err := io.ReadAll(c); len(b) != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

// The dialler sees the break at once, the listener the last bytes later,
// whatever the dialler does.
func TestLateBytes(t *testing.T) {
	for _, lose := range []bool{false, true} {
		bubble(t, "late", func(t *testing.T, n *Network) {
			n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1, Lose: lose, LateBytes: 3, Late: time.Second} }
			c, s := pair(t, n)
			began := time.Now()
			_, err := c.Write([]byte("0123456789"))
			wantErrno(t, "write", err, "write", syscall.ECONNRESET)
			c.(interface{ SetLinger(int) error }).SetLinger(0)
			c.Close()
			b := make([]byte, 10)
			if k, err := s.Read(b); k != 4 || err != nil || time.Since(began) != 0 {
				t.Errorf("lose %v: read %q after %s, %v", lose, b[:k], time.Since(began), err)
			}
			rest, err := io.ReadAll(s)
			wantErrno(t, "read", err, "read", syscall.ECONNRESET)
			want, after := "456", time.Second
			if lose {
				want, after = "", 0
			}
			if took := time.Since(began); string(rest) != want || took != after {
				t.Errorf("lose %v: got %q after %s", lose, rest, took)
			}
		})
	}
	bubble(t, "without a break they are only slow", func(t *testing.T, n *Network) {
		n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1, LateBytes: 3, Late: time.Second} }
		c, s := pair(t, n)
		began := time.Now()
		c.Write([]byte("01234"))
		b := make([]byte, 5)
		if _, err := io.ReadFull(s, b); err != nil || string(b) != "01234" || time.Since(began) != time.Second {
			t.Errorf("got %q after %s, %v", b, time.Since(began), err)
		}
	})
	bubble(t, "a reset by the dialler loses them", func(t *testing.T, n *Network) {
		n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1, LateBytes: 3, Late: time.Second} }
		c, s := pair(t, n)
		c.Write([]byte("01234"))
		c.(interface{ SetLinger(int) error }).SetLinger(0)
		c.Close()
		got, err := io.ReadAll(s)
		wantErrno(t, "read", err, "read", syscall.ECONNRESET)
		if string(got) != "0123" {
			t.Errorf("got %q", got)
		}
	})
}

// With a latency, what an end sees depends on instants and positions alone: both
// ends act at the same instants here, in goroutines of any order.
func TestLatency(t *testing.T) {
	const latency = 100 * time.Nanosecond
	read := func(c net.Conn, began time.Time) func() (string, time.Duration, error) {
		var b []byte
		var err error
		var at time.Duration
		done := make(chan struct{})
		go func() {
			defer close(done)
			b, err = io.ReadAll(c)
			at = time.Since(began)
		}()
		return func() (string, time.Duration, error) { <-done; return string(b), at, err }
	}
	reset := func(c net.Conn) { c.(interface{ SetLinger(int) error }).SetLinger(0); c.Close() }
	for range 50 { // each in an order of the scheduler's own
		bubble(t, "bytes take the latency", func(t *testing.T, n *Network) {
			n.Latency = latency
			c, s := pair(t, n)
			got := read(s, time.Now())
			for range 10 {
				c.Write([]byte("x"))
			}
			c.Close()
			if g, at, err := got(); g != "xxxxxxxxxx" || err != nil || at != latency {
				t.Errorf("got %q after %s, %v", g, at, err)
			}
		})
		bubble(t, "room takes the latency", func(t *testing.T, n *Network) {
			n.Latency = latency
			c, s := pair(t, n)
			began := time.Now()
			server := read(s, began)
			c.Write(make([]byte, bufferSize))
			c.Write([]byte("x"))
			if took := time.Since(began); took != 2*latency {
				t.Errorf("took %s", took)
			}
			c.Close()
			server()
		})
		bubble(t, "a limit lets pass exactly the bytes before it, and no answer", func(t *testing.T, n *Network) {
			n.Latency = latency
			n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1} }
			c, s := pair(t, n)
			began := time.Now()
			go c.Write([]byte("0123456789"))
			go s.Write([]byte("before"))
			go func() {
				time.Sleep(latency)
				s.Write([]byte("answer"))
			}()
			client, server := read(c, began), read(s, began)
			g, at, err := server()
			if g != "0123456" || !errors.Is(err, syscall.ECONNRESET) || at != latency*3/2 {
				t.Errorf("server: got %q after %s, %v", g, at, err)
			}
			g, at, err = client()
			if g != "before" || !errors.Is(err, syscall.ECONNRESET) || at != latency*3/2 {
				t.Errorf("client: got %q after %s, %v", g, at, err)
			}
		})
		bubble(t, "with Lose, what was written last does not arrive", func(t *testing.T, n *Network) {
			n.Latency = latency
			n.Plan = func(int) Limits { return Limits{Up: 7, Down: -1, Lose: true} }
			c, s := pair(t, n)
			server := read(s, time.Now())
			c.Write([]byte("01"))
			time.Sleep(latency)
			c.Write([]byte("23456789"))
			if g, at, err := server(); g != "01" || !errors.Is(err, syscall.ECONNRESET) || at != latency*3/2 {
				t.Errorf("got %q after %s, %v", g, at, err)
			}
		})
		bubble(t, "a reset by an end loses what is in flight", func(t *testing.T, n *Network) {
			n.Latency = latency
			c, s := pair(t, n)
			server := read(s, time.Now())
			c.Write([]byte("01"))
			time.Sleep(latency)
			go c.Write([]byte("lost either way"))
			go reset(c)
			if g, at, err := server(); g != "01" || !errors.Is(err, syscall.ECONNRESET) || at != latency+latency*3/8 {
				t.Errorf("got %q after %s, %v", g, at, err)
			}
		})
	}
	bubble(t, "an answer and a close: reads come first on one connection, writes on the next", func(t *testing.T, n *Network) {
		n.Latency = latency
		for _, want := range []time.Duration{latency * 3 / 2, latency / 2} {
			c, s := pair(t, n)
			began := time.Now()
			answer := read(c, began)
			s.Write([]byte("no"))
			s.Close()
			_, err := c.Write(make([]byte, 2*bufferSize))
			wantErrno(t, "write", err, "write", syscall.EPIPE)
			if at := time.Since(began); at != want {
				t.Errorf("the write failed after %s, want %s", at, want)
			}
			if g, at, err := answer(); g != "no" || err != nil || at != latency {
				t.Errorf("got %q after %s, %v", g, at, err)
			}
			c.Close()
		}
	})
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		if _, err := n.Dial(t.Context(), "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("no listener: got %v", err)
		}
		ln, _ := n.Listen(addr)
		if _, err := n.Listen(addr); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second listener: got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		var c net.Conn
		for err == nil { // until the backlog is full
			var d net.Conn
			if d, err = n.Dial(ctx, "tcp", addr); err == nil {
				c = d
			}
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("full backlog: got %v", err)
		}
		ln.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("never accepted: got %v", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: got %v", err)
		}
	})
}

// The whole of net/http runs over it, on virtual time.
func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		ln, _ := n.Listen(addr)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		})}
		go srv.Serve(ln)
		tr := &http.Transport{DialContext: n.Dial}
		defer func() {
			tr.CloseIdleConnections()
			srv.Close()
			synctest.Wait()
		}()
		begin := time.Now()
		body := strings.Repeat("x", 3*bufferSize)
		res, err := (&http.Client{Transport: tr}).Post("http://"+addr, "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		if err != nil || string(got) != body || time.Since(begin) != time.Hour {
			t.Errorf("got %d bytes, %v after %v", len(got), err, time.Since(begin))
		}
	})
}
