// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// maxManifest bounds a body that is kept in memory to be sent again, in bytes.
// Registries take manifests of 4 MiB, some of 8.
const maxManifest = 8 << 20

// maxRefusals is how often in a row the registry may answer a request with a
// failure of its own before the client gets that answer.
const maxRefusals = 4

const maxRedirects = 5

// carrier carries a client's requests to the registry. Uploads resume; whatever
// else is safe to repeat is repeated, within the budget of an upload.
type carrier struct{ g *Gateway }

// RoundTrip implements http.RoundTripper.
func (t *carrier) RoundTrip(r *http.Request) (*http.Response, error) {
	bodiless := r.Body == nil || r.Body == http.NoBody
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if bodiless {
			return t.g.get(r)
		}
	case http.MethodDelete:
		if bodiless {
			return t.g.repeat(r, nil)
		}
	case http.MethodPost:
		if bodiless && about(r.URL) == aboutUploads { // a session more does no harm
			return t.g.repeat(r, nil)
		}
	case http.MethodPut:
		if about(r.URL) != aboutManifest {
			break
		}
		body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxManifest))
		if err != nil {
			var large *http.MaxBytesError
			if !errors.As(err, &large) {
				err = protocol.Kind(protocol.ErrSource, err)
			}
			return nil, err
		}
		return t.g.repeat(r, body)
	}
	return t.g.uploads.RoundTrip(r)
}

// loop runs op in the one loop that retries.
func (g *Gateway) loop(ctx context.Context, what string, op func(context.Context, *retry.Loop) error) error {
	c, _ := callOf(ctx)
	return retry.Policy{
		For: g.o.RetryFor, First: resume.FirstAnswerFor, Tries: g.o.Tries,
		Answered: &c.up.answered, Random: rand.Float64,
		Failed: func(err error) {
			g.log().WithFields(logrus.Fields{"registry": c.up.url.Host, "request": what, "error": protocol.Text(err)}).Warn("request broken")
		},
	}.Do(ctx, func(ctx context.Context, l *retry.Loop) error {
		for range maxRenewals {
			err := op(ctx, l)
			if !errors.Is(err, wire.ErrSpent) {
				return err
			}
			// The sign-in has a new token, and could not send the body again.
		}
		return protocol.Kind(protocol.ErrDenied, errors.New("the registry refuses every renewed authorization"))
	})
}

const maxRenewals = 3

// limits are those of a request with a body, or without one.
func (g *Gateway) limits(body bool) wire.Limits {
	l := wire.Limits{Stall: g.o.StallTimeout, Answer: g.o.StallTimeout}
	if body {
		l.Answer = g.o.AnswerTimeout
	}
	return l
}

// repeat sends a request until it is answered, and returns the answer.
func (g *Gateway) repeat(r *http.Request, body []byte) (*http.Response, error) {
	return g.untilAnswered(r, func(ctx context.Context, e *exchange) error {
		req := again(ctx, r)
		if body != nil {
			req.Body, req.ContentLength = wire.NewBody(io.NopCloser(bytes.NewReader(body)), int64(len(body))), int64(len(body))
		}
		a, err := wire.Send(ctx, g.uploads, req, g.limits(body != nil || r.Method != http.MethodHead), nil)
		if err != nil {
			return err
		}
		return e.judge(ctx, a)
	})
}

// exchange is a request of a client, over all tries.
type exchange struct {
	refusals int
	out      *http.Response // the best answer so far
}

// untilAnswered tries until there is an answer for the client. If the budget ends
// before, the client gets the last one that the registry gave.
func (g *Gateway) untilAnswered(r *http.Request, try func(context.Context, *exchange) error) (*http.Response, error) {
	var e exchange
	err := g.loop(r.Context(), r.Method, func(ctx context.Context, _ *retry.Loop) error { return try(ctx, &e) })
	if e.out != nil && (err == nil || r.Context().Err() == nil) {
		e.out.Request = r
		if c, ok := callOf(r.Context()); ok {
			g.log().WithFields(logrus.Fields{
				"registry": c.up.url.Host, "method": r.Method, "request": about(r.URL).String(), "status": e.out.StatusCode,
			}).Debug("answered")
		}
		return e.out, nil
	}
	return nil, err
}

// judge keeps an answer for the client, and fails if another try may get a
// better one.
func (e *exchange) judge(ctx context.Context, a *wire.Answer) error {
	if c, ok := callOf(ctx); ok {
		c.up.answered.Store(true)
	}
	e.out = answer(a)
	if a.Status < 400 || a.Status == http.StatusLoopDetected {
		return nil
	}
	se := protocol.Unexpected(a, time.Now())
	if protocol.Classify(se).Class != protocol.Break {
		return nil
	}
	if e.refusals++; e.refusals > maxRefusals {
		return nil
	}
	return se
}

// answer makes the client's answer of one that has been read.
func answer(a *wire.Answer) *http.Response {
	if a.Response != nil {
		return a.Response
	}
	return &http.Response{
		StatusCode: a.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: a.Header.Clone(),
		Body: io.NopCloser(bytes.NewReader(a.Body)), ContentLength: int64(len(a.Body)),
	}
}

// again is a copy of the client's request for one try.
func again(ctx context.Context, r *http.Request) *http.Request {
	req := r.Clone(ctx)
	req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	return req
}

// redirected is where an answer to a request for asked leads, nil if nowhere.
func redirected(c *call, asked *url.URL, status int, h http.Header) (*url.URL, error) {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		l, err := protocol.ParseLocation(c.up.url, asked, h)
		if err != nil {
			return nil, protocol.Kind(protocol.ErrEndpoint, err)
		}
		return l.URL, nil
	}
	return nil, nil
}
