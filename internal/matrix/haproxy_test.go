// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/haproxy"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// HAProxy ends requests whose client, or whose registry, is silent for longer than
// its timeouts. Bodies that stall on the way to it or behind it arrive.
func TestHAProxyTimeouts(t *testing.T) {
	const timeout = 2 * time.Second
	stall := func() proxy.Plan {
		return proxy.First(2, proxy.Every(9*mib, proxy.Fault{Kind: proxy.Stall, For: 3 * timeout}))
	}
	for _, silent := range []string{"client", "server"} {
		t.Run(silent, func(t *testing.T) {
			t.Parallel()
			for _, tool := range []string{three, two} {
				front, back := stall(), proxy.Plan(nil)
				if silent == "server" {
					front, back = back, front
				}
				r := realreg.Start(t, realreg.Options{Tool: tool})
				behind := binary.Through(t, r.Addr, proxy.Options{Plan: back, Buffer: 256 << 10})
				h := haproxy.Start(t, behind.Addr(), haproxy.Options{Timeout: timeout})
				before := binary.Through(t, h.Addr, proxy.Options{Plan: front, Buffer: 256 << 10})
				img := binary.Layout(t, 500, 40*mib)
				res := rpush.Push(t, binary.Environ(t), slices.Concat([]string{"-v", "oci:" + img.Dir, before.Addr() + "/team/app:1"})...)
				faults := before.Stats().Faults + behind.Stats().Faults
				t.Logf("%s: forwarded %.3f x the image, %d faults, %d breaks, %d resumes, %d restarts",
					tool, float64(before.Stats().Up)/float64(img.Total), faults, res.Report.Breaks, res.Report.Resumes, res.Report.Restarts)
				if faults == 0 || res.Report.Breaks == 0 {
					t.Errorf("%d faults and %d breaks\n%s", faults, res.Report.Breaks, excerpt(res.Stderr))
				}
				binary.Same(t, img, r.Addr+"/team/app:1")
				t.Logf("what HAProxy ended: %s", ended(h.Log()))
			}
		})
	}
}

// ended are the lines of requests that did not end as they should.
func ended(log string) string {
	var lines []string
	for l := range strings.Lines(log) {
		if !strings.Contains(l, " ---- ") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}
