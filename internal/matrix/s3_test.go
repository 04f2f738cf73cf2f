// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
)

// Every connection is reset on both sides after a random number of bytes, in the
// mean 20 MB. An image with a layer of 150 MiB arrives at distribution 3 on S3
// and costs at most 1.6 times its bytes, for each of ten seeds. Without
// RPUSH_MATRIX=long there are two.
func TestRandomResetsOnS3(t *testing.T) {
	const most = 1.6
	seeds := uint64(10)
	if !isLong() {
		seeds = 2
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			at := onS3(three, seed%2 == 0)(t)
			img := binary.Layout(t, 400, 150*mib, 300_000, 20_000, 5)
			p := binary.Through(t, at.addr, proxy.Options{Plan: proxy.Seeded(seed, 20e6, proxy.Fault{Kind: proxy.ResetBoth})})
			env, flags := at.call(t, p.Addr())
			begin := time.Now()
			r := rpush.Run(t, env, slices.Concat(flags, []string{"-v", "oci:" + img.Dir, p.Addr() + "/team/app:1"})...)
			took, st := time.Since(begin), p.Stats()
			ratio := float64(st.Up) / float64(img.Total)
			t.Logf("exit %d, forwarded %.3f x the image: %d faults on %d connections, %d resumes, %d restarts, %.1f s",
				r.Exit, ratio, st.Faults, st.Conns, r.Report.Resumes, r.Report.Restarts, took.Seconds())
			if r.Exit != 0 || ratio > most {
				t.Fatalf("exit %d, forwarded %.3f x the image, want at most %.2f\n%s", r.Exit, ratio, most, excerpt(r.Stderr))
			}
			binary.Same(t, img, at.addr+"/team/app:1", at.env(t, at.addr)...)
		})
	}
}

// The answer to a commit is lost after the registry has carried it out. One check
// for the blob settles that: nothing is waited for, and nothing is sent again.
func TestLostCommitOnS3(t *testing.T) {
	for _, tool := range []string{three, two} {
		for _, noRedirect := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, redirects=%t", tool, !noRedirect), func(t *testing.T) {
				at := onS3(tool, noRedirect)(t)
				front := &losing{lost: map[string]bool{}, after: map[string][]string{}}
				target := &url.URL{Scheme: "http", Host: at.addr}
				srv := httptest.NewServer(&httputil.ReverseProxy{
					Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
					ModifyResponse: front.lose,
					ErrorLog:       log.New(io.Discard, "", 0),
				})
				t.Cleanup(srv.Close)
				addr := srv.Listener.Addr().String()
				img := binary.Layout(t, 600, 6*mib, 2*mib)
				env, _ := at.call(t)
				r := rpush.Push(t, env, "-v", "oci:"+img.Dir, addr+"/team/app:1")
				if len(front.lost) != 3 || r.Report.Breaks != 3 || r.Report.Restarts != 0 || r.Report.Sent > img.Total {
					t.Errorf("%d answers lost, %+v of %d bytes", len(front.lost), r.Report, img.Total)
				}
				for digest, after := range front.after {
					if len(after) > 2 {
						t.Errorf("%s: after the lost answer it asked %q", digest, after)
					}
				}
				if n := strings.Count(r.Stderr, "next try in"); n > 0 {
					t.Errorf("it waited %d times\n%s", n, excerpt(r.Stderr))
				}
				binary.Same(t, img, at.addr+"/team/app:1", at.env(t, at.addr)...)
			})
		}
	}
}

// losing loses the first answer to the commit of each blob, and notes what is
// asked about the blob at the registry afterwards.
type losing struct {
	mu    sync.Mutex
	lost  map[string]bool
	after map[string][]string
}

func (l *losing) lose(res *http.Response) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := res.Request
	digest := r.URL.Query().Get("digest")
	if r.Method == http.MethodPut && digest != "" && res.StatusCode == http.StatusCreated && !l.lost[digest] {
		l.lost[digest] = true
		panic(http.ErrAbortHandler)
	}
	if _, asked, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && l.lost[asked] {
		l.after[asked] = append(l.after[asked], fmt.Sprint(r.Method, " ", res.StatusCode))
	}
	return nil
}

// rpush is killed half-way, and the same command again sends the rest.
func TestKilledOnS3(t *testing.T) {
	at := onS3(three, false)(t)
	img := binary.Layout(t, 700, 60*mib)
	p := binary.Through(t, at.addr, proxy.Options{Rate: 20 * mib, Buffer: 256 << 10})
	env, _ := at.call(t, p.Addr())
	args := []string{"-v", "oci:" + img.Dir, p.Addr() + "/team/app:1"}
	first := rpush.Start(t, env, args...)
	for p.Stats().Up < 30*mib {
		time.Sleep(10 * time.Millisecond)
	}
	first.Signal(os.Kill)
	first.End()
	r := rpush.Push(t, env, args...)
	ratio := float64(p.Stats().Up) / float64(img.Total)
	t.Logf("forwarded %.3f x the image, %d bytes continued", ratio, r.Report.Continued)
	if ratio > 1.3 || r.Report.Continued == 0 {
		t.Errorf("forwarded %.3f x the image, %d bytes continued\n%s", ratio, r.Report.Continued, excerpt(r.Stderr))
	}
	binary.Same(t, img, at.addr+"/team/app:1", at.env(t, at.addr)...)
}

// docker-registry 2.8 on S3 fails each commit of an empty blob, whoever pushes it. The
// push ends after a few tries, not after --retry-for, and the message names the cause.
func TestEmptyBlobOnS3(t *testing.T) {
	at := onS3(two, false)(t)
	img := binary.Layout(t, 800, 0, 1000)
	env, _ := at.call(t)
	r := rpush.Run(t, env, "-v", "oci:"+img.Dir, at.addr+"/team/app:1")
	if r.Exit != 1 || !strings.Contains(r.Stderr, "it fails every commit of an empty blob") || r.Report.Breaks > 3 {
		t.Errorf("exit %d after %d breaks\n%s", r.Exit, r.Report.Breaks, excerpt(r.Stderr))
	}
}
