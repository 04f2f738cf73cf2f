// SPDX-License-Identifier: Apache-2.0

package spool

import "golang.org/x/sys/unix"

// inMemory reports whether a file system takes its space from memory.
func inMemory(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	// The type is signed and has 32 bits on some processors.
	magic := uint32(st.Type) //nolint:gosec // all bits that count
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC
}
