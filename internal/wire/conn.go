// SPDX-License-Identifier: Apache-2.0

// Package wire makes the connections and carries one request over one of them:
// it counts bytes where they leave the process without losing sendfile, notices
// when they stop moving, and can kill a connection so that the peer learns of
// it at once.
//
// Nothing here retries.
package wire

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// What one sendfile may move before it is counted. The size follows the link,
// so that bytes are seen about ten times a second on any, and a fast one is not
// slowed by counting.
const (
	leastPiece = 256 << 10
	mostPiece  = 16 << 20
	pieceTime  = 100 * time.Millisecond
)

// Info describes a connection at one moment. The zero Info means that no
// connection was made.
type Info struct {
	Local, Remote  string
	Age            time.Duration
	Sent, Received int64
	// Unacked is how many of the bytes sent the peer's kernel had not acknowledged
	// when the connection was last asked, or was closed. They may never have left
	// this host. 0 also stands for not known: only Linux tells.
	Unacked int64
}

// Conn is a connection that this package dialled. It is what lies below TLS.
type Conn struct {
	net.Conn
	born           time.Time
	sent, received atomic.Int64
	unacked        atomic.Int64 // as of Info
	killed         atomic.Bool
	heard          atomic.Bool  // hearOut has waited
	used           atomic.Int64 // when a Tracker last saw it, in Unix nanoseconds
	user           atomic.Pointer[user]
	ended          atomic.Pointer[error] // what the first Read that failed said

	limit  *Limiter
	closed chan struct{}
	once   sync.Once // closes closed
}

// user is the request that has a connection.
type user struct {
	// moved is told how many bytes each write moved.
	moved func(int64)
	// body makes Close send a reset: net/http closes politely, and the kernel
	// would then go on delivering megabytes of a body that has been given up.
	body bool
	ctx  context.Context
	// check, unless nil, is called before each write, see CheckedBy.
	check func() error

	mu           sync.Mutex
	handed, told int64 // bytes handed to the connection, and of these told to onSent
}

func newConn(c net.Conn, limit *Limiter) *Conn {
	return &Conn{Conn: c, born: time.Now(), limit: limit, closed: make(chan struct{})}
}

// Info says where the connection goes and what it has carried.
func (c *Conn) Info() Info {
	return Info{
		Local:    c.LocalAddr().String(),
		Remote:   c.RemoteAddr().String(),
		Age:      time.Since(c.born),
		Sent:     c.sent.Load(),
		Received: c.received.Load(),
		Unacked:  c.waiting(),
	}
}

// waiting is how many bytes the peer's kernel has not acknowledged, or had not when
// the connection was closed; 0 if nobody knows.
func (c *Conn) waiting() int64 {
	if n := acked(c.Conn); n >= 0 {
		c.unacked.Store(max(c.sent.Load()-n, 0))
	}
	return c.unacked.Load()
}

// Kill ends the connection with a reset. What the kernel still holds is thrown
// away, not delivered. It may be called at any time and more than once.
func (c *Conn) Kill() {
	c.killed.Store(true)
	c.Close() //nolint:errcheck // it is being thrown away
}

// Close closes the connection, with a reset while a body is under way.
func (c *Conn) Close() error {
	c.waiting() // nobody knows afterwards
	if u := c.user.Load(); c.killed.Load() || u != nil && u.body {
		linger(c.Conn, reset)
	} else {
		linger(c.Conn, politely)
	}
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// How a connection ends: what a kernel still holds is thrown away, or is
// delivered first.
const (
	reset    = 0
	politely = -1
)

// largestAlert bounds the record of an alert (RFC 8446, section 6; RFC 5246 with
// padding), in bytes.
const largestAlert = 128

// linger says how c is to end, if it is open and can be told. Connections are
// dialled so that the kernel resets them if the process dies.
func linger(c net.Conn, how int) bool {
	l, ok := c.(interface{ SetLinger(sec int) error })
	return ok && l.SetLinger(how) == nil
}

func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	if err != nil {
		c.ended.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (c *Conn) Write(b []byte) (int, error) {
	done := 0
	for {
		piece := c.limit.grant(int64(len(b)-done), c.closed)
		n, err := c.write(b[done : done+int(piece)])
		done += n
		c.moved(int64(n))
		if err != nil || piece == 0 || done == len(b) {
			if err == nil && done < len(b) {
				err = net.ErrClosed
			}
			if err != nil {
				c.hearOut(len(b))
			}
			return done, err
		}
	}
}

// hearOut gives the reader a moment after a write of a body failed: a server that
// refuses a body answers and closes, and net/http would report the failed write
// rather than the answer that has arrived. Nothing is waited for if the connection
// has ended without another byte. Over TLS the writer holds a lock meanwhile, which
// neither reading nor closing needs: crypto/tls closes the connection below it
// while a Write is under way.
//
// The alert with which crypto/tls closes a connection may be what fails, and
// net/http holds its own lock around that. So only the first failed write waits,
// none does once the request has been given up, and no small one does once reading
// has failed: these are when net/http closes a connection.
func (c *Conn) hearOut(size int) {
	u := c.user.Load()
	if u == nil || !u.body || u.ctx.Err() != nil || size <= largestAlert && c.ended.Load() != nil || c.heard.Swap(true) {
		return
	}
	before := c.received.Load()
	for range 50 {
		time.Sleep(time.Millisecond) // always, so that virtual time can be replayed
		if c.killed.Load() || c.ended.Load() != nil && c.received.Load() == before {
			return
		}
	}
}

// ReadFrom is what lets net/http use sendfile for a body that is a file. It
// goes in pieces so that the bytes are seen while they leave; net finds the
// file only directly below a single LimitedReader.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	to, ok := c.Conn.(io.ReaderFrom)
	from, limited := r.(*io.LimitedReader)
	if !ok || !limited {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	piece := int64(leastPiece)
	for from.N > 0 {
		want := c.limit.grant(min(from.N, piece), c.closed)
		if want == 0 {
			return n, net.ErrClosed
		}
		began := time.Now()
		m, err := c.readFrom(to, from.R, want)
		from.N -= m
		n += m
		c.moved(m)
		if err != nil {
			c.hearOut(int(want))
		}
		if err != nil || m < want {
			return n, err
		}
		switch took := time.Since(began); {
		case took < pieceTime/2:
			piece = min(2*piece, mostPiece)
		case took > 2*pieceTime:
			piece = max(piece/2, leastPiece)
		}
	}
	return n, nil
}

func (c *Conn) moved(n int64) {
	if n <= 0 {
		return
	}
	c.sent.Add(n)
	if u := c.user.Load(); u != nil {
		u.moved(n)
	}
}
