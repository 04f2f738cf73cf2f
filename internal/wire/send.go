// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStall means that bytes stopped moving while a request was being sent.
var ErrStall error = &timeout{"stalled: no byte was accepted"}

// ErrNoAnswer means that the request was sent and no answer came.
var ErrNoAnswer error = &timeout{"no answer to the request"}

// errMalformed replaces what net/textproto says, which quotes the header: an
// upload location, for one.
var errMalformed = errors.New("the answer has a malformed header")

// ErrSlowAnswer means that an answer kept coming in, but would not end.
var ErrSlowAnswer error = &timeout{"the answer takes too long to arrive"}

type timeout struct{ text string }

func (t *timeout) Error() string   { return t.text }
func (t *timeout) Timeout() bool   { return true }
func (t *timeout) Temporary() bool { return true }

// maxAnswer bounds what is kept of the body of an answer.
const maxAnswer = 4 << 20

// answerRate is the least rate, in bytes per second, at which an answer that is
// kept must arrive: 4 MiB in 256 seconds.
const answerRate = 16 << 10

// answerTime is the most that reading the body of an answer may take, however
// steadily its bytes come.
func (l Limits) answerTime() time.Duration {
	if l.Stall <= 0 {
		return 0
	}
	return l.Stall + maxAnswer/answerRate*time.Second
}

// Limits are how long one request may make no progress.
type Limits struct {
	// Stall is for connecting and sending, and for reading the answer's body.
	Stall time.Duration
	// Answer is from the last byte sent to the first of the answer.
	Answer time.Duration
	// SlowSource says that waiting for the source of a body is no stall.
	SlowSource bool
}

// Answer is a complete answer: its body has been read.
type Answer struct {
	Status int
	Header http.Header
	// Body holds at most 4 MiB. IsCut says that it broke off before its end.
	Body  []byte
	IsCut bool
	// Request is the one that was answered, after any change of scheme below.
	Request *http.Request
	// Response is the answer as net/http gave it. Its Body can be read again, up
	// to 4 MiB, and fails where reading it failed.
	Response *http.Response
	Conn     Info
	// Took is the time from the request to the end of the answer.
	Took time.Duration
}

// Error is an exchange that got no answer.
type Error struct {
	Conn Info
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what broke the exchange.
func (e *Error) Unwrap() error { return e.Err }

// Send carries out req once over rt and reads the answer. onSent, unless nil,
// is told the bytes that went out, from any goroutine: those that the peer's kernel
// acknowledged where that is known (Linux), otherwise those handed to the kernel.
// When Send
// returns, the body is closed, and where it was not sent to its end the
// connection is dead, not merely abandoned. A failure is an *Error.
func Send(ctx context.Context, rt http.RoundTripper, req *http.Request, lim Limits, onSent func(int64)) (*Answer, error) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{ctx: ctx, lim: lim, cancel: cancel, onSent: onSent, tracker: TrackerOf(rt)}
	w.body, _ = req.Body.(Body)
	w.start()
	defer w.stop()
	// Whoever cancels wants the bytes to stop now.
	defer context.AfterFunc(ctx, w.kill)()

	if get := req.GetBody; get != nil {
		req = req.WithContext(ctx) // a copy
		req.GetBody = func() (io.ReadCloser, error) {
			r, err := get()
			if b, ok := r.(Body); ok {
				w.instead(b)
			}
			return r, err
		}
	}
	defer w.closeBody()
	resp, err := w.roundTrip(ctx, rt, req)
	if err != nil {
		return nil, err
	}
	w.enter(reading)
	w.mu.Lock()
	using := w.user
	w.mu.Unlock()
	w.tell(using, 0, 0) // the answer acknowledges all of it
	w.endBy(lim.answerTime())
	// A body cut short does not unsay the status and the headers.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if len(body) == maxAnswer {
		if n, _ := io.ReadFull(resp.Body, make([]byte, 1)); n > 0 {
			err = ErrLongAnswer
		}
	}
	isCut := err != nil && !errors.Is(err, ErrLongAnswer)
	resp.Body.Close()
	if w.unsent(req.ContentLength) {
		w.kill()
	} else {
		w.polite()
	}
	resp.Body = io.NopCloser(&reread{bytes.NewReader(body), err})
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: body, IsCut: isCut, Request: resp.Request, Response: resp, Conn: w.info(), Took: time.Since(began)}, nil
}

// ErrLongAnswer is how reading an answer ends that has more than is kept of it.
var ErrLongAnswer = errors.New("the answer is longer than 4 MiB")

// reread gives what was read of an answer once more, and how that ended.
type reread struct {
	r   *bytes.Reader
	err error // nil is io.EOF
}

func (r *reread) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && r.err != nil {
		err = r.err
	}
	return n, err
}

// roundTrip sends req and returns when the answer begins. A failure is an
// *Error, and the connection is dead then.
func (w *watch) roundTrip(ctx context.Context, rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	resp, err := roundTripOrLeave(rt, req.WithContext(httptrace.WithClientTrace(ctx, w.trace())))
	if err == nil {
		return resp, nil
	}
	if errors.Is(err, ErrSpent) {
		// The connection had its answer, and may be in other hands.
		return nil, &Error{Err: err}
	}
	var quoting textproto.ProtocolError
	if errors.As(err, &quoting) {
		err = errMalformed
	}
	err = w.ended(err)
	w.kill()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return nil, &Error{Conn: w.info(), Err: err}
}

// leaveAfter is how long a cancelled request may take to return.
const leaveAfter = time.Second

// roundTripOrLeave is rt.RoundTrip, but leaves it behind where it does not
// return after its context has ended: net/http waits for the source's Read,
// which may hang, and an authorising transport for other programs.
func roundTripOrLeave(rt http.RoundTripper, req *http.Request) (*http.Response, error) {
	type outcome struct {
		resp     *http.Response
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			o.panicked = recover()
			done <- o
		}()
		o.resp, o.err = rt.RoundTrip(req)
	}()
	var o outcome
	select {
	case o = <-done:
	case <-req.Context().Done():
		t := time.NewTimer(leaveAfter)
		defer t.Stop()
		select {
		case o = <-done:
		case <-t.C:
			go func() {
				if o := <-done; o.resp != nil {
					o.resp.Body.Close()
				}
			}()
			return nil, context.Cause(req.Context())
		}
	}
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.resp, o.err
}

type phase int

const (
	sending phase = iota // connecting too
	waiting
	reading
	idle // nobody asks for more
)

// watch ends an exchange that has stopped moving.
type watch struct {
	ctx     context.Context // of the exchange
	lim     Limits
	cancel  context.CancelCauseFunc
	onSent  func(int64)
	tracker *Tracker

	moves atomic.Int64 // anything that moved
	over  atomic.Bool  // onSent must not be called any more

	mu      sync.Mutex
	body    Body
	beat    *time.Timer // counts what goes out on a connection that does not
	counted int64       // of body, on such a connection
	timer   *time.Timer
	stopped bool
	killed  bool
	phase   phase
	since   time.Time // last progress seen in this phase
	end     time.Time // when the exchange is over whatever moves; zero is never
	seen    int64
	conn    *Conn
	user    *user
	foreign bool // conn was dialled by somebody else
	shared  bool // and carries other requests
	idle    bool // and has been given back
	harsh   bool // and is set to end with a reset
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.timer = time.AfterFunc(interval(w.limit()), w.look)
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.over.Store(true)
	w.timer.Stop()
	if w.beat != nil {
		w.beat.Stop()
	}
	w.detach()
}

// instead takes the body that net/http asked for in place of the first.
func (w *watch) instead(b Body) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count()
	w.body, w.counted = b, 0
}

func (w *watch) closeBody() {
	w.mu.Lock()
	b := w.body
	w.mu.Unlock()
	if b != nil {
		b.Close()
	}
}

// unsent reports whether less than length bytes of the body went out.
func (w *watch) unsent(length int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.body != nil && w.body.Sent() < length
}

// limit is the patience of the present phase.
func (w *watch) limit() time.Duration {
	d := w.lim.Stall
	switch w.phase {
	case waiting:
		d = w.lim.Answer
	case idle:
		d = 0
	case sending, reading:
	}
	if d <= 0 {
		return 1<<63 - 1
	}
	return d
}

// progress is a number that changes whenever bytes move. Only asked once in a
// while, so it may cost a system call.
func (w *watch) progress() int64 {
	n := w.moves.Load()
	if w.body != nil && w.phase == sending {
		n += w.body.Sent()
	}
	if w.conn != nil && w.phase == sending {
		n += acked(w.conn.Conn)
	}
	if w.conn != nil && w.phase == reading {
		n += w.conn.received.Load()
	}
	return n
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	now := time.Now()
	if n := w.progress(); n != w.seen || w.lim.SlowSource && w.phase == sending && w.body != nil && w.body.waiting() {
		w.seen, w.since = n, now
	}
	limit := w.limit()
	idle := now.Sub(w.since)
	late := !w.end.IsZero() && !now.Before(w.end)
	if idle < limit && !late {
		w.rest(min(limit-idle, interval(limit)))
		return
	}
	err := ErrStall
	if late && idle < limit {
		err = ErrSlowAnswer
	}
	if w.phase == waiting {
		err = ErrNoAnswer
	}
	w.cancel(err) // kills the connection, through AfterFunc
}

func (w *watch) enter(p phase) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || w.phase == p {
		return
	}
	w.phase, w.since = p, time.Now()
	w.seen = w.progress()
	w.rest(interval(w.limit()))
}

// endBy ends the exchange after d, whatever moves; 0 does not.
func (w *watch) endBy(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || d <= 0 {
		return
	}
	w.end = time.Now().Add(d)
	w.rest(interval(w.limit()))
}

// rest looks again after d, or when the exchange is over.
func (w *watch) rest(d time.Duration) {
	if !w.end.IsZero() {
		d = min(d, max(time.Until(w.end), 0))
	}
	w.timer.Reset(d)
}

// interval is how often to look: a stop is noticed at most a quarter late.
func interval(limit time.Duration) time.Duration { return limit/4 + 1 }

func (w *watch) trace() *httptrace.ClientTrace {
	t := &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			w.attach(i.Conn)
			w.enter(sending)
		},
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			w.moves.Add(1)
			if i.Err == nil {
				w.enter(waiting)
			}
		},
	}
	if w.tracker != nil {
		t.WroteHeaderField = func(key string, _ []string) {
			if strings.HasPrefix(key, ":") {
				w.share()
			}
		}
		t.WroteHeaders = w.abrupt
		t.PutIdleConn = func(err error) {
			if err == nil {
				w.release()
			}
		}
	}
	return t
}

// attach takes note of the connection in use: the last one, where an
// authorising transport makes requests of its own first.
func (w *watch) attach(nc net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.detach()
	if w.stopped {
		return
	}
	c, ok := below(nc).(*Conn)
	if !ok {
		w.follow(nc)
		return
	}
	w.conn = c
	if w.killed {
		c.Kill()
		return
	}
	w.foreign = false
	w.user = &user{ctx: w.ctx, body: w.body != nil, check: checkOf(w.ctx)}
	u := w.user
	u.moved = func(n int64) {
		w.moves.Add(n)
		w.tell(u, n, c.waiting()) // what waits in the kernel is not sent yet
	}
	c.user.Store(w.user)
}

// tell counts n more bytes that were handed to the connection, of which waiting
// have not gone out.
func (w *watch) tell(u *user, n, waiting int64) {
	if w.onSent == nil || u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handed += n
	if n := u.handed - waiting - u.told; n > 0 && !w.over.Load() {
		u.told += n
		w.onSent(n)
	}
}

// detach leaves the connection to its next user, who may have it already.
func (w *watch) detach() {
	if w.conn != nil {
		w.count()
		w.conn.user.CompareAndSwap(w.user, nil)
	}
}

func (w *watch) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.killed = true
	if w.conn != nil {
		w.killConn()
	}
	if b, ok := w.body.(*streamBody); ok {
		go b.Close() //nolint:errcheck // net/http waits for a Read that may never return
	}
}

// ended adds to err how the connection ended: net/http calls an answer that a
// reset cut short malformed, and does not say more.
func (w *watch) ended(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil || w.killed {
		return err
	}
	if end := w.conn.ended.Load(); end != nil && !errors.Is(err, *end) {
		return fmt.Errorf("%w (%w)", err, *end)
	}
	return err
}

func (w *watch) info() Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return Info{}
	}
	w.count()
	return w.conn.Info()
}
