// SPDX-License-Identifier: Apache-2.0

// Package memnet is a network in memory for tests on virtual time: everything
// that waits does so on channels, which is durable blocking to testing/synctest.
// Make the Network inside the bubble.
//
// Unlike net.Pipe its connections are buffered and can be reset, so that late
// bytes, bytes lost in flight and "delivered but the answer lost" can happen.
// The direction up is from the dialler to the listener.
package memnet

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// bufferSize is what one direction of a connection holds before writers block.
const bufferSize = 64 << 10

// Limits break one connection after an exact number of bytes. A limit of 0
// breaks it as the first byte is about to pass; a negative one never.
type Limits struct {
	Up, Down int64
	// Lose discards what was delivered but not yet read, as a real reset may.
	// Otherwise it stays readable, and the reset is seen after it.
	Lose bool
	// The last LateBytes before Up travel for Late: the dialler sees the break
	// at once and may dial again, while the listener still receives them and
	// sees the reset after them, whatever the dialler does. With Lose it is
	// exactly these bytes that are lost.
	LateBytes int64
	Late      time.Duration
}

// Unlimited never breaks.
func Unlimited() Limits { return Limits{Up: -1, Down: -1} }

// Network connects dialled addresses to listeners. Its methods may be called
// from any goroutine; set the fields before the first Dial.
type Network struct {
	// Plan gives the limits of a connection, numbered from 0 in the order
	// dialled. Nil is no limits.
	Plan func(conn int) Limits
	// Lose is Limits.Lose for the breaks of BreakUpAt and BreakDownAt.
	Lose bool
	// Connecting is how long a Dial takes. Above 0, in a bubble of virtual time,
	// whatever an earlier connection had set going has come to rest before: a
	// client that dials again after a break sees the same every time.
	Connecting time.Duration
	// Latency is how long bytes, freed buffer space and the end of a stream take
	// to the peer. Above 0, in a bubble of virtual time, what an end sees depends
	// on the instants and the positions at which its peer acts, and not on which
	// goroutine runs first:
	//
	//   - Bytes arrive together with all others written at the same instant.
	//   - A limit or a break point stops its direction at that byte, and resets the
	//     connection, at both ends, one and a half Latency later: the bytes before
	//     it have arrived, and an answer to them has not. With Lose and no
	//     LateBytes the reset comes after half a Latency, and the bytes written
	//     last are lost.
	//   - The reset that Close sends after SetLinger(0) arrives after three
	//     eighths of a Latency and loses what is in flight.
	//   - An end that closes refuses what its peer still writes. The peer reads
	//     what the end wrote last before its writes fail, and a reset fails reads
	//     before writes. On connections 1, 3, 5 and 7 it is the other way round.
	//
	// 0 is no delay: what runs at the same instant then races.
	Latency time.Duration

	mu        sync.Mutex
	listeners map[string]*listener
	conns     int
	breaks    int
	total     [2]int64
	points    [2][]int64
}

const (
	up   = 0
	down = 1
)

// New is an empty network.
func New() *Network { return &Network{listeners: map[string]*listener{}} }

// BreakUpAt adds break points: once that many upstream bytes have passed over
// all connections together since the Network was made, the connection that
// carried the last of them is reset, once per point. A point already reached
// breaks the connection that is about to carry the next byte.
func (n *Network) BreakUpAt(points ...int64) { n.breakAt(up, points) }

// BreakDownAt is BreakUpAt for downstream bytes.
func (n *Network) BreakDownAt(points ...int64) { n.breakAt(down, points) }

func (n *Network) breakAt(way int, points []int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.points[way] = append(n.points[way], points...)
	slices.Sort(n.points[way])
}

// Up is the number of bytes that passed upstream.
func (n *Network) Up() int64 { return n.sum(up) }

// Down is the number of bytes that passed downstream.
func (n *Network) Down() int64 { return n.sum(down) }

func (n *Network) sum(way int) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.total[way]
}

// Conns is the number of connections dialled.
func (n *Network) Conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conns
}

// Breaks is the number of connections reset by a limit or a break point.
func (n *Network) Breaks() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.breaks
}

// admit counts up to want bytes, and says whether the connection breaks after
// them and loses what is in flight. With a Latency a break is reported once, and
// the direction that is not broken admits bytes until the reset.
func (n *Network) admit(l *link, way, want int) (k int, broken, lose bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case l.broken && n.Latency <= 0:
		return 0, true, l.limits.Lose
	case l.stopped[way]:
		return 0, false, false
	}
	k = want
	if !l.broken {
		if at := l.limit(way); at >= 0 && l.passed[way]+int64(k) >= at {
			k, broken, lose = int(at-l.passed[way]), true, l.limits.Lose
		}
		if p := n.points[way]; len(p) > 0 && n.total[way]+int64(k) >= p[0] {
			k, broken, lose = int(max(p[0]-n.total[way], 0)), true, n.Lose
			n.points[way] = p[1:]
		}
	}
	n.total[way] += int64(k)
	l.passed[way] += int64(k)
	if broken {
		l.broken, l.stopped[way] = true, true
		n.breaks++
	}
	return k, broken, lose
}

// Listen serves an address; any string will do, host:port as a rule.
func (n *Network) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, opError("listen", os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := &listener{n: n, addr: address(addr), queue: make(chan *conn, 128), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial has the shape of http.Transport.DialContext. The kind of network is
// ignored; without a listener the connection is refused.
func (n *Network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, opError("dial", err)
	}
	n.mu.Lock()
	l := n.listeners[addr]
	if l == nil {
		n.mu.Unlock()
		return nil, opError("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	number := n.conns
	n.conns++
	n.mu.Unlock()
	if n.Connecting > 0 {
		time.Sleep(n.Connecting)
	}

	k := &link{n: n, number: number, limits: Unlimited()}
	if n.Plan != nil {
		k.limits = n.Plan(number)
	}
	k.pipes[up], k.pipes[down] = newPipe(n.Latency), newPipe(n.Latency)
	if k.limits.Up >= 0 && k.limits.Late > 0 {
		k.pipes[up].gate = max(k.limits.Up-k.limits.LateBytes, 0)
		k.pipes[up].late = k.limits.Late
	}
	local := address("client:" + strconv.Itoa(number))
	client := newConn(k, up, local, l.addr)
	server := newConn(k, down, l.addr, local)
	select {
	case l.queue <- server:
		return client, nil
	case <-l.closed:
		return nil, opError("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case <-ctx.Done():
		return nil, opError("dial", ctx.Err())
	}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func opError(op string, err error) error { return &net.OpError{Op: op, Net: "tcp", Err: err} }

type listener struct {
	n      *Network
	addr   address
	queue  chan *conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, opError("accept", net.ErrClosed)
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, opError("accept", net.ErrClosed)
	}
}

// Close resets the connections nobody accepted, as a kernel does.
func (l *listener) Close() error {
	err := opError("close", net.ErrClosed)
	l.once.Do(func() {
		l.n.mu.Lock()
		delete(l.n.listeners, string(l.addr))
		l.n.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.SetLinger(0)
				c.Close()
				continue
			default:
			}
			break
		}
		err = nil
	})
	return err
}

// link is what both ends of a connection share. The counters are under n.mu.
type link struct {
	n       *Network
	number  int
	limits  Limits
	pipes   [2]*pipe // by direction
	passed  [2]int64
	stopped [2]bool // the direction was broken
	broken  bool
}

func (k *link) limit(way int) int64 {
	if way == up {
		return k.limits.Up
	}
	return k.limits.Down
}

// snap resets the connection after a break.
func (k *link) snap(lose bool) {
	wait := k.n.Latency + k.n.Latency/2
	if lose && k.pipes[up].late == 0 {
		wait = k.n.Latency / 2
	}
	k.reset(wait, lose)
}

// reset breaks both directions after a while. What was delivered before an
// earlier break stays readable: no second reset reaches the peer.
func (k *link) reset(wait time.Duration, lose bool) {
	if k.n.Latency <= 0 {
		k.cut(lose)
		k.notify(true, true)
		return
	}
	readersFirst := k.readersFirst()
	time.AfterFunc(wait, func() {
		k.cut(lose)
		k.notify(readersFirst, !readersFirst)
	})
	time.AfterFunc(wait+k.n.Latency/4, func() { k.notify(true, true) })
}

// readersFirst tells which of two goroutines of an end learns of a break first.
// Only early connections have it the hard way round: nobody is that unlucky
// for ever.
func (k *link) readersFirst() bool { return k.number%2 == 0 || k.number > 8 }

// cut ends both directions and discards what is in flight.
func (k *link) cut(lose bool) {
	for _, p := range k.pipes {
		p.mu.Lock()
		switch {
		case p.reset:
		case lose:
			p.lose()
		case p.gate < 0:
			p.data = p.data[:p.readable()]
		}
		p.reset = true
		p.mu.Unlock()
	}
}

// notify lets readers or writers see that the connection was cut.
func (k *link) notify(readers, writers bool) {
	for _, p := range k.pipes {
		p.mu.Lock()
		p.readReset = p.readReset || readers
		p.writeReset = p.writeReset || writers
		p.changed()
		p.mu.Unlock()
	}
}

// pipe is one direction.
type pipe struct {
	latency time.Duration

	mu    sync.Mutex // never held while waiting
	base  []byte
	data  []byte        // unread part of base, in flight or arrived
	fin   bool          // the writer has closed
	ended bool          // the reader has been told
	gone  bool          // the writer has been told that the reader has closed
	reset bool          // nothing arrives any more
	wake  chan struct{} // closed and replaced at every change

	readReset, writeReset bool // the end has been told of the reset

	// Positions in the stream: what the reader took and what the writer wrote,
	// and how much of it the other end knows.
	taken, written int64
	freed, arrived delayed

	// Bytes from gate on are readable only late after the first of them was
	// written; -1 is no gate.
	gate int64
	late time.Duration
}

// delayed is a position that the other end learns of a latency later.
type delayed struct {
	seen  int64
	under []moved
}

// moved is a position reached at an instant.
type moved struct {
	at time.Time
	to int64
}

// move wants p.mu held, for the d of p.
func (p *pipe) move(d *delayed, to int64) {
	if p.latency <= 0 {
		d.seen = to
		return
	}
	now := time.Now()
	if n := len(d.under); n > 0 && d.under[n-1].at.Equal(now) {
		d.under[n-1].to = to
		return
	}
	d.under = append(d.under, moved{now, to})
	p.later(p.latency, func() {
		if !p.reset {
			d.seen = d.under[0].to
		}
		d.under = d.under[1:]
	})
}

// later runs f after a while, or at once without a latency. It wants p.mu held,
// and f runs with p.mu held.
func (p *pipe) later(wait time.Duration, f func()) {
	if p.latency <= 0 {
		f()
		p.changed()
		return
	}
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		f()
		p.changed()
	})
}

func newPipe(latency time.Duration) *pipe {
	return &pipe{latency: latency, wake: make(chan struct{}), gate: -1}
}

// readable is how many bytes may be read now.
func (p *pipe) readable() int {
	n := min(int64(len(p.data)), p.arrived.seen-p.taken)
	if p.gate >= 0 {
		n = min(n, p.gate-p.taken)
	}
	return int(n)
}

// room is how many bytes the writer may add.
func (p *pipe) room() int { return int(bufferSize - (p.written - p.freed.seen)) }

// isHeld tells bytes that are still under way.
func (p *pipe) isHeld() bool { return p.gate >= 0 && p.written > p.gate }

// lose discards what has not been read, or of a gated pipe what is under way.
func (p *pipe) lose() {
	if p.gate < 0 {
		p.drop()
		return
	}
	p.data = p.data[:p.readable()]
	p.gate = -1
}

func (p *pipe) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = -1
	p.changed()
}

func (p *pipe) changed() {
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *pipe) drop() { p.base, p.data = nil, nil }

// put appends b, for which there is room.
func (p *pipe) put(b []byte) {
	if p.base == nil {
		p.base = make([]byte, bufferSize)
		p.data = p.base[:0]
	}
	if len(b) > cap(p.data)-len(p.data) {
		p.data = p.base[:copy(p.base, p.data)]
	}
	p.data = append(p.data, b...)
	before := p.isHeld()
	p.written += int64(len(b))
	p.move(&p.arrived, p.written)
	if !before && p.isHeld() {
		time.AfterFunc(p.late, p.release)
	}
}

// conn is one end.
type conn struct {
	link          *link
	way           int // the direction written
	in, out       *pipe
	local, remote address
	rd, wd        deadline
	writing       chan struct{} // held by the writer, so that writes do not mix

	mu     sync.Mutex
	linger int
	done   chan struct{}
	isDone bool
}

func newConn(k *link, way int, local, remote address) *conn {
	return &conn{
		link: k, way: way, in: k.pipes[1-way], out: k.pipes[way],
		local: local, remote: remote, rd: newDeadline(), wd: newDeadline(),
		writing: make(chan struct{}, 1), linger: -1, done: make(chan struct{}),
	}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) fail(op string, err error) error {
	if no, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(op, no)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// usable reports why c cannot be used at this moment.
func (c *conn) usable(d *deadline) error {
	select {
	case <-c.done:
		return net.ErrClosed
	case <-d.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

func (c *conn) Read(b []byte) (int, error) {
	for {
		if err := c.usable(&c.rd); err != nil {
			return 0, c.fail("read", err)
		}
		p := c.in
		p.mu.Lock()
		switch {
		case len(b) == 0:
			p.mu.Unlock()
			return 0, nil
		case p.readable() > 0:
			n := copy(b, p.data[:p.readable()])
			p.taken += int64(n)
			if p.data = p.data[n:]; len(p.data) == 0 {
				p.data = p.base[:0]
			}
			p.move(&p.freed, p.taken)
			p.changed()
			p.mu.Unlock()
			return n, nil
		case p.isHeld():
		case p.readReset:
			p.mu.Unlock()
			return 0, c.fail("read", syscall.ECONNRESET)
		case p.reset:
		case p.ended && p.arrived.seen == p.written:
			p.mu.Unlock()
			return 0, io.EOF
		}
		wake := p.wake
		p.mu.Unlock()
		c.wait(wake, &c.rd)
	}
}

func (c *conn) wait(wake chan struct{}, d *deadline) {
	select {
	case <-wake:
	case <-c.done:
	case <-d.passed():
	}
}

// Write blocks while the peer's buffer is full. What it accepted the peer can
// read, unless the connection is reset first.
func (c *conn) Write(b []byte) (n int, err error) {
	for locked := false; !locked; {
		if err := c.usable(&c.wd); err != nil {
			return 0, c.fail("write", err)
		}
		select {
		case c.writing <- struct{}{}:
			locked = true
		case <-c.done:
		case <-c.wd.passed():
		}
	}
	defer func() { <-c.writing }()
	for {
		if err := c.usable(&c.wd); err != nil {
			return n, c.fail("write", err)
		}
		p := c.out
		p.mu.Lock()
		switch {
		case p.writeReset:
			p.mu.Unlock()
			return n, c.fail("write", syscall.ECONNRESET)
		case p.fin, p.gone:
			p.mu.Unlock()
			return n, c.fail("write", syscall.EPIPE)
		case len(b) == 0:
			p.mu.Unlock()
			return n, nil
		}
		wake, k, broken, lose := p.wake, 0, false, false
		if room := min(len(b), p.room()); room > 0 {
			if k, broken, lose = c.link.n.admit(c.link, c.way, room); k > 0 {
				p.put(b[:k])
				p.changed()
			}
		}
		p.mu.Unlock()
		n += k
		b = b[k:]
		if broken {
			c.link.snap(lose)
		}
		if k == 0 && !broken {
			c.wait(wake, &c.wd)
		}
	}
}

// SetLinger has the meaning of net.TCPConn's: after SetLinger(0) Close sends a
// reset and what the peer has not read is lost. Other values do nothing.
func (c *conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec
	return nil
}

// CloseWrite sends FIN and goes on reading.
func (c *conn) CloseWrite() error {
	if err := c.usable(&deadline{}); err != nil {
		return c.fail("close", err)
	}
	c.sendFIN()
	return nil
}

func (c *conn) sendFIN() {
	p := c.out
	p.mu.Lock()
	p.fin = true
	p.later(p.latency, func() { p.ended = true })
	p.mu.Unlock()
}

// Close sends FIN, or a reset after SetLinger(0). Unlike a kernel it sends FIN
// also when there is unread data.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.isDone {
		c.mu.Unlock()
		return c.fail("close", net.ErrClosed)
	}
	c.isDone = true
	close(c.done)
	hard := c.linger == 0
	c.mu.Unlock()
	c.rd.stop()
	c.wd.stop()
	if hard {
		c.link.reset(3*c.link.n.Latency/8, true) // never at the instant of a break
		return nil
	}
	c.sendFIN()
	p := c.in
	p.mu.Lock()
	p.drop()
	wait := p.latency / 2
	if c.link.readersFirst() {
		wait += p.latency
	}
	p.later(wait, func() { p.gone = true })
	p.mu.Unlock()
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&c.rd, t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.wd, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isDone {
		return c.fail("set", net.ErrClosed)
	}
	d.set(t)
	return nil
}

// deadline is a channel that is closed when the time has come. The zero value
// never passes.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{}
}

func newDeadline() deadline { return deadline{ch: make(chan struct{})} }

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
}

// set replaces the channel; a waiter that holds the old one is woken by it, so
// that it looks at the new deadline.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.ch: // already passed, nobody waits on it
	default:
		close(d.ch)
	}
	ch := make(chan struct{})
	d.ch = ch
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(ch)
		return
	}
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		select {
		case <-ch:
		default:
			close(ch)
		}
	})
}
