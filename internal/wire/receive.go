// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Download is an answer whose body is still to be read. It must be closed.
type Download struct {
	Status int
	Header http.Header
	// Request is the one that was answered.
	Request *http.Request

	body   io.ReadCloser
	w      *watch
	cancel context.CancelCauseFunc
	leave  func() bool
	ctx    context.Context // of Receive, to tell who ended it
	once   sync.Once
	err    error
	whole  bool
}

// Receive carries out req, which has no body, once over rt, and returns when
// the answer begins. Its body fails with an *Error when no byte came for
// lim.Stall while it was being read; time in which nobody reads does not count.
func Receive(ctx context.Context, rt http.RoundTripper, req *http.Request, lim Limits) (*Download, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, lim: lim, cancel: cancel}
	w.start()
	d := &Download{w: w, cancel: cancel, leave: context.AfterFunc(ctx, w.kill), ctx: ctx}
	resp, err := w.roundTrip(ctx, rt, req)
	if err != nil {
		d.Close() //nolint:errcheck // there is nothing to close but the watch
		return nil, err
	}
	w.enter(idle)
	d.Status, d.Header, d.Request, d.body = resp.StatusCode, resp.Header, resp.Request, resp.Body
	return d, nil
}

// Read reads the body. An error other than io.EOF is an *Error.
func (d *Download) Read(p []byte) (int, error) {
	d.w.enter(reading)
	n, err := d.body.Read(p)
	d.w.enter(idle)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		d.whole = true
		return n, io.EOF
	}
	err = d.w.ended(err)
	if cause := context.Cause(d.ctx); cause != nil {
		err = cause
	}
	return n, &Error{Conn: d.w.info(), Err: err}
}

// Answer reads the rest of the body, as Send does.
func (d *Download) Answer() *Answer {
	d.w.endBy(d.w.lim.answerTime())
	body, _ := io.ReadAll(io.LimitReader(d, maxAnswer))
	return &Answer{Status: d.Status, Header: d.Header, Body: body, Request: d.Request, Conn: d.w.info()}
}

// Close ends the exchange. Where the body was not read to its end the
// connection is dead. It may be called while a Read is under way, and again.
func (d *Download) Close() error {
	d.once.Do(func() {
		if d.body != nil && !d.whole {
			d.w.kill()
		}
		d.leave()
		d.cancel(nil)
		if d.body != nil {
			d.err = d.body.Close()
		}
		d.w.stop()
	})
	return d.err
}
