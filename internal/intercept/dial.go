// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/proxy"
)

var errNoTunnel = errors.New("the proxy refused the connection")

// dialTimeout is how long a connection to another host, or its proxy, may take.
const dialTimeout = 30 * time.Second

// dial connects to a host that is not served here, through the proxy that the
// environment names for it.
func (p *Proxy) dial(ctx context.Context, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	via, err := p.o.Forward(&url.URL{Scheme: "https", Host: hostport})
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	if via == nil {
		return d.DialContext(ctx, "tcp", hostport)
	}
	switch via.Scheme {
	case "socks5", "socks5h":
		s, err := proxy.FromURL(via, &d)
		if err != nil {
			return nil, err
		}
		return s.(proxy.ContextDialer).DialContext(ctx, "tcp", hostport)
	case "http", "https":
	default:
		return nil, fmt.Errorf("a proxy with the scheme %q is not supported", via.Scheme)
	}
	at := via.Host
	if via.Port() == "" {
		at = net.JoinHostPort(via.Hostname(), map[string]string{"http": "80", "https": "443"}[via.Scheme])
	}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if via.Scheme == "https" {
		c = tls.Client(c, &tls.Config{ServerName: via.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	}
	out, err := connectThrough(ctx, c, via, hostport)
	if err != nil {
		c.Close()
		return nil, err
	}
	return out, nil
}

// connectThrough asks a proxy for a connection (RFC 9110, section 9.3.6).
func connectThrough(ctx context.Context, c net.Conn, via *url.URL, hostport string) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ask := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: hostport}, Host: hostport, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		ask.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := ask.Write(c); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, ask)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("%w: %s", errNoTunnel, res.Status)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	_ = c.SetDeadline(time.Time{})
	if r.Buffered() == 0 {
		return c, nil
	}
	return &bufferedConn{c, r}, nil
}
