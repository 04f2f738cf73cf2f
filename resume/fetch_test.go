// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

// shelf serves one blob, and misbehaves as told.
type shelf struct {
	blob   []byte
	ranges bool  // it knows ranges
	breaks []int // of the first answers, after so many bytes of each
	mangle func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	asked []string // Range headers
	sent  int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Header.Get("Range"))
	n := len(s.asked)
	s.mu.Unlock()
	if s.mangle != nil && s.mangle(w, r) {
		return
	}
	body, status := s.blob, http.StatusOK
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && s.ranges {
		off, err := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err != nil || off >= len(body) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(body)-1, len(body)))
		body, status = body[off:], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if n <= len(s.breaks) && s.breaks[n-1] < len(body) {
		body = body[:s.breaks[n-1]]
		defer func() {
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond) // what was written is to arrive
			c, _, _ := http.NewResponseController(w).Hijack()
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}()
	}
	k, _ := w.Write(body)
	s.mu.Lock()
	s.sent += k
	s.mu.Unlock()
}

func (s *shelf) client(t *testing.T, o resume.Options) *resume.Client {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	repo, err := name.NewRepository(srv.Listener.Addr().String() + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	o.PlainHTTP = true
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	o.Transport, o.External = tr, tr
	c, err := resume.New(repo, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFetch(t *testing.T) {
	blob := content(1_000_000)
	for _, c := range []struct {
		name   string
		s      *shelf
		offset int64
		asked  []string
	}{
		{"whole", &shelf{}, 0, []string{""}},
		{"from an offset", &shelf{ranges: true}, 1000, []string{"bytes=1000-"}},
		{"from an offset, without ranges", &shelf{}, 1000, []string{"bytes=1000-"}},
		{"to the end already", &shelf{}, 1_000_000, nil},
		{"breaks", &shelf{ranges: true, breaks: []int{300_000, 200_000}}, 0, []string{"", "bytes=300000-", "bytes=500000-"}},
		{"breaks without ranges", &shelf{breaks: []int{300_000}}, 0, []string{"", "bytes=300000-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.blob = blob
			cl := c.s.client(t, resume.Options{})
			r := cl.Fetch(t.Context(), digest.FromBytes(blob), int64(len(blob)), c.offset)
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, blob[c.offset:]) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(blob)-int(c.offset))
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if got := c.s.asked; fmt.Sprint(got) != fmt.Sprint(c.asked) {
				t.Errorf("asked for %q, want %q", got, c.asked)
			}
		})
	}
}

func TestFetchFails(t *testing.T) {
	blob := content(100_000)
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	header := func(k, v string, code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set(k, v)
			w.WriteHeader(code)
			return true
		}
	}
	for _, c := range []struct {
		name string
		s    *shelf
		kind error
		word string
	}{
		{"not there", &shelf{mangle: status(404)}, resume.ErrSource, "not there"},
		{"denied", &shelf{mangle: status(403)}, resume.ErrDenied, "403"},
		{"out of order", &shelf{mangle: status(503)}, resume.ErrInterrupted, "503"},
		{"another size", &shelf{blob: blob[:10]}, resume.ErrSource, "10 bytes"},
		{"another part", &shelf{mangle: header("Content-Range", "bytes 5-9/100000", 206)}, resume.ErrInterrupted, "another part"},
		{"a part of another", &shelf{mangle: header("Content-Range", "bytes 0-9/10", 206)}, resume.ErrSource, "10 bytes"},
		{"round in circles", &shelf{mangle: header("Location", "/v2/x", 307)}, resume.ErrEndpoint, "again and again"},
		{"a redirect to nowhere", &shelf{mangle: status(307)}, resume.ErrEndpoint, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := c.s.client(t, resume.Options{RetryFor: -1})
			r := cl.Fetch(t.Context(), digest.FromBytes(blob), int64(len(blob)), 0)
			defer r.Close()
			_, err := io.ReadAll(r)
			var named *resume.Error
			if !errors.Is(err, c.kind) || !errors.As(err, &named) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%v, want %v and %q", err, c.kind, c.word)
			}
		})
	}
}

// Who has no more use for a reader can close it while it waits.
func TestFetchClosed(t *testing.T) {
	s := &shelf{blob: content(100)}
	hangs := make(chan struct{})
	s.mangle = func(w http.ResponseWriter, r *http.Request) bool {
		close(hangs)
		<-r.Context().Done()
		return true
	}
	r := s.client(t, resume.Options{}).Fetch(t.Context(), digest.FromBytes(s.blob), 100, 0)
	done := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 10))
		done <- err
	}()
	<-hangs
	r.Close()
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, resume.ErrInterrupted) {
		t.Errorf("Read after Close: %v", err)
	}
}

// Tries is a bound of its own.
func TestTries(t *testing.T) {
	for _, tries := range []int{1, 3} {
		s := &shelf{mangle: func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }}
		_, err := s.client(t, resume.Options{Tries: tries}).Exists(t.Context(), digest.FromString("x"), 1)
		if !errors.Is(err, resume.ErrInterrupted) || len(s.asked) != tries {
			t.Errorf("%d tries: %v after %d requests", tries, err, len(s.asked))
		}
	}
}
