// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// lastWriter watches the bytes that arrive for each upload session. A session has two
// writers if bytes of one request arrive after another request has begun to write.
// A request of a stopped process stays open for as long as the process is stopped, and
// is no writer meanwhile.
type lastWriter struct {
	mu    sync.Mutex
	last  map[string]*http.Request // by session
	wrong []string
}

func (w *lastWriter) handler(target string) http.Handler {
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host
	}}
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/uploads/") && (r.Method == http.MethodPatch || r.Method == http.MethodPut) {
			w.mu.Lock()
			w.last[r.URL.Path] = r
			w.mu.Unlock()
			if r.ContentLength > 0 {
				in := *r
				r = &in
				r.Body = &watchedBody{r.Body, w, w.last[r.URL.Path]}
			}
		}
		p.ServeHTTP(rw, r)
	})
}

type watchedBody struct {
	io.ReadCloser
	w *lastWriter
	r *http.Request
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if last := b.w.last[b.r.URL.Path]; n > 0 && last != b.r {
		b.w.wrong = append(b.w.wrong, fmt.Sprintf("%d bytes of %s for %s after %s began", n, b.r.RemoteAddr, b.r.URL.Path, last.RemoteAddr))
	}
	return n, err
}

// holder is the process that has a lease, of those named; 0 if none has.
func holder(t *testing.T, c *redis.Client, pids ...int) int {
	t.Helper()
	keys, err := c.Keys(t.Context(), "rpush:upload:*:lease").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		var lease struct{ Holder string }
		v, err := c.Get(t.Context(), k).Bytes()
		if err == nil {
			err = json.Unmarshal(v, &lease)
		}
		if err != nil {
			continue // it has just ended
		}
		for _, pid := range pids {
			if strings.HasSuffix(lease.Holder, fmt.Sprint(" process ", pid)) {
				return pid
			}
		}
	}
	return 0
}

// Pairs of machines race for the same blob. One of each is killed, or stopped until the
// other has its lease, and then goes on. No session ever has two writers, and every
// image arrives. With RPUSH_MATRIX=long these are fifty pairs, otherwise six.
func TestRacesOnOtherMachines(t *testing.T) {
	pairs := 6
	if os.Getenv("RPUSH_MATRIX") == "long" {
		pairs = 50
	}
	reg := realreg.Start(t, realreg.Options{})
	red := realreg.RunRedis(t, realreg.RedisOptions{})
	c := redisClient(t, red.Addr)
	w := &lastWriter{last: map[string]*http.Request{}}
	srv := newServer(t, w.handler(reg.Addr))
	const layer = 16 * mib
	var up, total, continued, stopped, killed atomic.Int64
	slots := make(chan struct{}, 6)
	t.Run("pairs", func(t *testing.T) {
		for n := range pairs {
			random := rand.New(rand.NewPCG(uint64(n), 80))
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				img := binary.Layout(t, uint64(1000+n), layer)
				p := binary.Through(t, srv, proxy.Options{Rate: 16 * mib, Buffer: 64 << 10})
				p.Hold(mib + random.Int64N(layer-2*mib))
				args := []string{"oci:" + img.Dir, fmt.Sprintf("%s/pair/%d:1", p.Addr(), n)}
				both := map[int]*binary.Running{}
				var pids []int
				for range 2 {
					r := rpush.Start(t, binary.Environ(t, "RPUSH_STATE=redis://"+red.Addr+"?lease=2s", stateKey), args...)
					both[r.Pid()] = r
					pids = append(pids, r.Pid())
				}
				waitFor(t, "a writer", func() bool { return p.Stats().Up >= mib/2 && holder(t, c, pids...) != 0 })
				victim := holder(t, c, pids...)
				other := pids[0] + pids[1] - victim
				if random.IntN(4) == 0 {
					victim, other = other, victim // it waits for the writer
				}
				if random.IntN(3) == 0 {
					both[victim].Signal(syscall.SIGKILL)
					killed.Add(1)
				} else {
					both[victim].Signal(syscall.SIGSTOP)
					stopped.Add(1)
				}
				p.Release()
				ended := make(chan binary.Result, 1)
				go func() { ended <- both[other].End() }()
				var res *binary.Result
				waitFor(t, "the lease of the other", func() bool {
					select {
					case r := <-ended:
						res = &r
						return true
					default:
						return holder(t, c, pids...) == other
					}
				})
				time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
				both[victim].Signal(syscall.SIGCONT)
				if res == nil {
					r := <-ended
					res = &r
				}
				if res.Exit != 0 {
					t.Errorf("the other: exit %d\n%s", res.Exit, res.Stderr)
				}
				if res.Report.Continued > 0 {
					continued.Add(1)
				}
				if r := both[victim].End(); r.Exit != 0 && r.Exit != -1 {
					t.Errorf("the one that was stopped: exit %d\n%s", r.Exit, r.Stderr)
				}
				up.Add(p.Stats().Up)
				total.Add(img.Total)
				binary.Same(t, img, reg.Addr+strings.TrimPrefix(args[1], p.Addr()))
			})
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	ratio := float64(up.Load()) / float64(total.Load())
	t.Logf("%d pairs: %d killed, %d stopped; %d went on with the other's upload; sent %.4f x the images", pairs, killed.Load(), stopped.Load(), continued.Load(), ratio)
	if len(w.wrong) > 0 {
		t.Errorf("two writers:\n%s", strings.Join(w.wrong, "\n"))
	}
	if ratio > 1.1 {
		t.Errorf("sent %.4f x the images, want at most 1.1", ratio)
	}
	if stopped.Load() == 0 || killed.Load() == 0 || continued.Load() == 0 {
		t.Errorf("%d stopped, %d killed, %d continued", stopped.Load(), killed.Load(), continued.Load())
	}
}
