// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

// passage is a request of another client to an upload location: the body of a
// PATCH or PUT, or a commit. It is the origin of an upload that begins in the middle
// of the blob. First, the request itself is forwarded once, as it came. If that
// breaks, the upload goes on from there as any other.
type passage struct {
	t      *transporter
	req    *http.Request
	seen   *seen
	client *Client
	number int64

	body   passed // nil without one
	start  int64  // where in the session the body begins
	length int64  // of the body, -1 until it is known
	digest digest.Digest
	tried  bool // the request itself has been sent, or must not be
	doubt  bool // an earlier one like it may have been carried out

	keeper *prefixKeeper // nil if nothing is kept by content

	as     *wire.Answer // to the request itself, to be handed on as it is
	broken error        // how the last request that mattered broke

	mu     sync.Mutex
	own    bool   // requests of the transport's own were made
	method string // of the last request
	last   *wire.Answer
	same   *wire.Answer // the last to a request of the client's method
}

// newPassage is nil for a request that has to pass through as any other.
func (t *transporter) newPassage(req *http.Request, s *seen) *passage {
	g := &passage{t: t, req: req, seen: s, start: s.offset, length: req.ContentLength}
	if g.put() {
		if g.digest = digest.Digest(req.URL.Query().Get("digest")); g.digest.Validate() != nil {
			return nil
		}
	}
	bodiless := req.Body == nil || req.Body == http.NoBody
	if req.ContentLength == 0 && !bodiless {
		g.length = -1
	}
	if r := req.Header.Get("Content-Range"); r != "" && (g.length < 1 || r != protocol.ContentRange(g.start, g.start+g.length)) {
		return nil // it is about other bytes than we know of
	}
	g.number = t.uploads.Add(1)
	var err error
	if g.client, err = t.client(s, g); err != nil {
		return nil
	}
	l := t.rest(s)
	if l != nil && (l.method != req.Method || l.length != req.ContentLength) {
		l.end()
		l = nil
	}
	if l != nil {
		g.tried, g.doubt, g.own = l.moved, l.doubt, l.moved
	}
	switch {
	case bodiless:
	case l != nil && alike(l.was, req.Body): // sent again without rewinding
		g.body, g.tried = l.body, true
		if s, ok := g.body.(*spool); ok {
			s.reuse()
		}
	default:
		if l != nil {
			l.end()
		}
		g.body = t.newPassed(req)
	}
	return g
}

// alike reports whether two bodies are the same thing.
func alike(a, b io.ReadCloser) bool {
	return a != nil && b != nil && reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

func (g *passage) put() bool { return g.req.Method == http.MethodPut }

// carry brings the request to its end, and answers it.
func (g *passage) carry(ctx context.Context) (*http.Response, error) {
	u := &upload{c: g.client, ctx: ctx, origin: g, op: "send", best: g.start, next: stepBegin}
	u.blob = Blob{Digest: g.digest, Size: -1, Open: g.open}
	u.sess = &sessionHistory{most: g.start, session: &session{
		c: g.client, blob: subject{digest: g.digest}, location: g.seen.location,
		offset: settledAt(g.start), acked: g.start, sent: g.start, opened: time.Now(),
	}}
	g.size(u)
	if g.tried {
		u.unsettle(true)
		u.sess.failed, u.sess.sent = true, max(u.blob.Size, g.start)
	}
	if g.doubt {
		u.next = u.inDoubt()
	}
	if g.t.store != nil && !g.tried && g.put() && g.body != nil && g.start == 0 && g.seen.opened && g.length >= 0 {
		u.next = stepReserve // its digest is known
	}
	g.recallPrefix(ctx, u)
	var err error
	if g.tried {
		err = g.measure(ctx, u)
	}
	if err == nil {
		err = u.deliver(ctx)
	}
	if err != nil {
		err = u.failed(err)
	}
	return g.answer(u, err)
}

// endKeeping gives the record back after an answer, or none. There is nothing to
// continue of what the registry refused, or of what cannot be read again.
func (g *passage) endKeeping(u *upload, resp *http.Response, unreadable bool) {
	refused := resp != nil && resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusUnauthorized
	if g.keeper != nil {
		g.keeper.end(u, refused || resp == nil && unreadable)
	}
	if done := resp != nil && resp.StatusCode >= 200 && resp.StatusCode < 300; g.put() && g.seen.kept != nil && (done || refused) {
		_ = g.t.store.Forget(g.req.Context(), *g.seen.kept) // it would expire
	}
}

func (g *passage) size(u *upload) {
	if g.length >= 0 {
		u.blob.Size = g.start + g.length
	}
}

// measure finds out how long the body is, which has to be known to continue.
func (g *passage) measure(ctx context.Context, u *upload) error {
	if g.length >= 0 || g.body == nil {
		return nil
	}
	n, err := g.body.length(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return protocol.Kind(protocol.ErrSource, fmt.Errorf("reading the source: %w", err))
	}
	g.length = n
	g.size(u)
	if u.sess.kept == nil { // of an earlier upload no more was sent than its record says
		u.sess.sent = max(u.sess.sent, u.blob.Size)
	}
	return nil
}

// begin forwards the request itself, unless it was forwarded before, or the registry
// is known not to take or keep a body of this size.
func (g *passage) begin(ctx context.Context, u *upload) (step, error) {
	tried := g.tried
	g.tried = true
	if !tried && g.fits(u.c.pace) {
		u.op = "send"
		return g.forward(ctx, u)
	}
	switch {
	case u.sess == nil:
		return stepOpen, nil
	case !u.sess.offset.isSettled():
		return stepSettle, nil
	}
	return u.proceed(), nil
}

// fits reports whether the body may go in one request.
func (g *passage) fits(p *pacer) bool {
	if g.body == nil || g.length <= 0 {
		return true
	}
	n, _ := p.next(g.length, !g.isRanged())
	return n >= g.length
}

func (g *passage) isForwarded() bool { return true }

// isRanged reports whether the client's request has a Content-Range, or is none
// that a whole blob could be in.
func (g *passage) isRanged() bool { return g.start > 0 || g.req.Header.Get("Content-Range") != "" }

// commits is false for a PATCH: the commit is another request.
func (g *passage) commits() bool { return g.put() }

// knowsSize is false for a commit: where the session ends is only inferred.
func (g *passage) knowsSize() bool { return g.body != nil }

func (g *passage) firstOffset() int64 {
	if g.body == nil {
		return g.start
	}
	return g.start + g.body.kept()
}

// replaceSession allows another session if the client's was opened through this
// transport, and the body is all that was sent to it.
func (g *passage) replaceSession(why error) error {
	if g.seen.opened && g.firstOffset() == 0 {
		return nil
	}
	if g.broken == nil {
		return protocol.Kind(protocol.ErrInterrupted, fmt.Errorf("the upload cannot be continued here: %w", protocol.Plain(why)))
	}
	// With its cause, by which clients decide whether to try again themselves.
	return protocol.Kind(protocol.ErrInterrupted, fmt.Errorf("%w (and cannot be continued here: %w)", g.broken, protocol.Plain(why)))
}

func (g *passage) onBreak(err error) { g.broken = err }

// onRecall leaves the client's own session unused.
func (g *passage) onRecall() { g.tried, g.own = true, true }

func (g *passage) keep(u *upload) bool {
	if g.keeper == nil {
		return false
	}
	g.keeper.moved(u)
	return true
}

func (g *passage) lease() *heldLease {
	if g.keeper == nil {
		return nil
	}
	return g.keeper.held()
}

func (g *passage) giveUpLease() bool {
	if g.keeper == nil {
		return false
	}
	g.keeper.giveUp()
	return true
}

func (g *passage) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if g.body == nil {
		return http.NoBody, nil
	}
	return g.body.open(ctx, offset-g.start)
}

// forward sends the client's own request, as it came.
func (g *passage) forward(ctx context.Context, u *upload) (step, error) {
	u.keep(ctx)
	req := g.req.WithContext(ctx)
	var current atomic.Pointer[wire.Body]
	if g.body != nil {
		body := g.body.first()
		current.Store(&body)
		req.Body, req.GetBody = body, nil
		if r, ok := g.body.(*remade); ok {
			req.GetBody = func() (io.ReadCloser, error) {
				b, err := r.again()
				if err == nil {
					current.Store(&b)
				}
				return b, err
			}
		}
	}
	var gone atomic.Int64
	a, err := u.c.send(context.WithValue(ctx, asItIs{}, true), req, u.c.slow(), func(n int64) {
		u.sentTo(g.start + gone.Add(n))
	})
	var refusal *protocol.StatusError
	var large bool
	if err == nil {
		refusal = protocol.Unexpected(a, time.Now())
		again := protocol.Classify(refusal).Class == protocol.Break
		if _, can := g.body.(*remade); again && can && a.Status == http.StatusInternalServerError {
			// The registry's own word, to a client that can send its body again
			// and may have rules of its own for that: go-containerregistry has.
			again = false
			g.onBreak(refusal)
		}
		large = refusal.TooLarge() || a.Status == http.StatusRequestedRangeNotSatisfiable && g.start == 0 && g.body != nil
		again = again || large && g.length > 0 && u.c.pace.tooLarge(g.length, g.isRanged() && a.Status != http.StatusRequestEntityTooLarge, refusal.TooLarge())
		if !again {
			var sent int64
			if b := current.Load(); b != nil {
				sent = (*b).Sent()
			}
			if g.put() && a.Status == http.StatusCreated && !protocol.SameOrigin(u.c.base, a.Request.URL) {
				return g.confirm(ctx, u, a, sent)
			}
			return g.answered(u, a, sent), nil
		}
	}
	g.onBreak(err)
	u.unsettle(true)
	if ctx.Err() != nil {
		return g.afterForward(u), context.Cause(ctx)
	}
	if b := current.Load(); b != nil {
		if bad := (*b).Err(); bad != nil && err != nil {
			return stepSettle, bad
		}
		if err := g.measure(ctx, u); err != nil {
			return stepSettle, err
		}
		if err := u.sent(ctx, *b, g.start, g.length, err); err != nil {
			if (*b).Sent() >= g.length {
				return g.afterForward(u), err
			}
			return stepSettle, err
		}
	}
	switch {
	case err == nil && large:
		u.steps = 0
		return stepSettle, nil
	case refusal != nil && protocol.Classify(refusal).Busy && g.put() && g.body == nil:
		u.sess.offset, u.sess.broken = settledAt(g.start), false // it was not carried out
		return stepCommit, refusal
	}
	u.sess.failed = true
	if err != nil {
		return g.afterForward(u), err
	}
	if b := current.Load(); b != nil && !g.put() {
		u.endedBy(refusal, (*b).Sent(), a.Took)
	}
	return g.afterForward(u), refusal
}

// afterForward is the step after a request of which nobody knows whether it was
// carried out.
func (g *passage) afterForward(u *upload) step {
	if g.put() {
		return u.inDoubt()
	}
	return stepSettle
}

type asItIs struct{}

// answered ends an upload whose request was answered when it was forwarded.
func (g *passage) answered(u *upload, a *wire.Answer, sent int64) step {
	g.as = a
	if a.Status < 200 || a.Status > 299 {
		if a.Status != http.StatusUnauthorized && a.Status < 500 {
			u.forget()
		}
		return stepDone
	}
	u.handed, u.res.Sent = u.handed+sent, u.res.Sent+sent
	if g.length < 0 {
		g.length = sent
		g.size(u)
	}
	if g.put() {
		if a.Status == http.StatusCreated {
			u.finish(Committed)
		}
		return stepDone
	}
	u.c.pace.acknowledged()
	u.settleAt(u.blob.Size)
	u.c.pace.save()
	return stepDone
}

// confirm takes an answer of another host to the client's commit for the client's
// once the registry has the blob. Until then it is a commit in doubt.
func (g *passage) confirm(ctx context.Context, u *upload, a *wire.Answer, sent int64) (step, error) {
	u.handed, u.res.Sent = u.handed+sent, u.res.Sent+sent
	if g.length < 0 {
		g.length = sent
		g.size(u)
	}
	u.unsettle(true)
	u.sess.failed, u.sess.sent = true, max(u.blob.Size, g.start)
	next, err := u.confirm(ctx)
	if err == nil {
		g.as = a
	}
	return next, err
}

// Tracker implements wire.Tracking.
func (g *passage) Tracker() *wire.Tracker { return g.t.base }

// RoundTrip implements http.RoundTripper for the engine. Requests of its own
// get the client's credentials, where they were meant to go and nowhere else.
func (g *passage) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	asked, _ := ctx.Value(asItIs{}).(bool)
	g.mu.Lock()
	g.method, g.own = r.Method, g.own || !asked
	g.mu.Unlock()
	if asked {
		return g.t.base.RoundTrip(r)
	}
	switch {
	case protocol.SameOrigin(g.req.URL, r.URL):
		lend(r, g.req.Header)
		r.Host = g.req.Host
	case protocol.SameOrigin(g.seen.base, r.URL):
		lend(r, g.seen.header)
	default:
		if ua := g.req.Header.Get("User-Agent"); ua != "" {
			r.Header.Set("User-Agent", ua)
		}
		return g.t.external(g.seen.base).RoundTrip(r)
	}
	return g.t.base.RoundTrip(r)
}

// lend copies the headers of a client's request, except what is about its body.
func lend(r *http.Request, from http.Header) {
	for k, v := range from {
		if _, set := r.Header[k]; !set && !slices.Contains(aboutBodies, k) {
			r.Header[k] = v
		}
	}
}

var aboutBodies = []string{
	"Connection", "Content-Digest", "Content-Encoding", "Content-Length", "Content-Md5", "Content-Range", "Content-Type",
	"Digest", "Expect", "Idempotency-Key", "Range", "Repr-Digest", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Idempotency-Key",
}

// hear is told every answer.
func (g *passage) hear(a *wire.Answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = a
	if g.method == g.req.Method {
		g.same = a
	}
}

// answer makes what the client gets, and takes note of what that leaves.
func (g *passage) answer(u *upload, err error) (*http.Response, error) {
	var resp *http.Response
	switch {
	case err != nil:
		resp = g.refusal(err)
	case g.as != nil:
		resp = g.as.Response
		resp.Request = g.req
	default:
		resp = g.success(u)
	}
	s := g.seen
	defer g.endKeeping(u, resp, g.firstOffset() > 0) // before the body is closed
	switch {
	case resp != nil && resp.StatusCode >= 200 && resp.StatusCode < 300:
		g.close()
		g.moveOn(u, resp)
	case resp != nil && resp.StatusCode == http.StatusUnauthorized:
		g.t.leave(s, &left{
			method: g.req.Method, length: g.req.ContentLength, moved: g.moved(), doubt: u.next == stepResolve,
			body: g.body, was: g.req.Body,
		})
	default:
		g.close()
		if g.moved() {
			g.t.leave(s, &left{method: g.req.Method, length: g.req.ContentLength, moved: true, doubt: u.next == stepResolve})
		}
	}
	if resp == nil {
		return nil, err
	}
	return resp, nil
}

// moved reports whether the session may be elsewhere than the client believes.
func (g *passage) moved() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.own || g.broken != nil
}

func (g *passage) close() {
	if g.body != nil {
		g.body.close()
	}
}

// moveOn takes note of where the session stands after a request that went well.
func (g *passage) moveOn(u *upload, resp *http.Response) {
	s := g.seen
	if g.put() {
		g.t.done(s)
		return
	}
	at := u.sess.location
	if g.as != nil {
		if l, err := protocol.ParseLocation(s.base, g.req.URL, resp.Header); err == nil {
			at = l.URL
		}
	}
	g.t.done(s)
	next := &seen{location: at, base: s.base, header: s.header, opened: s.opened, offset: u.blob.Size}
	if g.keeper != nil {
		next.kept = g.keeper.complete(u, at)
	}
	g.t.put(next)
}

// refusal is the answer of the registry that an error is about, nil if it is
// about none: not another host's, which would get the client's token renewed
// where it says, and no redirect of a request that the client did not make.
func (g *passage) refusal(err error) *http.Response {
	var se *protocol.StatusError
	if !errors.As(err, &se) || g.req.Context().Err() != nil {
		return nil
	}
	for _, a := range []*wire.Answer{g.same, g.last} {
		if a != nil && a.Status == se.Status && a.Status >= 400 && protocol.SameOrigin(g.req.URL, a.Request.URL) {
			return g.hand(a)
		}
	}
	return nil
}

// hand makes an answer to a request of the transport's own one to the client's.
func (g *passage) hand(a *wire.Answer) *http.Response {
	resp := *a.Response
	resp.Header = a.Header.Clone()
	resp.Request = g.req
	if l, err := protocol.ParseLocation(g.seen.base, a.Request.URL, a.Header); err == nil {
		resp.Header.Set("Location", l.URL.String()) // relative to another request
	}
	if a.Request.Method == http.MethodHead {
		resp.Header.Del("Content-Length")
		resp.ContentLength, resp.Body = 0, http.NoBody
	}
	return &resp
}

// success is the answer to a request that was carried out, but not by itself.
func (g *passage) success(u *upload) *http.Response {
	if a := g.same; a != nil && a == g.last && a.Status >= 200 && a.Status < 300 && (!g.put() || a.Status == http.StatusCreated) {
		return g.hand(a)
	}
	resp := &http.Response{
		StatusCode: http.StatusAccepted, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Length": {"0"}}, Body: io.NopCloser(bytes.NewReader(nil)), Request: g.req,
	}
	if g.last != nil {
		r := g.last.Response
		resp.Proto, resp.ProtoMajor, resp.ProtoMinor, resp.TLS = r.Proto, r.ProtoMajor, r.ProtoMinor, r.TLS
		for _, k := range []string{"Docker-Distribution-Api-Version", "Docker-Upload-Uuid", "Date"} {
			if v := g.last.Header.Values(k); len(v) > 0 {
				resp.Header[k] = v
			}
		}
	}
	if g.put() {
		resp.StatusCode = http.StatusCreated
		resp.Header.Set("Location", u.c.url("blobs/"+g.digest.String()).String())
		resp.Header.Set("Docker-Content-Digest", g.digest.String())
	} else {
		resp.Header.Set("Location", u.sess.location.String())
		resp.Header.Set("Range", protocol.Range(u.blob.Size))
	}
	resp.Status = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	return resp
}
