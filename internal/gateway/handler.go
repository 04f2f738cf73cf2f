// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Handler forwards requests to one registry. It is safe for concurrent use.
type Handler struct {
	g  *Gateway
	up *upstream
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
	return &Handler{g: g, up: up}, nil
}

// SpeaksPlain asks a registry whose URL is https once, and reports whether the
// server turned out to speak plain HTTP. Any other failure is for the requests
// that follow to meet.
func (h *Handler) SpeaksPlain(ctx context.Context) bool {
	plain, _ := h.g.ping(ctx, h.up)
	return plain
}

// CloseIdleConnections closes the connections to the registry that no request
// is using.
func (h *Handler) CloseIdleConnections() { h.up.closeIdleConnections() }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u := *r.URL
	u.Scheme, u.Host = h.up.url.Scheme, h.up.url.Host
	c := &call{up: h.up, at: &u}
	if !strings.EqualFold(r.Host, h.up.url.Host) {
		c.location = func(to *url.URL, _ int) string {
			if protocol.SameOrigin(h.up.url, to) {
				return to.RequestURI()
			}
			return to.String()
		}
	}
	h.g.forward(w, r, c)
}
