// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
)

// call is what a request of a client needs on its way to the registry.
type call struct {
	up *upstream
	// path and query are those at the registry.
	path, query string
	// at, unless nil, is the whole URL instead.
	at *url.URL
	// signIn, unless nil, adds the gateway's own credentials to requests to the
	// registry.
	signIn http.RoundTripper
	// strip keeps the client's credentials from the registry: they are for the
	// gateway.
	strip bool
	// location gives the client's view of a Location that the registry named with
	// this status. nil leaves it as it is.
	location func(to *url.URL, status int) string
	// link does the same for the path of a Link.
	link func(path string) string
}

type callKey struct{}

func callOf(ctx context.Context) (*call, bool) {
	c, ok := ctx.Value(callKey{}).(*call)
	return c, ok
}

// forward carries out a request and answers it.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, c *call) {
	if slices.Contains(r.Header["Via"], g.via) {
		fail(w, http.StatusLoopDetected, "UNSUPPORTED", "the request has come back to the gateway that forwarded it: the registry is the gateway itself")
		return
	}
	g.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
}

func (g *Gateway) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      &carrier{g},
		Rewrite:        g.rewrite,
		ModifyResponse: g.answered,
		ErrorHandler:   g.failed,
		ErrorLog:       quiet,
	}
}

// rewrite turns the client's request into the one for the registry.
func (g *Gateway) rewrite(r *httputil.ProxyRequest) {
	c, _ := callOf(r.In.Context())
	u := &url.URL{Scheme: c.up.url.Scheme, Host: c.up.url.Host, Path: c.path, RawQuery: c.query}
	if c.at != nil {
		u = c.at
	}
	r.Out.URL, r.Out.Host = u, ""
	if r.Out.Header.Get("User-Agent") == "" {
		r.Out.Header["User-Agent"] = nil // or net/http sets its own
	}
	// Nobody changes the protocol of a connection that others use too.
	r.Out.Header.Del("Connection")
	r.Out.Header.Del("Upgrade")
	r.Out.Header.Add("Via", g.via)
	if c.strip || c.signIn != nil {
		for _, k := range credentialHeaders {
			r.Out.Header.Del(k)
		}
	}
}

// answered turns the registry's answer into the one for the client.
func (g *Gateway) answered(resp *http.Response) error {
	c, _ := callOf(resp.Request.Context())
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return protocol.Kind(protocol.ErrEndpoint, errors.New("the registry changes the protocol of the connection unasked"))
	}
	if resp.StatusCode == http.StatusUnauthorized && (c.strip || c.signIn != nil) {
		// The challenge is not the client's to answer: it has credentials for the
		// gateway only.
		g.log().WithField("registry", c.up.url.Host).Warn("the registry refuses the gateway's credentials")
		refuse(resp, http.StatusForbidden, "DENIED", "the registry refuses the gateway's credentials")
		return nil
	}
	if to, err := protocol.ParseLocation(c.up.url, resp.Request.URL, resp.Header); err == nil && c.location != nil {
		resp.Header.Set("Location", c.location(to.URL, resp.StatusCode))
	}
	if links := resp.Header["Link"]; c.link != nil {
		for i, l := range links {
			if rest, ok := strings.CutPrefix(l, "<"); ok && strings.HasPrefix(rest, apiVersion) {
				links[i] = "<" + c.link(rest)
			}
		}
	}
	return nil
}

// failed answers a request that got no answer from the registry. Every client
// retries after 503, by its own rules, and the next try continues.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		fail(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the body of the request is too large")
		return
	case r.Context().Err() != nil || errors.Is(err, protocol.ErrSource):
		panic(http.ErrAbortHandler) // nobody is there to read an answer
	}
	text := protocol.Text(err)
	g.log().WithFields(logrus.Fields{"method": r.Method, "error": text}).Warn("no answer for the client")
	fail(w, http.StatusServiceUnavailable, "UNAVAILABLE", text)
}

// fail writes an error as the specification has them (distribution-spec v1.1,
// "Error Codes").
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(errorBody(code, message)) //nolint:errcheck // the client may have gone
}

func errorBody(code, message string) []byte {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]one{"errors": {{code, message}}})
	if err != nil {
		return []byte(`{"errors":[]}`)
	}
	return body
}

// byCall carries each request over the connections of the registry that the
// request's context names.
type byCall struct{}

// RoundTrip implements http.RoundTripper. Credentials for the registry go
// nowhere else.
func (byCall) RoundTrip(r *http.Request) (*http.Response, error) {
	c, ok := callOf(r.Context())
	switch {
	case !ok:
		return nil, errors.New("gateway: a request without an upstream")
	case protocol.SameOrigin(c.up.url, r.URL) && c.signIn != nil:
		return c.signIn.RoundTrip(r)
	case protocol.SameOrigin(c.up.url, r.URL):
		return c.up.registry.RoundTrip(r)
	}
	r = r.WithContext(r.Context()) // a copy
	r.Header = r.Header.Clone()
	for _, k := range credentialHeaders {
		r.Header.Del(k)
	}
	return c.up.external.RoundTrip(r)
}

// credentialHeaders are not for other hosts than the one they were sent to.
var credentialHeaders = []string{"Authorization", "Cookie", "Proxy-Authorization", "X-Registry-Auth"}

// newVia makes the name by which a gateway knows its own requests.
func newVia() string {
	var b [8]byte
	rand.Read(b[:])
	return "1.1 rpush-" + hex.EncodeToString(b[:])
}
