// SPDX-License-Identifier: Apache-2.0

//go:build linux

package binary

import (
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"testing"
)

// Forward is an HTTP proxy, as HTTP_PROXY and HTTPS_PROXY name one.
type Forward struct {
	// Addr is its host:port.
	Addr string
	// Bytes of requests that went through it.
	Bytes atomic.Int64
}

// StartForward runs one at an address until the end of the test. It knows the
// names of hosts that nobody else does, as HOST:PORT.
func StartForward(t testing.TB, addr string, names map[string]string) *Forward {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f := &Forward{Addr: ln.Addr().String()}
	where := func(host string) string {
		if to, ok := names[host]; ok {
			return to
		}
		return host
	}
	plain := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Host = where(r.In.URL.Host) },
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			f.Bytes.Add(1)
			r.Body = &counted{r.Body, &f.Bytes}
			plain.ServeHTTP(w, r)
			return
		}
		to, err := net.Dial("tcp", where(r.Host))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer to.Close()
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer from.Close()
		if _, err := io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		go func() { io.Copy(from, to); from.Close() }()
		io.Copy(to, &counted{from, &f.Bytes})
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return f
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
