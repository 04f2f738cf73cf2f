// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// A registry that sends a blob a byte at a time does not hold a reader for
// ever, whether or not the connection breaks in between. Time in which nobody
// reads does not count, and a slow link is good enough.
func TestFetchEndsIfBytesTrickle(t *testing.T) {
	const size = 1 << 20
	blob := content(size)
	for what, tt := range map[string]struct {
		piece  int           // bytes sent at once
		every  time.Duration // and how often
		breaks bool          // after each piece
		away   time.Duration // the reader is busy after each Read
		whole  bool
	}{
		"a byte a minute":                 {piece: 1, every: 50 * time.Second},
		"a byte for each connection":      {piece: 1, every: 50 * time.Second, breaks: true},
		"32 KiB a second":                 {piece: 32 << 10, every: time.Second, whole: true},
		"32 KiB, and a reader that waits": {piece: 32 << 10, every: time.Second, away: time.Hour, whole: true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := memnet.New()
				stop := net.Serve(t, "reg.test:80", func(w http.ResponseWriter, r *http.Request) {
					rest := blob
					if from := r.Header.Get("Range"); from != "" {
						n, err := strconv.Atoi(from[len("bytes=") : len(from)-1])
						if err != nil {
							t.Error(err)
						}
						rest = blob[n:]
						w.Header().Set("Content-Range", "bytes "+strconv.Itoa(n)+"-"+strconv.Itoa(size-1)+"/"+strconv.Itoa(size))
						w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
						w.WriteHeader(http.StatusPartialContent)
					} else {
						w.Header().Set("Content-Length", strconv.Itoa(size))
					}
					for len(rest) > 0 && r.Context().Err() == nil {
						time.Sleep(tt.every)
						n, err := w.Write(rest[:min(tt.piece, len(rest))])
						if rest = rest[n:]; err != nil {
							return
						}
						if err := http.NewResponseController(w).Flush(); err != nil || tt.breaks {
							panic(http.ErrAbortHandler)
						}
					}
				})
				tr := wire.New(wire.Options{Dial: net.Dial})
				defer func() {
					tr.CloseIdleConnections()
					stop()
				}()
				repo, err := name.NewRepository(repository)
				if err != nil {
					t.Fatal(err)
				}
				c, err := resume.New(repo, resume.Options{PlainHTTP: true, Transport: tr, External: tr})
				if err != nil {
					t.Fatal(err)
				}
				r := c.Fetch(t.Context(), digest.FromBytes(blob), size, 0)
				defer r.Close()
				var got []byte
				var waited time.Duration
				for buf := make([]byte, 64<<10); err == nil && waited < 24*time.Hour; time.Sleep(tt.away) {
					began := time.Now()
					var n int
					n, err = r.Read(buf)
					got = append(got, buf[:n]...)
					waited += time.Since(began)
				}
				var e *resume.Error
				switch whole := errors.Is(err, io.EOF) && bytes.Equal(got, blob); {
				case tt.whole && !whole:
					t.Errorf("%d of %d bytes after %s, %v", len(got), size, waited, err)
				case !tt.whole && (!errors.Is(err, resume.ErrInterrupted) || !errors.As(err, &e) || waited > resume.DefaultRetryFor+5*time.Minute):
					t.Errorf("got %v after %s, want an end of the kind ErrInterrupted", err, waited)
				}
				if _, again := r.Read(make([]byte, 1)); !tt.whole && again == nil {
					t.Error("reading goes on after it has failed")
				}
			})
		})
	}
}
