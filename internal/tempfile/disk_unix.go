// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || freebsd

package tempfile

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Free is how many bytes the disk of an open file or directory has left for this
// user. ok is false if the system does not tell.
func Free(f *os.File) (bytes int64, ok bool) {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil { //nolint:gosec // a descriptor
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:gosec,unconvert // their types differ between systems
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
