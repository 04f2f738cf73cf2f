// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/nginx"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// What breaks cost: bytes forwarded to the registry per byte of the image.
func TestFigures(t *testing.T) {
	reset := proxy.Fault{Kind: proxy.ResetClient}
	for _, f := range []struct {
		name  string
		start func(t *testing.T) *site
		plan  proxy.Plan
		rate  int64
		layer int64
		most  []float64 // of one image after the other, by a client that remembers
		// The site refuses bodies. What a refused body costs is what the sockets
		// on its way hold before the answer is read, which is the machine's
		// affair: only the connection that carries the rest counts.
		refuses bool
	}{
		{
			name:  "distribution 3, every 32 MiB",
			start: direct(three, realreg.Options{}),
			plan:  proxy.Every(32*mib, reset), layer: 256 * mib, most: []float64{1.01},
		},
		{
			name:  "distribution 3, exponential with mean 20 MiB",
			start: direct(three, realreg.Options{}),
			plan:  proxy.Seeded(7, 20*mib, reset), layer: 256 * mib, most: []float64{1.05},
		},
		{
			name:  "distribution 2 as reported, every 100 MiB",
			start: behind(two, reported),
			plan:  proxy.Every(100*mib, reset), layer: 400 * mib, most: []float64{1.5, 1.25},
		},
		{
			name:  "distribution 2, every 64 MiB",
			start: direct(two, realreg.Options{}),
			plan:  proxy.Every(64*mib, reset), layer: 300 * mib, most: []float64{1.4},
		},
		{
			name:  "distribution 2, every 2 s at 30 MB/s",
			start: direct(two, realreg.Options{}),
			plan:  func(int) proxy.Fault { return proxy.Fault{Kind: proxy.ResetClient, Age: 2 * time.Second} },
			rate:  30e6, layer: 300 * mib, most: []float64{1.6},
		},
		{
			name:  "20 MiB limit, no faults",
			start: behind(three, nginx.Options{MaxBody: 20 * mib}),
			layer: 300 * mib, most: []float64{1.01}, refuses: true,
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			at := f.start(t)
			o := proxy.Options{Plan: f.plan, Rate: f.rate}
			if f.rate > 0 {
				o.Buffer = 256 << 10 // what is sent is what the link took
			}
			p := binary.Through(t, at.addr, o)
			env, flags := at.call(t, p.Addr())
			env = append(env, "XDG_CACHE_HOME="+t.TempDir())
			var before proxy.Stats
			for i, most := range f.most {
				img := binary.Layout(t, uint64(100+i), f.layer)
				ref := fmt.Sprintf("/team/app:%d", i)
				begin := time.Now()
				r := rpush.Push(t, env, slices.Concat(flags, []string{"-v", "oci:" + img.Dir, p.Addr() + ref})...)
				took := time.Since(begin)
				s := p.Stats()
				up, faults := s.Up-before.Up, s.Faults-before.Faults
				if f.refuses {
					// 300, 150, 70 and 30 MiB are refused, each with its connection.
					if conns := s.Conns - before.Conns; conns > 8 {
						t.Errorf("image %d: %d connections, want at most 8", i+1, conns)
					}
					t.Logf("image %d: forwarded %.4f x its bytes with those of refused bodies", i+1, float64(up)/float64(img.Total))
					up = 0
					for _, c := range s.Each[before.Conns:] {
						up = max(up, c.Up)
					}
				}
				ratio := float64(up) / float64(img.Total)
				t.Logf("image %d: forwarded %.4f x its bytes, want at most %.2f; %d faults, %d connections, %d resumes, %d restarts, %.1f s",
					i+1, ratio, most, faults, s.Conns-before.Conns, r.Report.Resumes, r.Report.Restarts, took.Seconds())
				if ratio > most {
					t.Errorf("image %d: forwarded %.4f x its bytes, want at most %.2f\n%s", i+1, ratio, most, excerpt(r.Stderr))
				}
				// A client that knows may dodge them from then on.
				if f.plan != nil && i == 0 && faults == 0 {
					t.Error("nothing broke")
				}
				binary.Same(t, img, at.addr+ref, at.env(t, at.addr)...)
				before = s
			}
		})
	}
}
