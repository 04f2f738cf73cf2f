// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Options are those of a Proxy.
type Options struct {
	// Hosts are those that the proxy serves itself: HOST stands for the default
	// ports of http and https, HOST:PORT for one port.
	Hosts []string
	// Handler serves the requests to one of Hosts; at has its scheme and its host,
	// without the default port. It is called once for each, and again if it fails.
	// Close cancels ctx, and waits for the call. ErrPlain says that the host does not speak TLS: the command then sees what it
	// would have seen without the proxy.
	Handler func(ctx context.Context, at *url.URL) (http.Handler, error)
	// Forward says which proxy carries a connection to any other host, as
	// HTTPS_PROXY and the like do; nil, or a nil URL, is none.
	Forward func(*url.URL) (*url.URL, error)
}

// ErrPlain is returned by Options.Handler for an https URL whose host speaks plain
// HTTP.
var ErrPlain = errors.New("the host does not speak TLS")

// headerTimeout is how long the command may take to send the head of a request.
const headerTimeout = time.Minute

// Proxy is an HTTP proxy on a loopback address. Only who knows its URL can use
// it: the URL has a password.
type Proxy struct {
	o         Options
	authority *authority
	password  string
	tunnels   *http.Transport // for plain HTTP to other hosts
	plain     *httputil.ReverseProxy
	ln        net.Listener
	front     *http.Server // what the command's connections reach
	inner     *http.Server // what is served through CONNECT
	accepted  chan net.Conn

	mu       sync.Mutex
	closed   bool
	conns    map[net.Conn]bool // taken over from front
	handlers map[string]http.Handler

	newHandlers singleflight.Group // by the URL of the host
	newHandler  func(at *url.URL) (http.Handler, error)

	cancel context.CancelFunc
	done   <-chan struct{}
	wg     sync.WaitGroup
}

// Start listens on a free port of 127.0.0.1 until Close.
func Start(o Options) (*Proxy, error) {
	names := make([]string, 0, len(o.Hosts))
	for _, h := range o.Hosts {
		host, _ := splitPort(h)
		names = append(names, host)
	}
	ca, err := newAuthority(names)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{
		o: o, authority: ca, password: rand.Text(), ln: ln,
		accepted: make(chan net.Conn), conns: map[net.Conn]bool{}, handlers: map[string]http.Handler{},
		newHandler: func(at *url.URL) (http.Handler, error) { return o.Handler(ctx, at) },
		cancel:     cancel, done: ctx.Done(),
	}
	if p.o.Forward == nil {
		p.o.Forward = func(*url.URL) (*url.URL, error) { return nil, nil }
	}
	silent := log.New(io.Discard, "", 0)
	p.tunnels = &http.Transport{
		Proxy:              func(r *http.Request) (*url.URL, error) { return p.o.Forward(r.URL) },
		DisableCompression: true, // the answer is passed on as it is
	}
	p.plain = &httputil.ReverseProxy{
		Rewrite:       unchanged,
		Transport:     p.tunnels,
		FlushInterval: -1,
		ErrorLog:      silent,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "rpush gateway: "+err.Error(), http.StatusBadGateway)
		},
	}
	base := func(net.Listener) context.Context { return ctx }
	p.front = &http.Server{Handler: p.counted(p.serve), ReadHeaderTimeout: headerTimeout, ErrorLog: silent, BaseContext: base}
	p.inner = &http.Server{
		Handler: p.counted(p.serveInner), ReadHeaderTimeout: headerTimeout, ErrorLog: silent, BaseContext: base,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, targetKey{}, c.(*servedConn).at)
		},
	}
	p.wg.Go(func() { _ = p.front.Serve(ln) })
	p.wg.Go(func() { _ = p.inner.Serve(innerListener{p}) })
	return p, nil
}

// unchanged undoes what ReverseProxy changes in a request: it takes out parameters
// that it cannot parse and what earlier proxies say of the client.
func unchanged(r *httputil.ProxyRequest) {
	r.Out.Host = r.In.Host
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	for _, k := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := r.In.Header[k]; ok {
			r.Out.Header[k] = v
		}
	}
}

// URL is what the command's HTTPS_PROXY has to be. It is a secret.
func (p *Proxy) URL() string {
	return (&url.URL{Scheme: "http", User: url.UserPassword("rpush", p.password), Host: p.ln.Addr().String()}).String()
}

// PEM is the certificate of the authority that the command has to trust.
func (p *Proxy) PEM() []byte { return p.authority.pem() }

// Close ends every connection and returns when nothing is left.
func (p *Proxy) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.cancel()
		for c := range p.conns {
			c.Close()
		}
	}
	p.mu.Unlock()
	p.front.Close()
	p.inner.Close()
	p.wg.Wait()
	p.tunnels.CloseIdleConnections()
}

// counted has Close wait for a handler, and for what the handler starts in p.wg.
func (p *Proxy) counted(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		closed := p.closed
		if !closed {
			p.wg.Add(1)
		}
		p.mu.Unlock()
		if closed {
			panic(http.ErrAbortHandler)
		}
		defer p.wg.Done()
		h(w, r)
	})
}

// serve answers what the command sends to its proxy.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(r) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="rpush gateway"`)
		http.Error(w, "rpush gateway: this proxy is for the command that it was started for", http.StatusProxyAuthRequired)
		return
	}
	r.Header.Del("Proxy-Authorization")
	r.Header.Del("Proxy-Connection")
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case !r.URL.IsAbs() || r.URL.Host == "":
		http.Error(w, "rpush gateway: this is a proxy", http.StatusBadRequest)
	case r.URL.Scheme != "http": // it would go on in the clear
		http.Error(w, "rpush gateway: "+r.URL.Scheme+" needs CONNECT", http.StatusBadRequest)
	case p.serves("http", r.URL.Host):
		p.handle(w, r, &url.URL{Scheme: "http", Host: withoutPort(r.URL.Host, "80")})
	default:
		p.plain.ServeHTTP(w, r)
	}
}

// allowed reports whether a request has the password of this proxy.
func (p *Proxy) allowed(r *http.Request) bool {
	kind, value, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	got, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	return err == nil && strings.EqualFold(kind, "Basic") &&
		subtle.ConstantTimeCompare(got, []byte("rpush:"+p.password)) == 1
}

// serves reports whether a host with its port is one of Options.Hosts. The scheme
// gives the default port.
func (p *Proxy) serves(scheme, hostport string) bool {
	standard := map[string]string{"http": "80", "https": "443"}[scheme]
	host, port := splitPort(hostport)
	if port == "" {
		port = standard
	}
	for _, h := range p.o.Hosts {
		want, at := splitPort(h)
		if strings.EqualFold(host, want) && (port == at || at == "" && port == standard) {
			return true
		}
	}
	return false
}

// connect serves CONNECT: the proxy's own hosts here, others by a tunnel.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	host, port := splitPort(r.Host)
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" {
		http.Error(w, "rpush gateway: CONNECT needs HOST:PORT", http.StatusBadRequest)
		return
	}
	if p.serves("https", r.Host) || p.serves("http", r.Host) {
		if c, buffered, ok := p.takeOver(w, nil); ok {
			p.wg.Go(func() { p.greet(c, buffered, r.Host) })
		}
		return
	}
	to, err := p.dial(r.Context(), r.Host)
	if err != nil {
		http.Error(w, "rpush gateway: "+err.Error(), http.StatusBadGateway)
		return
	}
	if c, buffered, ok := p.takeOver(w, to); ok {
		p.wg.Go(func() { p.tunnel(c, buffered, to) })
	}
}

// takeOver answers CONNECT and takes the command's connection from the server.
// It takes charge of to as well, and closes it if there is nothing to tunnel.
func (p *Proxy) takeOver(w http.ResponseWriter, to net.Conn) (net.Conn, *bufio.Reader, bool) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = c.SetDeadline(time.Time{})
		_, err = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	}
	if err == nil && !p.keep(c, to) {
		err = net.ErrClosed
	}
	if err != nil {
		for _, o := range []net.Conn{c, to} {
			if o != nil {
				o.Close()
			}
		}
		return nil, nil, false
	}
	return c, rw.Reader, true
}

// keep notes connections for Close; false means that it was called already.
func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if c != nil && !p.closed {
			p.conns[c] = true
		}
	}
	return !p.closed
}

func (p *Proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(p.conns, c)
	}
}

// greet finds out whether the command speaks TLS and hands the connection to the
// inner server.
func (p *Proxy) greet(c net.Conn, buffered *bufio.Reader, hostport string) {
	_ = c.SetDeadline(time.Now().Add(headerTimeout))
	first, err := buffered.Peek(1)
	if err != nil {
		p.drop(c)
		return
	}
	s := &servedConn{Conn: &bufferedConn{c, buffered}, p: p, raw: c}
	host, _ := splitPort(hostport)
	if first[0] == 0x16 { // a TLS handshake (RFC 8446, section 5.1)
		s.at = &url.URL{Scheme: "https", Host: withoutPort(hostport, "443")}
		if _, err := p.handler(s.at); errors.Is(err, ErrPlain) {
			_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n") // as net/http answers it
			p.drop(c)
			return
		}
		tc := tls.Server(s.Conn, &tls.Config{
			MinVersion: tls.VersionTLS12,
			NextProtos: []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return p.authority.certificate(host)
			},
		})
		if err := tc.Handshake(); err != nil {
			p.drop(c)
			return
		}
		s.Conn = tc
	} else {
		s.at = &url.URL{Scheme: "http", Host: withoutPort(hostport, "80")}
	}
	_ = c.SetDeadline(time.Time{})
	select {
	case p.accepted <- s:
	case <-p.done:
		p.drop(c)
	}
}

// serveInner answers a request inside a connection of CONNECT.
func (p *Proxy) serveInner(w http.ResponseWriter, r *http.Request) {
	p.handle(w, r, r.Context().Value(targetKey{}).(*url.URL))
}

func (p *Proxy) handle(w http.ResponseWriter, r *http.Request, at *url.URL) {
	h, err := p.handler(at)
	if err != nil {
		http.Error(w, "rpush gateway: "+err.Error(), http.StatusBadGateway)
		return
	}
	h.ServeHTTP(w, r)
}

// handler returns the one for a host, which it makes at the first request. Others
// for the same host wait for that.
func (p *Proxy) handler(at *url.URL) (http.Handler, error) {
	key := at.String()
	h, err, _ := p.newHandlers.Do(key, func() (any, error) {
		p.mu.Lock()
		h := p.handlers[key]
		p.mu.Unlock()
		if h != nil {
			return h, nil
		}
		h, err := p.newHandler(at)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.handlers[key] = h
		return h, nil
	})
	if err != nil {
		return nil, err
	}
	return h.(http.Handler), nil
}

// tunnel passes bytes both ways until both sides have ended.
func (p *Proxy) tunnel(c net.Conn, buffered *bufio.Reader, to net.Conn) {
	defer p.drop(c, to)
	var up sync.WaitGroup
	up.Go(func() { pass(to, buffered) })
	pass(c, to)
	up.Wait()
}

// pass copies one direction and then ends it. What cannot be half-closed, or broke
// in the middle, is closed.
func pass(dst net.Conn, src io.Reader) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		dst.Close()
	}
}

type targetKey struct{}

// servedConn is a connection of the inner server.
type servedConn struct {
	net.Conn
	p   *Proxy
	raw net.Conn
	at  *url.URL
}

func (c *servedConn) Close() error {
	err := c.Conn.Close()
	c.p.drop(c.raw)
	return err
}

// bufferedConn reads first what the outer server had read ahead.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// CloseWrite half-closes a TCP or TLS connection.
func (c *bufferedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// innerListener gives the inner server its connections.
type innerListener struct{ p *Proxy }

func (l innerListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.p.accepted:
		return c, nil
	case <-l.p.done:
		return nil, net.ErrClosed
	}
}

func (l innerListener) Close() error   { return nil }
func (l innerListener) Addr() net.Addr { return l.p.ln.Addr() }

// splitPort splits HOST[:PORT]; an IPv6 address loses its brackets.
func splitPort(hostport string) (host, port string) {
	u := url.URL{Host: hostport}
	return u.Hostname(), u.Port()
}

// withoutPort leaves out the port if it is the standard one.
func withoutPort(hostport, standard string) string {
	return strings.TrimSuffix(hostport, ":"+standard)
}
