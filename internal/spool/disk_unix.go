// SPDX-License-Identifier: Apache-2.0

//go:build unix

package spool

import (
	"os"

	"golang.org/x/sys/unix"
)

// lock locks f for its users, or for one alone, without waiting. A file system
// without locks locks nothing.
func lock(f *os.File, alone bool) bool {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) == nil //nolint:gosec // a descriptor
}

// removeOpen deletes f, which is at path, while its lock is held.
func removeOpen(_ *os.File, path string) { _ = os.Remove(path) } // what stays is swept

// renameOpen gives f another name, and returns it open.
func renameOpen(f *os.File, to string) (*os.File, error) { return f, os.Rename(f.Name(), to) }
