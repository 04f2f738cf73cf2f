// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a server that keeps what each connection sent and how it ended.
type sink struct {
	net.Listener
	ends chan end
	wg   sync.WaitGroup
}

type end struct {
	got []byte
	err error // nil after FIN
}

// newSink serves connections with answer, which may be nil.
func newSink(t testing.TB, answer func(net.Conn)) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{Listener: ln, ends: make(chan end, 100)}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer c.Close()
				if answer != nil {
					answer(c)
				}
				b, err := io.ReadAll(c)
				s.ends <- end{b, err}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

func (s *sink) end(t testing.TB) end {
	t.Helper()
	select {
	case e := <-s.ends:
		return e
	case <-time.After(time.Minute):
		t.Fatal("the server saw no end")
		return end{}
	}
}

func start(t testing.TB, target string, o Options) *Proxy {
	t.Helper()
	p, err := Start(target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func dial(t testing.TB, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// broken writes body and reads until the connection ends, and gives both ends.
func broken(c net.Conn, body []byte) (werr, rerr error) {
	c.SetDeadline(time.Now().Add(time.Minute))
	_, werr = c.Write(body)
	_, rerr = c.Read(make([]byte, 1))
	return werr, rerr
}

func isReset(errs ...error) bool {
	for _, err := range errs {
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return true
		}
	}
	return false
}

func TestForwardsBothWays(t *testing.T) {
	s := newSink(t, func(c net.Conn) { c.Write([]byte("hello")) })
	p := start(t, s.Addr().String(), Options{})
	c := dial(t, p)
	body := pattern(3<<20 + 1)
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	down, err := io.ReadAll(c)
	if err != nil || string(down) != "hello" {
		t.Fatalf("down: got %q, %v", down, err)
	}
	if e := s.end(t); !bytes.Equal(e.got, body) || e.err != nil {
		t.Fatalf("up: got %d bytes, %v", len(e.got), e.err)
	}
	st := p.Stats()
	if st.Conns != 1 || st.Up != int64(len(body)) || st.Down != 5 || st.Faults != 0 {
		t.Errorf("stats: got %+v", st)
	}
}

func TestResetClientDeliversExactly(t *testing.T) {
	for _, at := range []int64{1, 1000, readSize - 1, readSize, readSize + 1, 2 << 20} {
		s := newSink(t, func(c net.Conn) { c.Write(pattern(1000)) })
		var calls int
		p := start(t, s.Addr().String(), Options{
			Plan:    Every(at, Fault{Kind: ResetClient}),
			OnFault: func(int, Fault) { calls++ },
		})
		body := pattern(4 << 20)
		if _, err := dial(t, p).Write(body); err == nil {
			// The write may fit the kernel's buffers; the fault is what counts.
			t.Logf("at %d: the write was buffered whole", at)
		}
		e := s.end(t)
		if e.err != nil || !bytes.Equal(e.got, body[:at]) {
			t.Errorf("at %d: server got %d bytes, %v; want %d and FIN", at, len(e.got), e.err, at)
		}
		p.Close()
		if st := p.Stats(); st.Up != at || st.Faults != 1 || calls != 1 || st.Each[0].Fault != ResetClient {
			t.Errorf("at %d: got %+v, %d calls", at, st, calls)
		}
	}
}

func TestWhatTheSidesSee(t *testing.T) {
	for _, tc := range []struct {
		kind                     Kind
		clientReset, serverReset bool
	}{{ResetClient, true, false}, {ResetBoth, true, true}, {Cut, false, false}} {
		t.Run(tc.kind.String(), func(t *testing.T) {
			s := newSink(t, nil)
			p := start(t, s.Addr().String(), Options{Plan: Every(100, Fault{Kind: tc.kind})})
			c := dial(t, p)
			_, rerr := broken(c, pattern(200))
			if got := isReset(rerr); got != tc.clientReset {
				t.Errorf("client: got %v, want reset %v", rerr, tc.clientReset)
			}
			if !tc.clientReset && rerr != io.EOF {
				t.Errorf("client: got %v, want EOF", rerr)
			}
			c.Close()
			if e := s.end(t); isReset(e.err) != tc.serverReset {
				t.Errorf("server: got %v, want reset %v", e.err, tc.serverReset)
			}
		})
	}
}

func TestStall(t *testing.T) {
	s := newSink(t, func(c net.Conn) { c.Write([]byte("x")) })
	p := start(t, s.Addr().String(), Options{Plan: First(1, Every(100, Fault{Kind: Stall, For: 100 * time.Millisecond}))})
	c := dial(t, p)
	io.ReadFull(c, make([]byte, 1))
	begin := time.Now()
	werr, rerr := broken(c, pattern(200))
	if !isReset(werr, rerr) || time.Since(begin) < 100*time.Millisecond {
		t.Errorf("got %v, %v after %v", werr, rerr, time.Since(begin))
	}
	s.end(t)
	if st := p.Stats(); st.Up != 100 || st.Faults != 1 {
		t.Errorf("stats: got %+v", st)
	}
	// The plan is used up: the next connection lives.
	c = dial(t, p)
	c.Write(pattern(200))
	c.(*net.TCPConn).CloseWrite()
	if e := s.end(t); len(e.got) != 200 {
		t.Errorf("second connection: got %d bytes", len(e.got))
	}
}

func TestStallEndsWithClose(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{Plan: Every(1, Fault{Kind: Stall})})
	c := dial(t, p)
	c.Write(pattern(10))
	for p.Stats().Faults == 0 {
		time.Sleep(time.Millisecond)
	}
	p.Close()
	s.end(t)
}

func TestLoseAnswer(t *testing.T) {
	s := newSink(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, 1000))
		c.Write([]byte("201 Created"))
	})
	p := start(t, s.Addr().String(), Options{Plan: Every(1, Fault{Kind: LoseAnswer})})
	werr, rerr := broken(dial(t, p), pattern(1000))
	if werr != nil || !isReset(rerr) {
		t.Errorf("got write %v, read %v; want a whole write and a reset", werr, rerr)
	}
	s.end(t)
	if st := p.Stats(); st.Up != 1000 || st.Down != 0 {
		t.Errorf("stats: got %+v", st)
	}
}

func TestTriggerDown(t *testing.T) {
	s := newSink(t, func(c net.Conn) { c.Write(pattern(100)) })
	p := start(t, s.Addr().String(), Options{Plan: func(int) Fault { return Fault{Kind: Cut, AtDown: 40} }})
	b, err := io.ReadAll(dial(t, p))
	if err != nil || len(b) != 40 {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
	s.end(t)
}

func TestTriggerAge(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{Plan: func(int) Fault { return Fault{Kind: ResetClient, Age: 30 * time.Millisecond} }})
	if _, err := broken(dial(t, p), []byte("x")); !isReset(err) {
		t.Errorf("got %v", err)
	}
	if e := s.end(t); string(e.got) != "x" || e.err != nil {
		t.Errorf("server got %q, %v", e.got, e.err)
	}
}

func TestNoTriggerFiresAtOnce(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{Plan: func(int) Fault { return Fault{Kind: ResetBoth} }})
	c, err := net.Dial("tcp", p.Addr())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !isReset(err) {
		t.Errorf("got %v", err)
	}
	s.end(t)
}

func TestEveryTotalCountsOverConnections(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{Plan: EveryTotal(100, Fault{Kind: ResetClient})})
	// 70 of 100; 30 left; the count begins again.
	for i, want := range []int{70, 30, 70, 30} {
		c := dial(t, p)
		c.Write(pattern(70))
		if want == 70 { // a whole small request
			c.(*net.TCPConn).CloseWrite()
		}
		if e := s.end(t); len(e.got) != want {
			t.Errorf("connection %d: got %d bytes, want %d", i, len(e.got), want)
		}
	}
	if st := p.Stats(); st.Faults != 2 || st.Up != 200 {
		t.Errorf("stats: got %+v", st)
	}
}

func TestSeededIsDeterministic(t *testing.T) {
	a, b := Seeded(7, 1<<20, Fault{}), Seeded(7, 1<<20, Fault{})
	var sum int64
	const n = 5000
	for i := range n {
		if a(i) != b(i) || a(i).At < 1 {
			t.Fatalf("connection %d: %v and %v", i, a(i), b(i))
		}
		sum += a(i).At
	}
	if mean := sum / n; mean < 95<<20/100 || mean > 105<<20/100 {
		t.Errorf("mean: got %d, want about %d", mean, 1<<20)
	}
}

func TestRate(t *testing.T) {
	const rate, conns = 20 << 20, 3
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{Rate: rate})
	body := pattern(rate / 2 / conns)
	begin := time.Now()
	for range conns {
		c := dial(t, p)
		go func() { c.Write(body); c.(*net.TCPConn).CloseWrite() }()
	}
	for range conns {
		s.end(t)
	}
	took := time.Since(begin).Seconds()
	if took < 0.49 { // a busy machine may take longer, never less
		t.Errorf("got %.3f s for half a second's bytes", took)
	}
	t.Logf("%.2f%% of the rate", 100*float64(len(body)*conns)/took/rate)
}

func TestDelay(t *testing.T) {
	s := newSink(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, 1))
		c.Write([]byte("x"))
	})
	p := start(t, s.Addr().String(), Options{Delay: 250 * time.Millisecond})
	c := dial(t, p)
	begin := time.Now()
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	if d := time.Since(begin); d < 500*time.Millisecond {
		t.Errorf("round trip: got %v, want at least 500ms", d)
	}
	// Slice after slice, each 250 ms late, 32 MiB would take two minutes.
	body := pattern(32 << 20)
	begin = time.Now()
	c.Write(body)
	c.(*net.TCPConn).CloseWrite()
	if e := s.end(t); !bytes.Equal(e.got, body) {
		t.Errorf("got %d bytes, want %d", len(e.got), len(body))
	}
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("32 MiB took %v", d)
	}
}

func TestClientResetIsHandedOn(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{})
	c := dial(t, p)
	c.Write([]byte("x"))
	for p.Stats().Up == 0 {
		time.Sleep(time.Millisecond)
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if e := s.end(t); !isReset(e.err) {
		t.Errorf("server: got %v, want a reset", e.err)
	}
}

func TestNoTarget(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	p := start(t, ln.Addr().String(), Options{})
	c, err := net.Dial("tcp", p.Addr())
	if err == nil { // the reset may come as early as that
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
}

func BenchmarkForward(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<20)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	p := start(b, ln.Addr().String(), Options{})
	c := dial(b, p)
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	<-done
}

func TestHoldLetsExactlySoMuchPass(t *testing.T) {
	s := newSink(t, nil)
	p := start(t, s.Addr().String(), Options{})
	p.Hold(1000)
	c := dial(t, p)
	body := pattern(5000)
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	for p.Stats().Up < 1000 {
		time.Sleep(time.Millisecond)
	}
	p.Hold(500)
	for p.Stats().Up < 1500 {
		time.Sleep(time.Millisecond)
	}
	select {
	case e := <-s.ends:
		t.Fatalf("the server got %d bytes and an end while the line was held", len(e.got))
	default:
	}
	if up := p.Stats().Up; up != 1500 {
		t.Errorf("%d bytes passed, want 1500", up)
	}
	p.Release()
	if e := s.end(t); e.err != nil || !bytes.Equal(e.got, body) {
		t.Errorf("the server got %d bytes and %v, want all %d", len(e.got), e.err, len(body))
	}
}
