// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// TestPersonalities pushes an image of 50 MiB to each registry that people push
// to: on a good line, and through two resets inside its layer of 40 MiB. Nothing
// is known of the registry before. With -v it prints what went over the line.
func TestPersonalities(t *testing.T) {
	const mib, layer = 1 << 20, 40 << 20
	img := newImage(content(1, layer), content(2, 10*mib))
	var total int64
	for _, b := range append(img.layers, img.config) {
		total += int64(len(b))
	}
	resets := []int64{8 * mib, 24 * mib} // of all bytes sent
	// What they may cost in bytes: a part of the image, all that was sent where
	// nothing is kept of it, and the layer for each on a registry that takes one
	// PATCH for each session.
	const some, all = (layer + 10*mib) * 3 / 10, 8*mib + 16*mib
	most := map[string]int64{
		"ghcr": some, "ecr": some, "s3": some, "gar": 2 * layer,
		"harbor": all, "jfrog": all, "r2": all, "pulp": all, "edge": all,
	}
	table := fmt.Sprintf("%-8s %8s %8s %12s\n", "registry", "plain", "2 resets", "bytes")
	for _, p := range scripted.Personalities() {
		var up [2]int64
		for i, resets := range [][]int64{nil, resets} {
			t.Run(fmt.Sprintf("%s, %d resets", p.Name, len(resets)), func(t *testing.T) {
				inLab(t, p.Options, func(l *lab) {
					l.net.Latency, l.net.Connecting = 200*time.Nanosecond, time.Millisecond
					l.net.BreakUpAt(resets...)
					l.o.Dialects, l.o.Parallel = resume.MemoryDialects(), 1
					report := l.pushes("reg.test/team/app:v1", img)
					l.has("team/app", "v1", img)
					if n := l.net.Breaks(); n != len(resets) {
						t.Errorf("%d connections broke, want %d", n, len(resets))
					}
					up[i] = l.net.Up()
					allowed := total + 64<<10 + int64(len(l.reg.Requests()))<<10 // headers
					if len(resets) > 0 {
						allowed += most[p.Name]
					}
					if at := p.Options.EndsAt; 0 < at && at < layer {
						allowed += layer // until it is known that there is a limit
					}
					if up[i] > allowed {
						t.Errorf("forwarded %d bytes for an image of %d, want at most %d\n%s", up[i], total, allowed, requests(l.reg))
					}
					if report.Sent < total {
						t.Errorf("%d bytes were sent", report.Sent)
					}
				})
			})
		}
		table += fmt.Sprintf("%-8s %8.3f %8.3f %12d\n", p.Name, float64(up[0])/float64(total), float64(up[1])/float64(total), up[1])
	}
	t.Logf("forwarded, in images of %d bytes:\n%s", total, table)
}

// requests are those of uploads, for a failing test.
func requests(g *scripted.Registry) string {
	var b strings.Builder
	for _, q := range g.Requests() {
		if slices.Contains([]scripted.Kind{scripted.Post, scripted.Patch, scripted.Status, scripted.Put}, q.Kind) {
			fmt.Fprintf(&b, "%s session %d at %d of %d bytes: %d after %d\n", q.Kind, q.Session, q.Start, q.Length, q.Status, q.Body)
		}
	}
	return b.String()
}
