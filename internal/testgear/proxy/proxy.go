// SPDX-License-Identifier: Apache-2.0

// Package proxy is a TCP proxy on loopback that breaks connections at exact
// byte positions, for tests of what a client does about it.
//
// Upstream is client to registry, downstream the other way. Bytes count as
// forwarded once the kernel has taken them on the far side.
package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a proxy. The zero value forwards everything at full speed.
type Options struct {
	// Rate bounds the upstream bytes per second of all connections together.
	Rate int64
	// Delay is added to each direction. It does not bound the throughput, up
	// to maxQueued slices in flight.
	Delay time.Duration
	// Buffer, when set, is the size of the kernel's receive buffer towards the
	// client. A small one keeps what a client has "sent" close to what was
	// forwarded, as on a real link; the kernel's own may hold tens of MiB.
	Buffer int
	// Plan gives the fault of each connection; nil is none.
	Plan Plan
	// OnFault is called as a fault fires, before the sockets notice, possibly
	// from several goroutines at once.
	OnFault func(conn int, f Fault)
}

// Stats are counts since the start.
type Stats struct {
	Conns  int   // accepted
	Faults int   // fired
	Up     int64 // bytes forwarded to the registry
	Down   int64 // bytes forwarded to the client
	Each   []ConnStats
}

// ConnStats are the counts of one connection, in the order accepted.
type ConnStats struct {
	Up, Down int64
	Fault    Kind // None until one fired
	Open     bool
}

const (
	readSize  = 256 << 10
	delaySize = 64 << 10 // slices of a delayed direction
	maxQueued = 1024

	// How long a half-closed side may go on sending before it is closed for
	// good. Closing it with unread bytes would turn the FIN into a RST.
	drainTime = 5 * time.Second
)

// Proxy forwards one loopback port to one target.
type Proxy struct {
	o      Options
	target string
	ln     net.Listener
	pace   *pacer
	wg     sync.WaitGroup
	done   chan struct{}
	faults atomic.Int64
	hold   hold

	mu     sync.Mutex
	closed bool
	links  []*link
}

// Start listens on a free loopback port and forwards it to target (host:port).
func Start(target string, o Options) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{o: o, target: target, ln: ln, done: make(chan struct{})}
	if o.Rate > 0 {
		p.pace = &pacer{rate: o.Rate}
	}
	p.wg.Add(1)
	go p.accept()
	return p, nil
}

// Addr is the proxy's host:port.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close ends every connection and returns when no goroutine is left.
func (p *Proxy) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		p.wg.Wait()
		return
	}
	p.closed = true
	close(p.done)
	for _, l := range p.links {
		l.closeBoth()
	}
	p.mu.Unlock()
	p.ln.Close()
	p.wg.Wait()
}

// Hold lets n more upstream bytes pass, of all connections together, and then no
// more until Release or another Hold. A test can so stop a client in the middle
// of an upload, however fast or slow the machine is.
func (p *Proxy) Hold(n int64) { p.hold.set(n) }

// Release lets everything pass again.
func (p *Proxy) Release() { p.hold.set(-1) }

// Stats may be called at any time, also after Close.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Conns: len(p.links), Faults: int(p.faults.Load())}
	for _, l := range p.links {
		c := ConnStats{Up: l.up.Load(), Down: l.down.Load(), Fault: Kind(l.fired.Load()), Open: !l.ended.Load()}
		s.Up += c.Up
		s.Down += c.Down
		s.Each = append(s.Each, c)
	}
	return s
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			select {
			case <-p.done:
				return
			case <-time.After(time.Millisecond): // out of descriptors, or aborted before we came
				continue
			}
		}
		l := &link{p: p, client: c.(*net.TCPConn), over: make(chan struct{})}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			c.Close()
			return
		}
		l.n = len(p.links)
		p.links = append(p.links, l)
		p.mu.Unlock()
		if p.o.Plan != nil {
			l.fault = p.o.Plan(l.n)
		}
		p.wg.Add(1)
		go l.run()
	}
}

// What the pumps of a link do with the bytes they read.
const (
	forwarding int32 = iota
	stalled          // hold them
	losing           // forward upstream, reset at the next downstream byte
	discarding       // the link has ended; read on so that FIN stays FIN
)

type link struct {
	p        *Proxy
	n        int
	fault    Fault
	client   *net.TCPConn
	server   *net.TCPConn // set under p.mu
	up, down atomic.Int64
	state    atomic.Int32
	spent    atomic.Bool // the fault fired or was void
	once     sync.Once
	hang     sync.Once
	fired    atomic.Int32
	ended    atomic.Bool
	over     chan struct{} // closed when both pumps have ended
}

func (l *link) run() {
	defer l.p.wg.Done()
	defer l.ended.Store(true)
	if l.p.o.Buffer > 0 {
		l.client.SetReadBuffer(l.p.o.Buffer)
	}
	c, err := net.Dial("tcp", l.p.target)
	if err != nil {
		reset(l.client)
		return
	}
	l.p.mu.Lock()
	l.server = c.(*net.TCPConn)
	closed := l.p.closed
	l.p.mu.Unlock()
	if closed {
		l.closeBoth()
		return
	}
	f := l.fault
	switch {
	case f.Kind == None:
		l.spent.Store(true)
	case f.At <= 0 && f.AtDown <= 0 && f.Age <= 0 && f.total == nil:
		l.fire()
	case f.Age > 0:
		l.after(f.Age, l.fire)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(l.client, l.server, &l.up, true) })
	pumps.Go(func() { l.pump(l.server, l.client, &l.down, false) })
	pumps.Wait()
	close(l.over)
	l.closeBoth()
}

// after calls f once d has passed, unless the link ends before.
func (l *link) after(d time.Duration, f func()) {
	l.p.wg.Go(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			f()
		case <-l.over:
		case <-l.p.done:
		}
	})
}

func (l *link) closeBoth() {
	l.client.Close()
	if l.server != nil {
		l.server.Close()
	}
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// finish sends FIN and leaves the reading side open for a while.
func finish(c *net.TCPConn) {
	c.CloseWrite()
	c.SetReadDeadline(time.Now().Add(drainTime))
}

// fire makes the fault happen, once, unless its plan has no more to give.
func (l *link) fire() {
	l.once.Do(func() {
		defer l.spent.Store(true)
		if !l.fault.gate.pass() {
			return
		}
		l.p.faults.Add(1)
		l.fired.Store(int32(l.fault.Kind))
		if l.p.o.OnFault != nil {
			l.p.o.OnFault(l.n, l.fault)
		}
		switch l.fault.Kind {
		case Stall:
			l.state.Store(stalled)
			if l.fault.For > 0 {
				l.after(l.fault.For, func() { l.hangUp(ResetBoth) })
			}
		case LoseAnswer:
			l.state.Store(losing)
			if l.fault.For > 0 {
				l.after(l.fault.For, func() { l.hangUp(ResetClient) })
			}
		default:
			l.hangUp(l.fault.Kind)
		}
	})
}

func (l *link) hangUp(k Kind) {
	l.hang.Do(func() {
		l.state.Store(discarding)
		switch k {
		case ResetClient:
			reset(l.client)
			finish(l.server)
		case ResetBoth:
			reset(l.client)
			reset(l.server)
		case Cut:
			finish(l.client)
			finish(l.server)
		}
	})
}

// pump carries one direction until it ends, and passes the way it ended on.
func (l *link) pump(src, dst *net.TCPConn, count *atomic.Int64, up bool) {
	next := l.reader(src)
	defer next.stop()
	for {
		b, err := next.read()
		if len(b) > 0 && !l.pass(b, dst, count, up) {
			return
		}
		switch {
		case err == nil:
		case l.state.Load() == discarding:
			return
		case l.state.Load() == stalled:
			l.hold()
			return
		case errors.Is(err, io.EOF):
			dst.CloseWrite()
			return
		default: // a reset is handed on as one
			l.hangUp(ResetBoth)
			return
		}
	}
}

// hold waits for the end of a stall.
func (l *link) hold() {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for l.state.Load() == stalled {
		select {
		case <-t.C:
		case <-l.p.done:
			return
		}
	}
}

// pass forwards b as far as the fault allows; false ends the pump.
func (l *link) pass(b []byte, dst *net.TCPConn, count *atomic.Int64, up bool) bool {
	for len(b) > 0 {
		switch l.state.Load() {
		case stalled:
			l.hold()
			return false
		case losing:
			if !up {
				l.hangUp(ResetClient)
				return true
			}
		case discarding:
			return true
		}
		k := len(b)
		if up {
			k = l.p.pace.slice(k)
			if k = l.p.hold.take(k, l.p.done); k == 0 {
				return false
			}
		}
		held := k
		k, due := l.allow(k, count.Load(), up)
		if up {
			l.p.hold.giveBack(held - k)
		}
		if up && !l.p.pace.wait(k, l.p.done) {
			return false
		}
		n, err := dst.Write(b[:k])
		count.Add(int64(n))
		if err != nil {
			if l.state.Load() == discarding {
				return true
			}
			l.hangUp(ResetBoth)
			return false
		}
		b = b[k:]
		if due {
			l.fire()
		}
	}
	return true
}

// allow says how many of n bytes may pass before the fault, and whether it is
// due after them.
func (l *link) allow(n int, passed int64, up bool) (int, bool) {
	if l.spent.Load() {
		return n, false
	}
	at := l.fault.At
	switch {
	case up && l.fault.total != nil:
		return l.fault.total.take(n)
	case !up:
		at = l.fault.AtDown
	}
	if at <= 0 || passed+int64(n) < at {
		return n, false
	}
	return int(at - passed), true
}

// slices gives a pump what arrived, at once or delayed.
type slices struct {
	src   *net.TCPConn
	buf   []byte
	queue chan slice
	quit  chan struct{}
	held  []byte // the queued buffer in use
}

type slice struct {
	b   []byte
	err error
	due time.Time
}

var (
	large = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}
	small = sync.Pool{New: func() any { b := make([]byte, delaySize); return &b }}
)

func (l *link) reader(src *net.TCPConn) *slices {
	s := &slices{src: src}
	if l.p.o.Delay <= 0 {
		s.buf = *large.Get().(*[]byte)
		return s
	}
	s.queue, s.quit = make(chan slice, maxQueued), make(chan struct{})
	l.p.wg.Go(func() {
		for {
			b := *small.Get().(*[]byte)
			n, err := src.Read(b)
			select {
			case s.queue <- slice{b[:n], err, time.Now().Add(l.p.o.Delay)}:
			case <-s.quit:
				return
			}
			if err != nil {
				return
			}
		}
	})
	return s
}

func (s *slices) read() ([]byte, error) {
	if s.queue == nil {
		n, err := s.src.Read(s.buf)
		return s.buf[:n], err
	}
	if s.held != nil {
		b := s.held[:delaySize]
		small.Put(&b)
	}
	q := <-s.queue
	s.held = q.b
	// Not interrupted by Close: the delay is short, and Close waits for it.
	time.Sleep(time.Until(q.due))
	return q.b, q.err
}

func (s *slices) stop() {
	if s.queue == nil {
		large.Put(&s.buf)
		return
	}
	close(s.quit)
}
