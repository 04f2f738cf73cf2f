// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/binary"
)

// counting is a registry that keeps nothing but the hash of each upload.
type counting struct {
	mu      sync.Mutex
	uploads map[string]hash.Hash
	blobs   map[string]bool
	last    int
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	h := c.uploads[r.URL.Path]
	c.mu.Unlock()
	switch {
	case r.Method == http.MethodPost:
		c.mu.Lock()
		c.last++
		at := fmt.Sprintf("%s%d", r.URL.Path, c.last)
		c.uploads[at] = sha256.New()
		c.mu.Unlock()
		w.Header().Set("Location", at)
		w.WriteHeader(http.StatusAccepted)
	case h == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPatch:
		if _, err := io.Copy(h, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		if _, err := io.Copy(h, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		dgst := "sha256:" + hex.EncodeToString(h.Sum(nil))
		delete(c.uploads, r.URL.Path)
		if dgst != r.URL.Query().Get("digest") {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.blobs[dgst] = true
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// halves is a body that stops in the middle until all others are there too.
type halves struct {
	io.Reader
	left int64
	all  *sync.WaitGroup
	once sync.Once
}

func (h *halves) Read(p []byte) (int, error) {
	if h.left <= 0 {
		h.once.Do(func() { h.all.Done(); h.all.Wait() })
	}
	n, err := h.Reader.Read(p)
	h.left -= int64(n)
	return n, err
}

var peak = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// uploadAtOnce has n blobs of a size under way at the same time, and returns the
// most memory that the gateway has taken, in bytes.
func uploadAtOnce(t *testing.T, n int, size int64, args ...string) int64 {
	t.Helper()
	reg := &counting{uploads: map[string]hash.Hash{}, blobs: map[string]bool{}}
	upstream := httptest.NewServer(reg)
	t.Cleanup(upstream.Close)
	_, state := stateOf(t)
	s := serve(t, binary.Environ(t, state), append([]string{"--listen", "127.0.0.1:0", "--upstream", strings.TrimPrefix(upstream.URL, "http://")}, args...)...)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	defer client.CloseIdleConnections()
	var all, done sync.WaitGroup
	all.Add(n)
	want := make([]string, n)
	for i := range n {
		done.Go(func() {
			size := size + int64(i)
			do := func(method, at string, body io.Reader, want int) string {
				req, err := http.NewRequestWithContext(t.Context(), method, at, body)
				if err != nil {
					t.Error(err)
					return ""
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Errorf("upload %d: %v", i, err)
					return ""
				}
				defer resp.Body.Close()
				said, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != want {
					t.Errorf("upload %d: %s: %d %s", i, method, resp.StatusCode, said)
				}
				return "http://" + s.addr + resp.Header.Get("Location")
			}
			at := do("POST", "http://"+s.addr+"/v2/team/app/blobs/uploads/", nil, 202)
			sum := sha256.New()
			data := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}), size), sum)
			body := &halves{Reader: data, left: size / 2, all: &all}
			at = do("PATCH", at, body, 202)
			body.once.Do(all.Done) // or the others wait for ever
			want[i] = "sha256:" + hex.EncodeToString(sum.Sum(nil))
			do("PUT", at+"?digest="+want[i], bytes.NewReader(nil), 201)
		})
	}
	done.Wait()
	for i, dgst := range want {
		if !reg.blobs[dgst] {
			t.Errorf("blob %d is not at the registry", i)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	m := peak.FindSubmatch(status)
	if err != nil || m == nil {
		t.Fatalf("the memory of the gateway: %v\n%s", err, status)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d uploads of %d bytes at once %v: at most %d MiB of memory", n, size, args, kib>>10)
	return kib << 10
}

// A thousand uploads at once neither lose nor mix a byte, and take little memory
// each.
func TestGatewayThousandUploads(t *testing.T) {
	for _, args := range [][]string{nil, {"--accept"}} {
		if got := uploadAtOnce(t, 1000, 96<<10, args...); got > 256*mib {
			t.Errorf("%v: %d MiB of memory", args, got/mib)
		}
	}
}

// The size of layers does not matter.
func TestGatewayMemory(t *testing.T) {
	size := int64(64 * mib)
	if os.Getenv("RPUSH_MATRIX") == "long" {
		size = 1024 * mib
	}
	for _, args := range [][]string{nil, {"--accept"}} {
		if got := uploadAtOnce(t, 10, size, append(args, "--spool-limit", "20G")...); got > 64*mib {
			t.Errorf("%v: %d MiB of memory, want at most 64", args, got/mib)
		}
	}
}
