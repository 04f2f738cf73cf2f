// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// handOnIdle is how long a request to the registry waits for more bytes of the
// client. Then it ends, so that a client that breaks off does not break it, and
// the next one goes on.
const handOnIdle = 5 * time.Second

// handOnLeast is the size of a blob, in bytes, that is handed on when it is
// committed if it arrives in one request.
const handOnLeast = 1 << 20

var errNotHandedOn = errors.New("the upload is not handed on as it comes any more")

// handOn sends an accepted upload to the registry as it comes, so that the
// registry has nearly all of it when the client commits. If the registry loses the
// session, the upload begins again from what is kept. Nothing depends on it: what
// was not handed on when the client commits is sent then (see deliver).
type handOn struct {
	s *Server
	u *acceptedUpload

	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended

	mu     sync.Mutex
	as     *onBehalf // with the last credentials that the client sent
	broken bool      // the last try failed, and the next one has not begun
	final  bool      // the client has sent all

	// Used by run alone until done is closed.
	at   *url.URL // of the session at the registry, nil if there is none
	sent int64    // bytes that the registry has acknowledged in this session
	err  error
}

// newHandOn begins to hand an upload on. at is a session that the registry has
// opened for it, or nil.
func (s *Server) newHandOn(u *acceptedUpload, v view, as *onBehalf, at *url.URL) *handOn {
	ctx, cancel := context.WithCancelCause(context.WithValue(s.ctx, callKey{}, as.c))
	h := &handOn{s: s, u: u, cancel: cancel, done: make(chan struct{}), as: as, at: at}
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		defer close(h.done)
		h.err = h.run(ctx, v)
		if h.err != nil && h.at != nil {
			s.cancelAtRegistry(h.client(), h.at)
		}
		cancel(nil)
	}()
	return h
}

// use takes the credentials of another request of the client.
func (h *handOn) use(as *onBehalf) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.as = as
}

func (h *handOn) client() *onBehalf {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.as
}

// stop ends it. The session at the registry is cancelled.
func (h *handOn) stop() { h.cancel(errNotHandedOn) }

// finish returns the session at the registry once that has all bytes. It fails if
// they have to be sent anew. All bytes of the client must have arrived.
func (h *handOn) finish(ctx context.Context) (*url.URL, error) {
	h.mu.Lock()
	h.final = true
	if h.broken {
		h.stop()
	}
	h.mu.Unlock()
	h.u.notify()
	select {
	case <-h.done:
		return h.at, h.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tried takes note of how a try ended. A blob that the client has committed is
// not handed on by another one.
func (h *handOn) tried(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken = err != nil; h.broken && h.final {
		h.stop()
	}
}

func (h *handOn) isFinal() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.final
}

func (h *handOn) run(ctx context.Context, v view) error {
	return h.s.g.loop(ctx, "hand on", func(ctx context.Context, l *retry.Loop) (err error) {
		defer func() { h.tried(err) }()
		if h.at == nil {
			if err := h.open(ctx, v); err != nil {
				return err
			}
			h.tried(nil)
		}
		for {
			size, err := h.u.await(ctx, h.sent, h.isFinal)
			if err != nil {
				return err
			}
			if size == h.sent {
				return nil // it is final
			}
			if err := h.send(ctx); err != nil {
				h.at, h.sent = nil, 0 // the registry may have lost it
				return err
			}
			l.Progress()
		}
	})
}

// open opens a session at the registry.
func (h *handOn) open(ctx context.Context, v view) error {
	as := h.client()
	u := &url.URL{Scheme: as.c.up.url.Scheme, Host: as.c.up.url.Host, Path: apiVersion + v.rt.repository + "/blobs/uploads/"}
	a, err := wire.Send(ctx, as, &http.Request{Method: http.MethodPost, URL: u, Header: http.Header{}}, h.s.g.limits(true), nil)
	if err != nil {
		return err
	}
	if a.Status != http.StatusAccepted {
		return protocol.Unexpected(a, time.Now())
	}
	l, err := protocol.ParseLocation(as.c.up.url, u, a.Header)
	if err != nil {
		return protocol.Kind(protocol.ErrEndpoint, err)
	}
	h.at, h.sent = l.URL, 0
	return nil
}

// send sends what there is, and what comes while it is being sent, in one request.
func (h *handOn) send(ctx context.Context) error {
	as := h.client()
	f, err := h.u.read(h.sent)
	if err != nil {
		return protocol.Kind(protocol.ErrSource, err)
	}
	body := &arriving{h: h, ctx: ctx, f: f, at: h.sent}
	req := &http.Request{
		Method: http.MethodPatch, URL: h.at, ContentLength: -1, Body: wire.NewBody(body, -1),
		Header: http.Header{"Content-Type": {"application/octet-stream"}},
	}
	lim := h.s.g.limits(true)
	lim.SlowSource = true
	a, err := wire.Send(ctx, as, req, lim, nil)
	if err != nil {
		return err
	}
	if a.Status != http.StatusAccepted && a.Status != http.StatusNoContent {
		return protocol.Unexpected(a, time.Now())
	}
	end := body.end()
	if held, ok := protocol.ParseRange(a.Header); ok && held.Bytes != end && (!held.Ambiguous || end > 1) {
		return protocol.Transient(fmt.Errorf("the registry has %d bytes of %d that were handed on", held.Bytes, end))
	}
	if l, err := protocol.ParseLocation(as.c.up.url, h.at, a.Header); err == nil {
		h.at = l.URL
	}
	h.sent = end
	return nil
}

// arriving reads an accepted upload as it grows. It ends where the client has
// sent nothing for a while.
type arriving struct {
	h   *handOn
	ctx context.Context
	f   *os.File

	mu sync.Mutex
	at int64
}

// Read implements io.Reader.
func (r *arriving) Read(p []byte) (int, error) {
	ctx, cancel := context.WithTimeout(r.ctx, handOnIdle)
	defer cancel()
	size, err := r.h.u.await(ctx, r.at, r.h.isFinal)
	if err != nil && r.ctx.Err() == nil || err == nil && size == r.at {
		return 0, io.EOF
	} else if err != nil {
		return 0, err
	}
	n, err := r.f.Read(p[:min(int64(len(p)), size-r.at)])
	r.mu.Lock()
	r.at += int64(n)
	r.mu.Unlock()
	if errors.Is(err, io.EOF) { // somebody has cut the file
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *arriving) end() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// Close implements io.Closer.
func (r *arriving) Close() error { return r.f.Close() }

// commitHandedOn commits a blob whose bytes the registry has. It reports false if
// they have to be delivered anew.
func (s *Server) commitHandedOn(ctx context.Context, h *handOn, v view, as *onBehalf, u *acceptedUpload, dgst digest.Digest) bool {
	at, err := h.finish(ctx)
	if err != nil || at == nil {
		return false
	}
	ctx = context.WithValue(ctx, callKey{}, as.c)
	to := *at
	to.RawQuery = "digest=" + url.QueryEscape(dgst.String())
	if at.RawQuery != "" { // the registry gets its state back as it wrote it
		to.RawQuery = at.RawQuery + "&" + to.RawQuery
	}
	req := &http.Request{Method: http.MethodPut, URL: &to, Header: http.Header{"Content-Type": {"application/octet-stream"}}}
	a, err := wire.Send(ctx, as, req, s.g.limits(true), nil)
	if err == nil && a.Status == http.StatusCreated && protocol.SameOrigin(as.c.up.url, a.Request.URL) {
		s.g.event(resume.Event{
			Time: time.Now(), Kind: resume.Committed, Context: ctx, Digest: dgst, Size: u.offset(), Offset: u.offset(),
			Repository: as.c.up.url.Host + "/" + v.rt.repository,
		})
		return true
	}
	if err == nil {
		s.g.log().WithField("status", a.Status).Debug("the registry did not commit what was handed on")
	}
	return false
}
