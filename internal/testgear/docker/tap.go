// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// Tap is a socket that passes everything on to the engine's and counts.
type Tap struct {
	Host    string // for DOCKER_HOST
	Saves   atomic.Int64
	Pulls   atomic.Int64
	srv     *http.Server
	Version string // answered instead of the engine's own, if set

	// Break, if set, is called once a save has brought After bytes. Its error
	// breaks the connection.
	Break func() error
	After int64
}

// NewTap listens in dir for the engine at a socket.
func NewTap(dir, socket string) (*Tap, error) {
	path := filepath.Join(dir, "docker.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	t := &Tap{Host: "unix://" + path}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "docker"})
			r.Out.Host = "docker"
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}},
		ModifyResponse: func(r *http.Response) error {
			if t.Version != "" && strings.HasSuffix(r.Request.URL.Path, "/_ping") {
				r.Header.Set("Api-Version", t.Version)
			}
			if t.Break != nil && saves(r.Request) {
				r.Body = &breaking{r.Body, t.After, t.Break}
			}
			return nil
		},
		FlushInterval: -1,
	}
	t.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case saves(r):
			t.Saves.Add(1)
		case strings.HasSuffix(r.URL.Path, "/images/create"):
			t.Pulls.Add(1)
		}
		proxy.ServeHTTP(w, r)
	})}
	go t.srv.Serve(ln)
	return t, nil
}

func saves(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/images/get") }

// breaking is a body that has something done to it on the way.
type breaking struct {
	io.ReadCloser
	left int64
	stop func() error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left == 0 && err == nil {
		b.left = -1
		err = b.stop()
	}
	return n, err
}

// Close ends it.
func (t *Tap) Close() { t.srv.Close() }
