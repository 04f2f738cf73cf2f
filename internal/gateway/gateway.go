// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// Options are those of a Gateway. The zero value works.
type Options struct {
	// RetryFor, Tries, StallTimeout and AnswerTimeout are the fields of
	// resume.TransportOptions with these names.
	RetryFor                    time.Duration
	Tries                       int
	StallTimeout, AnswerTimeout time.Duration

	// Limit bounds what all connections to registries send together, in bytes per
	// second. 0 is no limit.
	Limit int64

	// SpoolDir and SpoolLimit are the fields of resume.TransportOptions with
	// these names.
	SpoolDir   string
	SpoolLimit int64

	// Store is the field of resume.TransportOptions with this name: with it, a
	// client that was killed, or a gateway that was, continues where it stood when
	// the same layer is pushed again.
	Store resume.Store

	// Dialects keeps what is learnt about registries. nil keeps it for this
	// Gateway alone.
	Dialects resume.Dialects

	// Logger gets what resume.TransportOptions.Logger gets. nil is silent.
	Logger logrus.FieldLogger
	// OnEvent is called for each event of an upload, never by two goroutines at
	// once. It must not block.
	OnEvent func(resume.Event)
}

// Gateway forwards requests to registries. It is safe for concurrent use.
type Gateway struct {
	o       Options
	limiter *wire.Limiter
	uploads http.RoundTripper // of resume.NewTransport
	proxy   *httputil.ReverseProxy
	events  sync.Mutex
	via     string // names this gateway in requests, to notice those that come back
}

// New checks the options. It does not touch the network.
func New(o Options) (*Gateway, error) {
	if o.Limit < 0 {
		return nil, errors.New("gateway: Limit is negative")
	}
	if o.RetryFor == 0 {
		o.RetryFor = resume.DefaultRetryFor
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = resume.DefaultStallTimeout
	}
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = resume.DefaultAnswerTimeout
	}
	if o.Logger == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Logger = l
	}
	g := &Gateway{o: o, via: newVia()}
	if o.Limit > 0 {
		g.limiter = wire.NewLimiter(o.Limit)
	}
	var err error
	g.uploads, err = resume.NewTransport(byCall{}, resume.TransportOptions{
		External: byCall{},
		RetryFor: o.RetryFor, Tries: o.Tries, StallTimeout: o.StallTimeout, AnswerTimeout: o.AnswerTimeout,
		SpoolDir: o.SpoolDir, SpoolLimit: o.SpoolLimit,
		Dialects: o.Dialects, Store: o.Store, Logger: o.Logger, OnEvent: g.event,
	})
	if err != nil {
		return nil, err
	}
	g.proxy = g.newProxy()
	return g, nil
}

// event passes an event on, one at a time.
func (g *Gateway) event(e resume.Event) {
	if g.o.OnEvent == nil {
		return
	}
	g.events.Lock()
	defer g.events.Unlock()
	g.o.OnEvent(e)
}

// Upstream is a registry and how to connect to it.
type Upstream struct {
	// URL has the scheme and the host of the registry, and nothing else.
	URL *url.URL
	// MaybePlain allows plain HTTP in place of https if the server turns out not
	// to speak TLS. Credentials may then travel in the clear. Connecting takes one
	// request. A loopback address may always be plain, as in docker.
	MaybePlain bool
	// TLS is cloned. nil is Go's default.
	TLS *tls.Config
	// Proxy says which proxy carries a request, as http.Transport.Proxy does. nil
	// is what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say.
	Proxy func(*http.Request) (*url.URL, error)
}

// upstream is a registry with its connections.
type upstream struct {
	url      *url.URL
	answered atomic.Bool
	registry *wire.Transport
	external *wire.External // to where the registry stores things
}

// connect makes the connections to a registry. It does not touch the network.
func (g *Gateway) connect(u Upstream) (*upstream, error) {
	switch {
	case u.URL == nil || u.URL.Host == "" || u.URL.Scheme != "http" && u.URL.Scheme != "https":
		return nil, errors.New("gateway: the upstream is not an http or https URL with a host")
	case u.URL.Path != "" && u.URL.Path != "/" || u.URL.RawQuery != "" || u.URL.User != nil:
		return nil, errors.New("gateway: the upstream has more than a scheme and a host")
	}
	rt := wire.New(wire.Options{TLS: u.TLS, Proxy: u.Proxy, Stall: g.o.StallTimeout, Limit: g.limiter})
	return &upstream{
		url:      &url.URL{Scheme: u.URL.Scheme, Host: u.URL.Host},
		registry: rt,
		external: rt.External(protocol.HostPort(u.URL)),
	}, nil
}

// settleScheme finds out whether the registry is to be spoken to in plain HTTP,
// if it may be: when the server turns out not to speak TLS, never because TLS
// failed in any other way.
func (g *Gateway) settleScheme(ctx context.Context, u *upstream, maybePlain bool) error {
	if u.url.Scheme != "https" || !maybePlain && !loopbackName(u.url.Host) {
		return nil
	}
	ctx = context.WithValue(ctx, callKey{}, &call{up: u})
	return g.loop(ctx, "ping", func(ctx context.Context, _ *retry.Loop) error {
		plain, err := g.ping(ctx, u)
		if plain {
			u.url.Scheme = "http"
		}
		return err
	})
}

// ping asks a registry over https once. plain says that the server turned out not
// to speak TLS, which is no error.
func (g *Gateway) ping(ctx context.Context, u *upstream) (plain bool, err error) {
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: u.url.Host, Path: apiVersion}, Header: http.Header{}}
	if _, err = wire.Send(ctx, u.registry, req, g.limits(false), nil); protocol.PlainHTTP(err) {
		return true, nil
	}
	return false, err
}

func (u *upstream) closeIdleConnections() {
	u.registry.CloseIdleConnections()
	u.external.CloseIdleConnections()
}
