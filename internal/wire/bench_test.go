// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a body costs on its way to a server that throws it away; testdata/bench.txt
// has figures. See CONTRIBUTING.md.
func BenchmarkSend(b *testing.B) {
	const size = 16 << 20
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	path := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for name, wrap := range map[string]func(*os.File) io.ReadCloser{
		"file":         func(f *os.File) io.ReadCloser { return f },
		"file checked": func(f *os.File) io.ReadCloser { return f },
		"reader":       func(f *os.File) io.ReadCloser { return struct{ io.ReadCloser }{f} },
	} {
		b.Run(name, func(b *testing.B) {
			rt := New(Options{Stall: time.Minute})
			defer rt.CloseIdleConnections()
			b.SetBytes(size)
			b.ReportAllocs()
			ctx := b.Context()
			if name == "file checked" {
				ctx = CheckedBy(ctx, func() error { return nil })
			}
			for b.Loop() {
				f, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				req, err := http.NewRequest(http.MethodPatch, srv.URL, nil)
				if err != nil {
					b.Fatal(err)
				}
				req.Body, req.ContentLength = NewBody(wrap(f), size), size
				if _, err := Send(ctx, rt, req, Limits{Stall: time.Minute, Answer: time.Minute}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
