// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"math"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// A push says that it sent what crossed the line, not what the kernel took: within
// 1 % of what the proxy counted, after many resets.
func TestSentIsWhatCrossedTheLine(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 61, 40*mib, 40*mib, 20*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.EveryTotal(2*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := rpush.Push(t, binary.Environ(t), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	s := p.Stats()
	t.Logf("%d resets, %d breaks, said %.1f MiB, forwarded %.1f MiB", s.Faults, r.Report.Breaks, float64(r.Report.Sent)/mib, float64(s.Up)/mib)
	if off := math.Abs(float64(r.Report.Sent)-float64(s.Up)) / float64(s.Up); off > 0.01 {
		t.Errorf("said %d bytes sent, the proxy forwarded %d: %.2f %% off", r.Report.Sent, s.Up, off*100)
	}
	if s.Faults < 45 {
		t.Errorf("only %d resets", s.Faults)
	}
}
