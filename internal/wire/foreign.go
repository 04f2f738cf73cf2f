// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Tracker is the memory of the connections that somebody else's RoundTripper
// makes: what each has carried of the bodies that went through Send, which is
// what a break is judged by. It touches none of their bytes.
type Tracker struct {
	rt    http.RoundTripper
	fresh func() http.RoundTripper // makes a connection for each request; nil if rt cannot

	mu    sync.Mutex
	conns map[net.Conn]*Conn
}

// Track makes a RoundTripper of rt whose connections Send knows.
func Track(rt http.RoundTripper) *Tracker {
	t := &Tracker{rt: rt, conns: map[net.Conn]*Conn{}}
	if h, ok := rt.(*http.Transport); ok {
		t.fresh = sync.OnceValue(func() http.RoundTripper {
			c := h.Clone()
			c.DisableKeepAlives = true
			return c
		})
	}
	return t
}

// RoundTrip implements http.RoundTripper. A request whose context asks for a
// connection of its own, as of Fresh, gets one if the RoundTripper is an
// *http.Transport. On any other, its connection is at least not used again.
func (t *Tracker) RoundTrip(req *http.Request) (*http.Response, error) {
	if IsFresh(req.Context()) {
		if t.fresh != nil {
			return t.fresh().RoundTrip(req)
		}
		req = req.WithContext(req.Context()) // a copy
		req.Close = true
	}
	return t.rt.RoundTrip(req)
}

// CloseIdleConnections closes what no request is using, where it can be told so.
func (t *Tracker) CloseIdleConnections() {
	if c, ok := t.rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Tracking is implemented by a RoundTripper that leads to a Tracker. Tracker
// returns nil if the connections are this package's own.
type Tracking interface{ Tracker() *Tracker }

// Tracked returns rt if its connections are known already, and Track(rt) if not.
func Tracked(rt http.RoundTripper) http.RoundTripper {
	switch rt.(type) {
	case *Transport, *External, Tracking:
		return rt
	}
	return Track(rt)
}

// TrackerOf returns the Tracker that rt leads to, nil if there is none.
func TrackerOf(rt http.RoundTripper) *Tracker {
	if t, ok := rt.(Tracking); ok {
		return t.Tracker()
	}
	return nil
}

// Tracker implements Tracking.
func (t *Tracker) Tracker() *Tracker { return t }

// remember is how long a connection nobody uses is kept in mind, if nobody can
// tell whether it is closed.
const remember = 10 * time.Minute

func (t *Tracker) conn(nc net.Conn) *Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	c, ok := t.conns[nc]
	if !ok {
		for k, c := range t.conns {
			if now.Sub(time.Unix(0, c.used.Load())) > remember || isClosed(k) {
				delete(t.conns, k)
			}
		}
		c = newConn(below(nc), nil)
		t.conns[nc] = c
	}
	c.used.Store(now.UnixNano())
	return c
}

// forget is called for a connection that has ended.
func (t *Tracker) forget(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, v := range t.conns {
		if v == c {
			delete(t.conns, k)
		}
	}
}

// isClosed reports whether this side has closed a connection. It is false for one
// that does not tell.
func isClosed(nc net.Conn) bool {
	sc, ok := below(nc).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// below is the connection that carries TLS.
func below(nc net.Conn) net.Conn {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return nc
}

// multiplexed reports whether a connection speaks HTTP/2: a request may wait for
// its turn on one that others use, long before it writes a header.
func multiplexed(nc net.Conn) bool {
	t, ok := nc.(interface{ ConnectionState() tls.ConnectionState })
	return ok && t.ConnectionState().NegotiatedProtocol == "h2"
}

// beatEvery is how often the bytes on somebody else's connection are counted.
const beatEvery = 100 * time.Millisecond

// follow takes note of a connection that somebody else dialled.
func (w *watch) follow(nc net.Conn) {
	w.conn = nil
	if w.tracker == nil {
		return
	}
	w.conn = w.tracker.conn(nc)
	w.user, w.foreign, w.shared, w.idle, w.harsh = nil, true, multiplexed(nc), false, false
	if w.body != nil {
		w.counted = w.body.Sent()
		if w.beat == nil && w.onSent != nil {
			w.beat = time.AfterFunc(beatEvery, w.tick)
		}
	}
}

func (w *watch) tick() {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return
	}
	n := w.count()
	w.beat.Reset(beatEvery)
	w.mu.Unlock()
	if n > 0 && !w.over.Load() {
		w.onSent(n)
	}
}

// count adds to a connection that does not count itself what has gone out of
// the body since it was last asked.
func (w *watch) count() int64 {
	if !w.foreign || w.body == nil || w.conn == nil {
		return 0
	}
	sent := w.body.Sent()
	n := max(sent-w.counted, 0)
	w.counted += n
	w.conn.sent.Add(n)
	return n
}

// share: the connection speaks HTTP/2 without TLS having said so, and its
// requests name themselves with pseudo-headers. Others use it too.
func (w *watch) share() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shared = true
}

// abrupt has whoever closes the connection, while a body is under way on it,
// send a reset: net/http closes politely as soon as a request is cancelled, and
// the kernel would go on delivering what has been given up.
func (w *watch) abrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.foreign && !w.shared && !w.stopped && w.body != nil {
		w.harsh = w.conn != nil && linger(w.conn.Conn, reset)
	}
}

// polite takes that back, once the body is out and answered.
func (w *watch) polite() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.appease()
}

func (w *watch) appease() {
	if w.harsh {
		linger(w.conn.Conn, politely)
		w.harsh = false
	}
}

// release: the connection is another request's from now on.
func (w *watch) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = true
	w.appease()
}

// killConn ends the connection, unless that would hurt others: somebody else's
// is ours only while a body or its answer is on the way.
func (w *watch) killConn() {
	if !w.foreign {
		w.conn.Kill()
		return
	}
	if w.shared || w.idle || w.body == nil {
		return
	}
	w.count()
	w.conn.Kill()
	w.tracker.forget(w.conn)
}
