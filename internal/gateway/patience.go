// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// patient gives up a client that sends or takes nothing for idle while a body is
// under way. Bodies may take any time as long as they move: an upload on a slow
// line takes hours. The caller has to call done at the end.
func patient(w http.ResponseWriter, r *http.Request, idle time.Duration) (_ http.ResponseWriter, _ *http.Request, done func()) {
	c := http.NewResponseController(w)
	done = func() { c.SetWriteDeadline(time.Time{}) } //nolint:errcheck // not over a connection of net/http's own
	if r.Body != nil && r.Body != http.NoBody {
		body := *r // a shallow copy
		body.Body = &patientBody{ReadCloser: r.Body, c: c, idle: idle}
		r = &body
	}
	return &patientWriter{ResponseWriter: w, c: c, idle: idle}, r, done
}

type patientBody struct {
	io.ReadCloser
	c    *http.ResponseController
	idle time.Duration
	// over, unless 0, is when reading ends, in Unix nanoseconds: only what is on
	// the way is still wanted.
	over atomic.Int64
}

// What is on the way is taken for drainFor at most, and as long as something
// comes every drainIdle: a broken connection may still hold megabytes.
const (
	drainIdle = time.Second
	drainFor  = 10 * time.Second
)

// interrupt ends reading once nothing is on the way any more.
func (b *patientBody) interrupt() {
	if b.over.CompareAndSwap(0, time.Now().Add(drainFor).UnixNano()) {
		b.c.SetReadDeadline(time.Now().Add(drainIdle)) //nolint:errcheck // as in Read
	}
}

// Read has a deadline of its own. After the last one there is none: net/http then
// watches the connection, and would take a deadline for the client's end.
func (b *patientBody) Read(p []byte) (int, error) {
	b.c.SetReadDeadline(time.Now().Add(b.idle)) //nolint:errcheck // as above
	// After the deadline was set: interrupt came before that, or changes it.
	if end := b.over.Load(); end != 0 {
		now := time.Now()
		if now.UnixNano() >= end {
			return 0, http.ErrBodyReadAfterClose
		}
		b.c.SetReadDeadline(now.Add(drainIdle)) //nolint:errcheck // as above
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.c.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	}
	return n, err
}

type patientWriter struct {
	http.ResponseWriter
	c    *http.ResponseController
	idle time.Duration
}

func (w *patientWriter) Write(p []byte) (int, error) {
	w.c.SetWriteDeadline(time.Now().Add(w.idle)) //nolint:errcheck // as above
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func setBody(resp *http.Response, body []byte) {
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
}
