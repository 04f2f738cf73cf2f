// SPDX-License-Identifier: Apache-2.0

// Package memory measures what code allocates, for tests of foreign input that
// must not cost much.
package memory

import "runtime"

// Allocated runs f and returns the bytes that the process allocated meanwhile,
// freed ones included.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
