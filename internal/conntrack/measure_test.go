// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"testing"

	"github.com/rpush-go/rpush/internal/conntrack/host"
)

func TestMoved(t *testing.T) {
	for _, c := range []struct {
		name string
		// INVALID, RSTs sent, own connections reset, wrong checksums, dropped by a rule
		invalid, rsts, estab, csum, dropped uint64
		want                                Moved
	}{
		{"nothing", 0, 0, 0, 0, 0, Still},
		{"knocks on closed ports", 0, 9, 0, 0, 0, Still},
		{"three strays", 6, 3, 0, 0, 0, Resets},
		{"one stray", 2, 1, 0, 0, 0, Resets},
		{"strays and one knock", 20, 11, 0, 0, 0, Resets},
		{"strays to this host's own connections", 6, 4, 1, 0, 0, Resets},
		{"one stray to this host's own connection", 2, 2, 1, 0, 0, Resets},
		{"dropped", 3, 0, 0, 0, 0, Dropped},
		{"dropped by the rule, and knocks", 4, 2, 0, 0, 4, Dropped},
		{"wrong checksums", 3, 2, 0, 3, 0, Dropped},
		{"dropped, and a scan", 4, 400, 0, 0, 0, Mixed},
		{"dropped, and others reset", 4, 10, 10, 0, 0, Mixed},
		{"many dropped, one knock", 100, 1, 0, 0, 0, Mixed},
		{"one INVALID, one RST", 1, 1, 0, 0, 0, Mixed},
	} {
		d := host.Counters{Invalid: c.invalid, OutRsts: c.rsts, EstabResets: c.estab, InCsumErrors: c.csum, Tracked: true}
		if got := moved(d, c.dropped); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	if got := moved(host.Counters{OutRsts: 5}, 0); got != NotCounted {
		t.Errorf("no conntrack: got %s", got)
	}
	// A counter that began again is no change.
	if d := (host.Counters{Invalid: 1}).Since(host.Counters{Invalid: 5}); d.Invalid != 0 {
		t.Errorf("got %d", d.Invalid)
	}
}
