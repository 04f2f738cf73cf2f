// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// Time between reads does not count, and bytes give more of it at a rate.
func TestFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		read := func(f *Floor, d time.Duration) {
			done := f.Reading(func() { ended = true })
			time.Sleep(d)
			synctest.Wait()
			done()
		}
		f := NewFloor(16<<10*30, 10*time.Second) // 60 s + 30 s + 10 s
		for range 9 {
			read(f, 10*time.Second)
			time.Sleep(time.Hour)
		}
		f.Grow(16 << 10 * 5)
		for range 5 * 1024 { // as little as there is time for
			f.Grow(16)
		}
		if read(f, 19*time.Second); ended {
			t.Fatal("it ended before its time")
		}
		if read(f, 2*time.Second); !ended {
			t.Error("it did not end")
		}
		ended = false
		if read(NewFloor(math.MaxInt64, math.MaxInt64), time.Hour); ended {
			t.Error("the longest time overflows")
		}
	})
}
