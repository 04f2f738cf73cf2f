// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// Each write comes after a check, and nothing is written once a check has refused,
// also if the writer was waiting for the peer at that time.
func TestCheckedBy(t *testing.T) {
	const size = 64 << 20
	path, data := tempFile(t, size)
	refusal := errors.New("not any more")
	for name, body := range map[string]func() Body{
		"file":   func() Body { return NewBody(open(t, path, 0), size) },
		"stream": func() Body { return NewBody(io.NopCloser(bytes.NewReader(data)), size) },
	} {
		t.Run(name, func(t *testing.T) {
			var allowed, refused atomic.Int64
			var over atomic.Bool
			var got atomic.Int64
			ended := make(chan error, 1)
			srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n, err := io.CopyN(io.Discard, r.Body, 1<<20)
				got.Add(n)
				over.Store(true) // the writer goes on until the buffers are full, and waits
				n, more := io.Copy(io.Discard, r.Body)
				got.Add(n)
				ended <- errors.Join(err, more)
			}))
			defer srv.Close()
			ctx := CheckedBy(t.Context(), func() error {
				if over.Load() {
					refused.Add(1)
					return refusal
				}
				allowed.Add(1)
				return nil
			})
			_, err := Send(ctx, newTransport(t), patch(t, srv.URL, body(), size), limits, nil)
			if !errors.Is(err, refusal) {
				t.Errorf("Send: %v, want the refusal", err)
			}
			if err := <-ended; err == nil {
				t.Error("the server got all of it")
			}
			if n, most := got.Load(), allowed.Load()*checkedPiece; n > most {
				t.Errorf("%d bytes after %d checks, want at most %d", n, allowed.Load(), most)
			}
			if refused.Load() == 0 {
				t.Error("no check refused")
			}
		})
	}
}

// With a check, the bytes of a file arrive as they are, over one connection.
func TestCheckedFileBodyParts(t *testing.T) {
	const c = checkedPiece
	path, data := tempFile(t, 3*c)
	bodies := make(chan []byte, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- body
	}))
	defer srv.Close()
	tr := newTransport(t)
	ctx := CheckedBy(t.Context(), func() error { return nil })
	for _, offset := range []int64{0, 1, c - 1} {
		for _, n := range []int64{1, 4096, c - 1, c, c + 1, 2*c + 1} {
			body := &countingBody{fileBody: NewBody(open(t, path, offset), n).(*fileBody)}
			var seen atomic.Int64
			if _, err := Send(ctx, tr, patch(t, srv.URL, body, n), limits, func(n int64) { seen.Add(n) }); err != nil {
				t.Fatalf("offset %d length %d: %v", offset, n, err)
			}
			if got := <-bodies; !bytes.Equal(got, data[offset:offset+n]) {
				t.Fatalf("offset %d length %d: got %d other bytes", offset, n, len(got))
			}
			if body.Sent() != n || body.Err() != nil {
				t.Errorf("offset %d length %d: sent %d, error %v", offset, n, body.Sent(), body.Err())
			}
			if s := seen.Load(); s < n || s > n+1000 {
				t.Errorf("offset %d length %d: %d bytes were seen leaving", offset, n, s)
			}
			if reads := body.reads.Load(); reads > 4 {
				t.Errorf("offset %d length %d: Read was called %d times: no sendfile", offset, n, reads)
			}
		}
	}
	// A file that ends early is an error, as without a check.
	body := NewBody(open(t, path, 2*c), 2*c)
	_, err := Send(ctx, tr, patch(t, srv.URL, body, 2*c), limits, nil)
	var short *ShortError
	if err == nil || !errors.As(body.Err(), &short) {
		t.Errorf("a short file: %v, %v", err, body.Err())
	}
}
