// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/signin"
)

// NotRegistryError says that something answers at the address, but not as a registry
// answers GET /v2/ (distribution-spec v1.1, end-1).
type NotRegistryError = signin.NotRegistryError

// scheme decides between https and plain HTTP. Only where both are allowed
// does it take a request: plain HTTP is spoken when the server is found not to
// speak TLS, never because TLS failed in any other way.
func (p *Pusher) scheme(ctx context.Context, repo name.Repository) (string, error) {
	switch {
	case p.o.Scheme == SchemeHTTP:
		return "http", nil
	case p.o.Scheme == SchemeAuto && !loopback(repo.RegistryStr()):
		return "https", nil
	}
	c, err := p.client(ctx, repo, "https", p.base, p.base, nil)
	if err != nil {
		return "", err
	}
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/v2/"}}
	_, err = c.Do(ctx, "reach", req)
	switch {
	case err == nil, errors.Is(err, protocol.ErrDenied):
		return "https", nil
	case protocol.PlainHTTP(err):
		return "http", nil
	}
	return "", err
}

// loopback reports whether a registry is on this host, as docker sees it.
func loopback(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]") // IPv6 without a port
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
