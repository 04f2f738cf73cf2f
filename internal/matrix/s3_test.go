//go:build linux

package matrix

import (
	"fmt"
	"slices"
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
