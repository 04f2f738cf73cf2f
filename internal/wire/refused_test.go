// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
)

// A server that refuses a body answers and closes, and the client's writes may
// fail before it has read the answer: so they do on every other connection here.
// The answer counts, with TLS and without, for a file and for any other body.
func TestRefusedBodyIsAnswered(t *testing.T) {
	const size = 1 << 20
	path, _ := tempFile(t, size)
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	secure := &tls.Config{Certificates: server.TLS.Certificates, MinVersion: tls.VersionTLS13}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	server.Close()
	for _, scheme := range []string{"http", "https"} {
		for _, isFile := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a file %v", scheme, isFile), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					network := memnet.New()
					network.Latency, network.Connecting = 10*time.Millisecond, 100*time.Millisecond
					ln, err := network.Listen("registry.test:5000")
					if err != nil {
						t.Fatal(err)
					}
					if scheme == "https" {
						ln = tls.NewListener(ln, secure)
					}
					go refuse(ln)
					tr := New(Options{TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"}, Dial: network.Dial})
					defer func() {
						ln.Close()
						tr.CloseIdleConnections()
						time.Sleep(time.Minute) // of virtual time: all goroutines end
					}()
					for i := range 8 {
						var r io.ReadCloser = open(t, path, 0)
						if !isFile {
							r = struct{ io.ReadCloser }{r}
						}
						a, err := Send(t.Context(), tr, patch(t, scheme+"://registry.test:5000", NewBody(r, size), size), limits, nil)
						if err != nil || a.Status != http.StatusRequestEntityTooLarge {
							t.Errorf("connection %d: got %+v, %v, want 413", i, a, err)
						}
					}
				})
			})
		}
	}
}

// refuse answers each request when it has read the header, and closes.
func refuse(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				fmt.Fprint(c, "HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			}
		}()
	}
}
