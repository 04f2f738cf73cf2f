// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"time"

	"github.com/rpush-go/rpush/internal/conntrack/host"
)

// Sample is a moment's counters.
type Sample struct {
	At       time.Time
	Counters host.Counters

	dropped *uint64 // by rules that drop INVALID; nil where unknown
}

// Moved says what a window showed.
type Moved string

// What a window may show.
const (
	// Resets: INVALID packets were answered with RSTs, two INVALID for each.
	Resets Moved = "resets"
	// Dropped: INVALID packets came and were dropped, no RST was sent.
	Dropped Moved = "dropped"
	// Mixed: both moved, in another proportion than the incident's.
	Mixed Moved = "mixed"
	// Still: no INVALID packet came.
	Still Moved = "still"
	// NotCounted: conntrack does not count here.
	NotCounted Moved = "not counted"
)

// Window is what moved between two samples.
type Window struct {
	Moved       Moved   `json:"moved"`
	Seconds     float64 `json:"seconds"`
	Invalid     uint64  `json:"invalid"`
	OutRsts     uint64  `json:"outRsts"`
	EstabResets uint64  `json:"estabResets"`
	Checksum    uint64  `json:"inCsumErrors"`
	TableFull   uint64  `json:"tableFull"`         // packets that found no room in the table
	Dropped     *uint64 `json:"dropped,omitempty"` // by the rules that drop INVALID
}

// Between compares two samples of one network namespace.
func Between(a, b Sample) Window {
	d := b.Counters.Since(a.Counters)
	w := Window{
		Seconds: b.At.Sub(a.At).Seconds(), Invalid: d.Invalid, OutRsts: d.OutRsts, EstabResets: d.EstabResets,
		Checksum: d.InCsumErrors, TableFull: d.Drop + d.EarlyDrop,
	}
	var dropped uint64
	if a.dropped != nil && b.dropped != nil && *b.dropped >= *a.dropped {
		n := *b.dropped - *a.dropped
		w.Dropped, dropped = &n, n
	}
	w.Moved = moved(d, dropped)
	return w
}

// moved knows the incident by its proportion: conntrack counts the stray packet
// as INVALID, and the RST that answers it as well. Where the connection that was
// reset is this host's own, its end sends a RST more.
func moved(d host.Counters, dropped uint64) Moved {
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	stray := less(less(d.Invalid, d.InCsumErrors), dropped) // wrong checksums draw no RST
	answers := less(d.OutRsts, d.EstabResets)
	switch {
	case !d.Tracked:
		return NotCounted
	case d.Invalid == 0:
		return Still
	case d.OutRsts == 0 || stray == 0:
		return Dropped
	case stray >= 2 && stray >= d.OutRsts && 2*stray >= 3*answers && 2*stray <= 5*d.OutRsts:
		return Resets
	default:
		return Mixed
	}
}
