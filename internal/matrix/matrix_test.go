// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"slices"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
)

// An image arrives, and a second push of it sends nothing.
func TestClean(t *testing.T) {
	for _, s := range setups() {
		t.Run(s.name, func(t *testing.T) {
			at := s.start(t)
			sizes := []int64{5 * mib, 0, 1, 300_000}
			if at.noEmpty {
				sizes = []int64{5 * mib, 1, 300_000}
			}
			img := binary.Layout(t, 1, sizes...)
			p := binary.Through(t, at.addr, proxy.Options{})
			env, flags := at.call(t, p.Addr())
			args := slices.Concat(flags, []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"})
			r := rpush.Push(t, env, args...)
			if r.Report.Breaks != 0 || r.Report.Restarts != 0 {
				t.Errorf("%d breaks and %d restarts where nothing broke\n%s", r.Report.Breaks, r.Report.Restarts, r.Stderr)
			}
			if up := p.Stats().Up; up > img.Total+mib {
				t.Errorf("forwarded %d bytes of an image of %d", up, img.Total)
			}
			if r := rpush.Push(t, env, args...); r.Report.Sent != 0 {
				t.Errorf("sent %d bytes of an image that is there", r.Report.Sent)
			}
			ref := at.addr + "/team/app:1"
			t.Run("crane", func(t *testing.T) { binary.Same(t, img, ref, at.env(t, at.addr)...) })
			t.Run("skopeo", func(t *testing.T) { binary.SameBySkopeo(t, img, ref, at.env(t, at.addr)...) })
		})
	}
}

// Every connection is reset after 32 MiB.
func TestResets(t *testing.T) {
	for _, s := range setups() {
		if s.slow && !isLong() && s.most >= 2 {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			at := s.start(t)
			img := binary.Layout(t, 2, 96*mib)
			p := binary.Through(t, at.addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetClient})})
			env, flags := at.call(t, p.Addr())
			r := rpush.Push(t, env, slices.Concat(flags, []string{"-v", "oci:" + img.Dir, p.Addr() + "/team/app:1"})...)
			st := p.Stats()
			ratio := float64(st.Up) / float64(img.Total)
			t.Logf("forwarded %.3f x the image: %d faults on %d connections, %d resumes, %d restarts",
				ratio, st.Faults, st.Conns, r.Report.Resumes, r.Report.Restarts)
			if st.Faults == 0 {
				t.Error("nothing broke")
			}
			if ratio > s.most {
				t.Errorf("forwarded %.3f x the image, want at most %.2f\n%s", ratio, s.most, excerpt(r.Stderr))
			}
			binary.Same(t, img, at.addr+"/team/app:1", at.env(t, at.addr)...)
		})
	}
}

// Tokens expire while a layer is on its way: in the middle of a request, whose
// commit then meets the expiry, and between the requests that breaks make.
func TestTokensExpire(t *testing.T) {
	for name, plan := range map[string]proxy.Plan{
		"in one request": nil,
		"between breaks": proxy.Every(6*mib, proxy.Fault{Kind: proxy.ResetClient}),
	} {
		t.Run(name, func(t *testing.T) {
			at, server := tokenSite(t)
			img := binary.Layout(t, 3, 40*mib, 1000)
			p := binary.Through(t, at.addr, proxy.Options{Plan: plan, Rate: 8 * mib, Buffer: 256 << 10})
			env, _ := at.call(t, p.Addr())
			r := rpush.Push(t, env, "-v", "oci:"+img.Dir, p.Addr()+"/team/app:1")
			ratio := float64(p.Stats().Up) / float64(img.Total)
			t.Logf("%d tokens, forwarded %.3f x the image, %d breaks", server.Issued(), ratio, r.Report.Breaks)
			if server.Issued() < 2 || server.Refused() != 0 {
				t.Errorf("%d tokens issued, %d refused", server.Issued(), server.Refused())
			}
			if ratio > 1.05 {
				t.Errorf("forwarded %.3f x the image\n%s", ratio, excerpt(r.Stderr))
			}
			binary.Same(t, img, at.addr+"/team/app:1", at.env(t, at.addr)...)
		})
	}
}
