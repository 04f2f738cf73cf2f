// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

// meter counts the bodies of PATCH requests that reach a registry, and may break
// them off.
type meter struct {
	mu      sync.Mutex
	got     int // bytes of the last one
	all     int // bytes of all
	patches int
	changed chan struct{}
	breakAt int // break the first one off behind so many bytes; 0 does not
}

func newMeter() *meter { return &meter{changed: make(chan struct{}, 1)} }

func (m *meter) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			m.mu.Lock()
			m.got = 0
			m.patches++
			m.mu.Unlock()
			r.Body = &metered{r.Body, m}
		}
		h.ServeHTTP(w, r)
	})
}

type metered struct {
	io.ReadCloser
	m *meter
}

func (b *metered) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.m.mu.Lock()
	b.m.got += n
	b.m.all += n
	cut := b.m.breakAt > 0 && b.m.got >= b.m.breakAt
	if cut {
		b.m.breakAt = 0
	}
	b.m.mu.Unlock()
	select {
	case b.m.changed <- struct{}{}:
	default:
	}
	if cut {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// until waits until the last PATCH has brought n bytes.
func (m *meter) until(n int) {
	for {
		m.mu.Lock()
		got := m.got
		m.mu.Unlock()
		if got >= n {
			return
		}
		<-m.changed
	}
}

// What a client has sent reaches the registry while the client goes on sending,
// and the commit sends nothing again. A session that the registry loses meanwhile
// begins again from what is kept.
func TestAcceptHandsOnAsItComes(t *testing.T) {
	for _, breakAt := range []int{0, mib} {
		m := newMeter()
		m.breakAt = breakAt
		dir := t.TempDir()
		s := newSite(t, scripted.Options{Store: scripted.Fragile}, gateway.ServerOptions{Upstream: regHost, AcceptDir: dir}, m.wrap)
		data, dgst := randomBlob(21, 6*mib+5)
		resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
		at := resp.Header.Get("Location")
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", at, len(data))
		written := 0
		for _, n := range []int{2 * mib, 3 * mib, len(data)} {
			if _, err := c.Write(data[written:n]); err != nil {
				t.Fatal(err)
			}
			written = n
			m.until(n) // before the client sends more
		}
		io.Copy(io.Discard, c)
		c.Close()
		s.requests()
		if resp, body := s.do("PUT", at+"?digest="+dgst, ""); resp.StatusCode != 201 || !bytes.Equal(s.blob("team/app", dgst), data) {
			t.Fatalf("the commit: %d %s", resp.StatusCode, body)
		}
		for _, r := range s.requests() {
			if r.Method != http.MethodPut || r.ContentLength != 0 {
				t.Errorf("at the commit: %s of %d bytes", r.Method, r.ContentLength)
			}
		}
		m.mu.Lock()
		if want := len(data) + breakAt; breakAt == 0 && m.all != want || m.all > want+mib {
			t.Errorf("the registry got %d bytes, want %d", m.all, want)
		}
		m.mu.Unlock()
		if left, _ := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*")); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}
