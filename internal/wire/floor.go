// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"time"
)

const (
	// floorRate is the least rate, in bytes per second, at which something must
	// arrive: below what is of any use, above what a sender needs to hold a reader
	// for years.
	floorRate = 16 << 10
	// floorStart is what reading something of any size may take.
	floorStart = time.Minute
)

// Floor bounds the time that reading may take in all: a minute, a second for each
// 16 KiB, and what is added for breaks. Progress does not give more: each byte, and
// each connection, would otherwise be good for another stall timeout. Not for
// concurrent use.
type Floor struct{ left time.Duration }

// NewFloor returns the time for so many bytes, and the time for breaks.
func NewFloor(bytes int64, breaks time.Duration) *Floor {
	f := &Floor{left: floorStart}
	f.add(max(breaks, 0))
	f.Grow(bytes)
	return f
}

// Grow adds the time for more bytes.
func (f *Floor) Grow(bytes int64) {
	bytes = min(max(bytes, 0), 1<<46)
	f.add(time.Duration(bytes/floorRate)*time.Second + time.Duration(bytes%floorRate)*time.Second/floorRate)
}

func (f *Floor) add(d time.Duration) { f.left += min(d, math.MaxInt64-max(f.left, 0)) }

// Reading calls end if the time is over before done is called. Only the time
// between the two counts.
func (f *Floor) Reading(end func()) (done func()) {
	began := time.Now()
	t := time.AfterFunc(f.left, end)
	return func() {
		t.Stop()
		f.left -= time.Since(began)
	}
}
