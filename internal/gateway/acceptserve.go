// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// acceptMark is how the last element of the location of an accepted upload
// begins.
const acceptMark = "accepted."

// acceptedAt is the path of an upload at the gateway.
func (v view) acceptedAt(id string) string {
	return v.query(apiVersion+v.name()+"/blobs/uploads/"+acceptMark+id, "")
}

// accept answers a request about an upload of the gateway's own.
func (s *Server) accept(w http.ResponseWriter, r *http.Request, v view, c *call) {
	id := strings.TrimPrefix(v.rt.rest, "blobs/uploads/"+acceptMark)
	u, err := s.accepted.get(id, v.scope())
	if err != nil {
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", err.Error())
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if u.isCommitting() {
			v.stands(w, u, http.StatusNoContent)
			return
		}
		// The offset must not grow any more after it was told.
		done, err := u.take(r.Context(), nil)
		if err != nil {
			s.acceptFailed(w, err)
			return
		}
		defer done()
		v.stands(w, u, http.StatusNoContent)
	case http.MethodDelete:
		done, err := u.take(r.Context(), nil)
		if err != nil {
			s.acceptFailed(w, err)
			return
		}
		defer done()
		u.forget()
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch, http.MethodPut:
		s.acceptBody(w, r, v, c, u)
	}
}

// stands says where an upload stands (distribution-spec v1.1, end-13).
func (v view) stands(w http.ResponseWriter, u *acceptedUpload, status int) {
	h := w.Header()
	h.Set("Location", v.acceptedAt(u.id))
	h.Set("Range", protocol.Range(u.offset()))
	h.Set("Docker-Upload-Uuid", u.id)
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Content-Length", "0")
	if status == http.StatusNoContent {
		h.Del("Content-Length")
	}
	w.WriteHeader(status)
}

// acceptBody takes a PATCH, or a PUT with or without a body. Every byte that
// arrives is kept, whatever becomes of the request.
func (s *Server) acceptBody(w http.ResponseWriter, r *http.Request, v view, c *call, u *acceptedUpload) {
	var dgst digest.Digest
	if r.Method == http.MethodPut {
		if dgst = digest.Digest(r.URL.Query().Get("digest")); dgst.Validate() != nil {
			fail(w, http.StatusBadRequest, "DIGEST_INVALID", "the digest is missing or malformed")
			return
		}
	}
	interrupt := func() {}
	if b, ok := r.Body.(*patientBody); ok {
		interrupt = b.interrupt
	}
	done, err := u.take(r.Context(), interrupt)
	if err != nil {
		s.acceptFailed(w, err)
		return
	}
	defer done()
	span := r.Header.Get("Content-Range")
	if span != "" {
		from, ok := rangeStart(span, r.ContentLength)
		if !ok {
			fail(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the Content-Range is malformed")
			return
		}
		if from != u.offset() {
			w.Header().Set("Location", v.acceptedAt(u.id))
			w.Header().Set("Range", protocol.Range(u.offset()))
			fail(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload stands at another offset than Content-Range begins at")
			return
		}
	}
	if r.ContentLength != 0 {
		next := acceptedPut{} // nothing that may come again without its offset
		if r.Method == http.MethodPut && span == "" {
			next = acceptedPut{offset: u.offset(), length: r.ContentLength, digest: dgst}
		}
		if err := u.begin(next); err != nil {
			s.acceptFailed(w, err)
			return
		}
	}
	as := &onBehalf{s: s, c: c, client: r.Header}
	s.startHandOn(r, v, as, u)
	if err := u.append(r.Body); err != nil {
		s.acceptFailed(w, err)
		return
	}
	if r.Method == http.MethodPatch {
		v.stands(w, u, http.StatusAccepted)
		return
	}
	u.commit()
	ctx := context.WithoutCancel(r.Context())
	if h := u.takeHandOn(); h != nil && s.commitHandedOn(ctx, h, v, as, u, dgst) {
		u.forget()
		v.committed(w, dgst)
		return
	}
	s.deliver(ctx, w, r, v, c, u, dgst)
}

// startHandOn hands the upload on from now on, unless that is so already, or a
// small blob comes whole.
func (s *Server) startHandOn(r *http.Request, v view, as *onBehalf, u *acceptedUpload) {
	if r.ContentLength == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.handOn != nil:
		u.handOn.use(as)
	case r.Method == http.MethodPut && u.size == 0 && r.ContentLength > 0 && r.ContentLength <= handOnLeast:
	default:
		var at *url.URL
		if u.session != nil {
			at, u.session = u.session.at, nil
		}
		u.handOn = s.newHandOn(u, v, as, at)
	}
}

// committed answers a commit (distribution-spec v1.1, end-6).
func (v view) committed(w http.ResponseWriter, dgst digest.Digest) {
	w.Header().Set("Location", v.query(apiVersion+v.name()+"/blobs/"+dgst.String(), ""))
	w.Header().Set("Docker-Content-Digest", dgst.String())
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
}

// rangeStart reads a Content-Range A-B (distribution-spec v1.1, end-5), which has
// to agree with the length of the body if that is known.
func rangeStart(span string, length int64) (start int64, ok bool) {
	a, b, ok := strings.Cut(strings.TrimPrefix(span, "bytes "), "-")
	from, errA := strconv.ParseInt(a, 10, 64)
	to, errB := strconv.ParseInt(b, 10, 64)
	ok = ok && errA == nil && errB == nil && 0 <= from && from <= to && (length < 0 || to-from == length-1)
	return from, ok
}

func (s *Server) acceptFailed(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errNoUpload):
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", err.Error())
	case errors.Is(err, errNoRoom):
		s.g.log().WithField("error", protocol.Text(err)).Warn("no room for an upload")
		fail(w, http.StatusServiceUnavailable, "UNAVAILABLE", errNoRoom.Error())
	case errors.Is(err, errDisk):
		s.g.log().WithField("error", protocol.Text(err)).Error("an upload cannot be kept")
		fail(w, http.StatusServiceUnavailable, "UNAVAILABLE", errDisk.Error())
	default: // the body broke off, or another request of the client took over
		panic(http.ErrAbortHandler)
	}
}

// deliver hands the blob on to the registry, and answers when the registry has
// committed it.
func (s *Server) deliver(ctx context.Context, w http.ResponseWriter, r *http.Request, v view, c *call, u *acceptedUpload, dgst digest.Digest) {
	repo, err := repositoryAt(c.up.url.Host, v.rt.repository)
	if err != nil {
		s.g.failed(w, r, err)
		return
	}
	as := &onBehalf{s: s, c: c, client: r.Header}
	client, err := resume.New(repo, resume.Options{
		PlainHTTP: c.up.url.Scheme == "http", Transport: as, External: as, Reached: true,
		RetryFor: s.g.o.RetryFor, Tries: s.g.o.Tries, StallTimeout: s.g.o.StallTimeout, AnswerTimeout: s.g.o.AnswerTimeout,
		Dialects: s.g.o.Dialects, Logger: s.g.o.Logger, OnEvent: s.g.event,
	})
	if err != nil {
		s.g.failed(w, r, err)
		return
	}
	_, err = client.Upload(ctx, resume.Blob{
		Digest: dgst, Size: u.offset(),
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) { return u.read(offset) },
	})
	var answered *protocol.StatusError
	switch {
	case err == nil:
		u.forget()
		v.committed(w, dgst)
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client asks again, and finds all its bytes
	case errors.Is(err, protocol.ErrSource) && u.differs(dgst):
		u.forget()
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "the bytes of the upload do not have this digest")
	case errors.Is(err, protocol.ErrSource): // the disk, not the client
		s.acceptFailed(w, fmt.Errorf("%w: %w", errDisk, err))
	case errors.Is(err, protocol.ErrDenied) && as.refusal() != nil && !c.strip && c.signIn == nil:
		if v := as.refusal().Get("WWW-Authenticate"); v != "" {
			w.Header().Set("WWW-Authenticate", v)
			fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "the registry asks for other credentials")
			return
		}
		fail(w, http.StatusForbidden, "DENIED", "the registry refuses the upload")
	case errors.As(err, &answered) && protocol.Classify(answered).Class == protocol.Final:
		fail(w, answered.Status, "BLOB_UPLOAD_INVALID", protocol.Text(answered))
	default:
		s.g.failed(w, r, err)
	}
}

// onBehalf sends requests of the gateway's own with what the client brought.
type onBehalf struct {
	s      *Server
	c      *call
	client http.Header

	mu      sync.Mutex
	refused http.Header // of the last answer of 401
}

func (o *onBehalf) refusal() http.Header {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refused
}

// RoundTrip implements http.RoundTripper.
func (o *onBehalf) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, o.c))
	r.Header = r.Header.Clone()
	if o.c.signIn == nil && !o.c.strip {
		for _, k := range credentialHeaders { // byCall keeps them from other hosts
			if v := o.client[k]; v != nil {
				r.Header[k] = v
			}
		}
	}
	if ua := o.client.Get("User-Agent"); ua != "" {
		r.Header.Set("User-Agent", ua)
	}
	resp, err := byCall{}.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && protocol.SameOrigin(o.c.up.url, r.URL) {
		o.mu.Lock()
		o.refused = resp.Header
		o.mu.Unlock()
	}
	return resp, err
}

// cancelAtRegistry ends a session that the registry opened and nobody uses. It is
// tried once: the registry purges what stays.
func (s *Server) cancelAtRegistry(as *onBehalf, at *url.URL) {
	if s.ctx.Err() != nil {
		return // the server is closing
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, at.String(), nil)
	if err != nil {
		return
	}
	if resp, err := as.RoundTrip(req); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
	}
}
