package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Handler forwards requests to one registry. It is safe for concurrent use.
type Handler struct {
	g     *Gateway
	up    *upstream
	proxy *httputil.ReverseProxy
}

// To returns a handler for one registry. A client's request keeps its path, its
// query and its headers, except Host, which names the upstream. The client gets
// the registry's answer as it is, with one exception: if the client addresses the
// gateway by another name than the registry's, a Location at the registry becomes
// relative, so that the client comes back to the gateway. Requests have to come
// from an http.Server.
func (g *Gateway) To(u Upstream) (*Handler, error) {
	up, err := g.connect(u)
	if err != nil {
		return nil, err
	}
	h := &Handler{g: g, up: up}
	h.proxy = &httputil.ReverseProxy{
		Transport:    g.uploads,
		Rewrite:      h.rewrite,
		ErrorHandler: h.failed,

		ModifyResponse: h.relocate,
		ErrorLog:       quiet,
	}
	return h, nil
}

// CloseIdleConnections closes the connections to the registry that no request
// is using.
func (h *Handler) CloseIdleConnections() { h.up.closeIdleConnections() }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := context.WithValue(withUpstream(r.Context(), h.up), hostKey{}, r.Host)
	h.proxy.ServeHTTP(w, r.WithContext(ctx))
}

func (h *Handler) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = h.up.url.Scheme, h.up.url.Host
	r.Out.Host = ""
	if r.Out.Header.Get("User-Agent") == "" {
		r.Out.Header["User-Agent"] = nil // or net/http sets its own
	}
}

// relocate makes a Location at the registry relative, unless the client knows
// the gateway by the registry's own name.
func (h *Handler) relocate(resp *http.Response) error {
	to, err := protocol.ParseLocation(h.up.url, resp.Request.URL, resp.Header)
	if err != nil || !protocol.SameOrigin(h.up.url, to.URL) {
		return nil // there is none, or the client has to judge it
	}
	if in, _ := resp.Request.Context().Value(hostKey{}).(string); strings.EqualFold(in, h.up.url.Host) {
		return nil
	}
	resp.Header.Set("Location", to.URL.RequestURI())
	return nil
}

// failed answers a request that got no answer from the registry. Every client
// retries after 503, by its own rules, and the next try continues.
func (h *Handler) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || errors.Is(err, protocol.ErrSource) {
		panic(http.ErrAbortHandler) // nobody is there to read an answer
	}
	text := protocol.Text(err)
	h.g.log().WithFields(logrus.Fields{"method": r.Method, "error": text}).Warn("no answer for the client")
	fail(w, http.StatusServiceUnavailable, "UNAVAILABLE", text)
}

// fail writes an error as the specification has them (distribution-spec v1.1,
// "Error Codes").
func fail(w http.ResponseWriter, status int, code, message string) {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]one{"errors": {{code, message}}})
	if err != nil {
		body = []byte(`{"errors":[]}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body) //nolint:errcheck // the client may have gone
}

// byUpstream carries each request over the connections of the registry that the
// request's context names.
type byUpstream struct{}

// RoundTrip implements http.RoundTripper. Credentials for the registry go
// nowhere else.
func (byUpstream) RoundTrip(r *http.Request) (*http.Response, error) {
	up, ok := r.Context().Value(upstreamKey{}).(*upstream)
	switch {
	case !ok:
		return nil, errors.New("gateway: a request without an upstream")
	case protocol.SameOrigin(up.url, r.URL):
		return up.registry.RoundTrip(r)
	}
	for _, k := range credentialHeaders {
		if r.Header[k] != nil {
			r = r.Clone(r.Context())
			break
		}
	}
	for _, k := range credentialHeaders {
		delete(r.Header, k)
	}
	return up.external.RoundTrip(r)
}

var credentialHeaders = []string{"Authorization", "Cookie", "X-Registry-Auth"}

type (
	upstreamKey struct{} // *upstream
	hostKey     struct{} // string: the Host header of the client
)

func withUpstream(ctx context.Context, up *upstream) context.Context {
	return context.WithValue(ctx, upstreamKey{}, up)
}
