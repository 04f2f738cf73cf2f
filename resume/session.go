// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

var errLost = errors.New("the registry no longer knows the upload session")

// session is an upload session (distribution-spec v1.1, end-4a): where it is, and
// how much of it is known to be at the registry. Its methods carry out one request
// each and read the answer, apart from ask, which may need two. They retry nothing,
// and decide nothing: the upload does.
type session struct {
	c    *Client
	blob subject // for messages and events

	location *url.URL // the newest
	lengths  protocol.ChunkLengths
	opened   time.Time
	offset   offset
	// acked is the end of the last PATCH that was answered with success.
	acked int64
	// sent is the end of the bytes that were handed to any connection.
	sent int64
}

// openSession asks for a session (end-4a), or for a mount of the blob (end-11) if from
// names a repository. The session is nil if the answer is not 202; the answer is nil
// if there was none.
func (c *Client) openSession(ctx context.Context, blob subject, from string) (*session, *wire.Answer, error) {
	at := c.url("blobs/uploads/")
	if from != "" {
		at.RawQuery = url.Values{"mount": {blob.digest.String()}, "from": {from}}.Encode()
	}
	a, err := c.send(ctx, request(http.MethodPost, at, nil, 0), c.quick(), nil)
	if err != nil || a.Status != http.StatusAccepted {
		return nil, a, err
	}
	s := &session{c: c, blob: blob, location: at, offset: settledAt(0), opened: time.Now()}
	if err := s.relocate(ctx, a); err != nil {
		return nil, a, protocol.Kind(protocol.ErrEndpoint, err)
	}
	s.lengths = protocol.ParseChunkLengths(a.Header)
	return s, a, nil
}

// chunk is the body of a PATCH.
type chunk struct {
	body       wire.Body
	start, end int64 // the bytes of the blob that it holds
	// ranged says to send a Content-Range. Docker, podman and crane send a whole
	// blob without one, so every registry takes that; GHCR refuses one above 4 MiB
	// with it.
	ranged bool
}

// append sends the next bytes (end-5). onSent is told how many more were sent.
func (s *session) append(ctx context.Context, b chunk, onSent func(int64)) (*wire.Answer, error) {
	n := b.end - b.start
	req := request(http.MethodPatch, s.location, b.body, n)
	req.Header.Set("Content-Type", "application/octet-stream")
	if b.ranged {
		req.Header.Set("Content-Range", protocol.ContentRange(b.start, b.end))
	}
	return s.c.send(ctx, req, s.c.slow(), onSent)
}

// ask returns the offset (end-13): from HEAD, which is what distribution serves, or
// from GET if the answer to HEAD has no Range, as on olareg and zot. Only GET can say
// that the session is lost: errLost. A session that lives, but does not say where it
// stands, stands at what was acknowledged.
func (s *session) ask(ctx context.Context) (int64, error) {
	var answered *protocol.StatusError
	if !s.c.pace.dialect().StatusGET {
		offset, ok, err := s.status(ctx, http.MethodHead)
		switch {
		case ok:
			return offset, nil
		case err != nil && (!errors.As(err, &answered) || answered.After > 0):
			return 0, err
		}
	}
	offset, ok, err := s.status(ctx, http.MethodGet)
	switch {
	case ok:
		s.c.pace.answersGET()
		return offset, nil
	case err == nil:
		return s.acked, nil
	case errors.As(err, &answered) && protocol.Classify(err).Class == protocol.Final && !errors.Is(err, ErrDenied):
		return 0, fmt.Errorf("%w: %w", errLost, answered)
	}
	return 0, err
}

// askBy sends one status request, HEAD or GET.
func (s *session) askBy(ctx context.Context, method string) (*wire.Answer, error) {
	return s.c.send(ctx, request(method, s.location, nil, 0), s.c.quick(), nil)
}

// status is one status request with its answer. ok is false if the answer has no Range.
func (s *session) status(ctx context.Context, method string) (offset int64, ok bool, err error) {
	a, err := s.askBy(ctx, method)
	if err != nil {
		return 0, false, err
	}
	if a.Status < 200 || a.Status > 299 {
		return 0, false, protocol.Unexpected(a, time.Now())
	}
	held, ok := protocol.ParseRange(a.Header)
	if !ok {
		return 0, false, nil
	}
	s.c.pace.answersStatus()
	if err := s.follow(ctx, a); err != nil {
		return 0, false, err
	}
	if held.Ambiguous && s.acked == 1 {
		held.Bytes = 1
	}
	return held.Bytes, true, nil
}

// commit asks the registry to make the session a blob (end-6). body is the whole blob
// of n bytes, or nil if the session has it already.
func (s *session) commit(ctx context.Context, dgst digest.Digest, body wire.Body, n int64, onSent func(int64)) (*wire.Answer, error) {
	at := *s.location
	q := "digest=" + url.QueryEscape(dgst.String())
	if at.RawQuery != "" {
		// Appended, not re-encoded: the registry gets its own state back as it
		// wrote it.
		q = at.RawQuery + "&" + q
	}
	at.RawQuery = q
	req := request(http.MethodPut, &at, body, n)
	req.Header.Set("Content-Type", "application/octet-stream")
	return s.c.send(ctx, req, s.c.slow(), onSent)
}

// cancel ends the session (end-14).
func (s *session) cancel(ctx context.Context) (*wire.Answer, error) {
	return s.c.send(ctx, request(http.MethodDelete, s.location, nil, 0), s.c.quick(), nil)
}

// relocate takes the location of an answer, which must have one.
func (s *session) relocate(ctx context.Context, a *wire.Answer) error {
	l, err := protocol.ParseLocation(s.c.base, s.location, a.Header)
	if err != nil {
		return err
	}
	s.location = l.URL
	s.c.places.Store(place(l.URL), true)
	if l.Mended && !s.c.saidMended.Swap(true) {
		s.c.warn(ctx, s.blob, errors.New("the registry names its own address with http although it is reached over https; staying with https. "+
			"Its proxy should send X-Forwarded-Proto, or the registry be told its external URL"))
	}
	return nil
}

// follow takes the location of a later answer. Without one, the newest stays.
func (s *session) follow(ctx context.Context, a *wire.Answer) error {
	err := s.relocate(ctx, a)
	if errors.Is(err, protocol.ErrNoLocation) {
		return nil
	}
	if err != nil {
		return protocol.Kind(protocol.ErrEndpoint, err)
	}
	return nil
}
