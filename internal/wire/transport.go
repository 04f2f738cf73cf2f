// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Options of a Transport. The zero value works.
type Options struct {
	// TLS is cloned; nil is Go's default.
	TLS *tls.Config
	// UserAgent replaces the User-Agent of every request unless empty.
	UserAgent string
	// Stall is how long sent bytes may stay unacknowledged before the kernel
	// gives the connection up, where it can be told so; 0 leaves it to the
	// kernel.
	Stall time.Duration
	// Proxy says which proxy carries a request, as of http.Transport; nil is
	// http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// Limit bounds what is sent, whatever the connection; nil does not.
	Limit *Limiter
	// Dial replaces the dialler, in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Transport is an http.RoundTripper over connections of type *Conn, HTTP/1.1
// only: over HTTP/2 one reset takes every blob down at once.
type Transport struct {
	base pair
	o    Options

	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error) // replaced in tests

	mu     sync.Mutex
	public map[string]bool // host:port -> has it ever had a public address
}

// New makes a Transport with connections of its own.
func New(o Options) *Transport {
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	t := &Transport{o: o, lookup: net.DefaultResolver.LookupNetIP, public: map[string]bool{}}
	t.base = t.pair(o.Proxy, t.dial)
	return t
}

// pair is a transport that keeps connections and one that does not:
// http.Request.Close would still take a kept one.
type pair struct{ kept, fresh *http.Transport }

func (t *Transport) pair(proxy func(*http.Request) (*url.URL, error),
	dial func(ctx context.Context, network, addr string) (net.Conn, error),
) pair {
	var conf *tls.Config
	if t.o.TLS != nil {
		conf = t.o.TLS.Clone()
	}
	kept := &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    30 * time.Second,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 256 << 10,
		OnProxyConnectResponse: tunnelled,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	fresh := kept.Clone()
	fresh.DisableKeepAlives = true
	return pair{kept, fresh}
}

// ProxyError means that a proxy was asked for a tunnel and gave none. It is in
// a net.OpError with the Op that those have which cannot reach the proxy.
type ProxyError struct {
	Proxy  string // host:port
	Status int
}

func (e *ProxyError) Error() string {
	return fmt.Sprintf("the proxy %s answered %d %s", e.Proxy, e.Status, http.StatusText(e.Status))
}

// tunnelled keeps what net/http makes a bare text of.
func tunnelled(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &net.OpError{Op: "proxyconnect", Net: "tcp", Err: &ProxyError{Proxy: proxy.Host, Status: resp.StatusCode}}
}

// Fresh asks for a connection of its own for a request with the returned
// context, on a Transport of this package.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

type freshKey struct{}

// IsFresh reports whether a context asks for a connection of its own.
func IsFresh(ctx context.Context) bool {
	fresh, _ := ctx.Value(freshKey{}).(bool)
	return fresh
}

// RoundTrip implements http.RoundTripper. A request whose body has been used
// gets ErrSpent before anything is sent.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return roundTrip(t.base, t.o.UserAgent, req)
}

// CloseIdleConnections closes what no request is using.
func (t *Transport) CloseIdleConnections() { t.base.kept.CloseIdleConnections() }

func roundTrip(base pair, ua string, req *http.Request) (*http.Response, error) {
	if b, ok := req.Body.(Body); ok && !b.take() {
		return nil, ErrSpent
	}
	if ua != "" {
		req.Header.Set("User-Agent", ua)
	}
	if IsFresh(req.Context()) {
		return base.fresh.RoundTrip(req)
	}
	return base.kept.RoundTrip(req)
}

func (t *Transport) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := t.connect(ctx, network, addr, nil)
	if err != nil {
		return nil, err
	}
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		t.reached(addr, !private(ap.Addr()))
	}
	return c, nil
}

// reached notes whether host:port is public and returns what counts from now
// on: what was public once stays public, whatever its name resolves to later.
func (t *Transport) reached(addr string, public bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.public[addr] = t.public[addr] || public
	return t.public[addr]
}

func (t *Transport) connect(ctx context.Context, network, addr string, control func(string, string, syscall.RawConn) error) (net.Conn, error) {
	if t.o.Dial != nil {
		c, err := t.o.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newConn(c, t.o.Limit), nil
	}
	d := net.Dialer{Timeout: 30 * time.Second, Control: control}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if tc, ok := c.(*net.TCPConn); ok {
		setUserTimeout(tc, t.o.Stall)
		linger(tc, reset)
	}
	return newConn(c, t.o.Limit), nil
}

// ErrPrivate means that a registry with a public address named an upload location on a
// private one, as it would to make this machine talk to its own network.
var ErrPrivate = errors.New("upload location on a private address, named by a registry on a public one")

// External returns a transport for upload locations that registry, a
// host:port, names on other hosts. It shares no connection and no credentials
// with t, and does not dial private addresses if the registry is public. The
// address is checked when dialling, so that no name can change its mind.
func (t *Transport) External(registry string) *External {
	e := &External{t: t, registry: registry}
	e.base = t.pair(e.proxy, e.dial)
	for _, b := range []*http.Transport{e.base.kept, e.base.fresh} {
		if b.TLSClientConfig != nil { // a client certificate is a credential
			b.TLSClientConfig.Certificates, b.TLSClientConfig.GetClientCertificate = nil, nil
		}
	}
	return e
}

// External is a transport for upload locations on other hosts than the
// registry's: see Transport.External.
type External struct {
	t        *Transport
	registry string
	base     pair
	proxies  sync.Map // host:port of the proxies in use
}

// RoundTrip implements http.RoundTripper.
func (e *External) RoundTrip(req *http.Request) (*http.Response, error) {
	// A proxy would do the dialling.
	host := req.URL.Hostname()
	if a, err := netip.ParseAddr(host); (err == nil && internal(a) || host == "localhost") && e.registryPublic(req.Context()) {
		return nil, fmt.Errorf("%w: %s", ErrPrivate, host)
	}
	return roundTrip(e.base, e.t.o.UserAgent, req)
}

// CloseIdleConnections closes what no request is using.
func (e *External) CloseIdleConnections() { e.base.kept.CloseIdleConnections() }

// proxy remembers the proxies, which may well be private.
func (e *External) proxy(req *http.Request) (*url.URL, error) {
	u, err := e.t.o.Proxy(req)
	if u != nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		e.proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
	}
	return u, err
}

func (e *External) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, ok := e.proxies.Load(addr); ok {
		return e.t.connect(ctx, network, addr, nil)
	}
	return e.t.connect(ctx, network, addr, func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if internal(ap.Addr()) && e.registryPublic(ctx) {
			return fmt.Errorf("%w: %s", ErrPrivate, ap.Addr())
		}
		return nil
	})
}

// registryPublic judges by the addresses the registry was reached at, or else by
// those its name had when it was first looked up. A registry with any public
// address is public, and so is one that is not known.
func (e *External) registryPublic(ctx context.Context) bool {
	e.t.mu.Lock()
	public, known := e.t.public[e.registry]
	e.t.mu.Unlock()
	if known {
		return public
	}
	host, _, err := net.SplitHostPort(e.registry)
	if err != nil {
		return true
	}
	addrs, err := e.t.lookup(ctx, "ip", host)
	if err != nil || len(addrs) == 0 {
		return true
	}
	return e.t.reached(e.registry, slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !private(a) }))
}

// internal reports whether an address is one that a stranger must not make
// this machine talk to. An address that carries an IPv4 address is judged by
// that one too.
func internal(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if v4, ok := embedded(a); ok {
		return internal(v4)
	}
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() ||
		a.IsMulticast() || within(a, special)
}

// private reports whether a registry at this address is on a private network,
// and may name storage there. Behind a translated address anything can be.
func private(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return internal(a) && !within(a, translated)
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// embedded returns the IPv4 address that an IPv6 address carries.
func embedded(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case !a.Is6() || a.IsUnspecified() || a.IsLoopback():
	case nat64.Contains(a), compatible.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215: where the IPv4 address is differs
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
	compatible = netip.MustParsePrefix("::/96")          // RFC 4291, section 2.5.5.1

	translated = []netip.Prefix{nat64, localNAT64, sixToFour, compatible}

	// special are internal addresses that package netip has no name for.
	special = []netip.Prefix{
		localNAT64,
		netip.MustParsePrefix("0.0.0.0/8"),        // this network
		netip.MustParsePrefix("100.64.0.0/10"),    // carrier-grade NAT
		netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, which holds secrets of the machine
		netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments; Oracle's metadata service is 192.0.0.192
		netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
		netip.MustParsePrefix("240.0.0.0/4"),      // reserved, and broadcast
		netip.MustParsePrefix("fec0::/10"),        // site-local
	}
)
