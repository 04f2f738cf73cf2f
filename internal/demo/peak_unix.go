// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package main

import (
	"os"
	"runtime"
	"syscall"
)

// peak is the most memory that an ended process had resident, in bytes.
func peak(s *os.ProcessState) int64 {
	u, ok := s.SysUsage().(*syscall.Rusage)
	switch {
	case !ok:
		return 0
	case runtime.GOOS == "darwin":
		return int64(u.Maxrss) //nolint:unconvert // int32 on some systems
	}
	return int64(u.Maxrss) << 10 //nolint:unconvert // int32 on some systems
}
