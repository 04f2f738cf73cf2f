// SPDX-License-Identifier: Apache-2.0

//go:build unix

package setup

import (
	"io/fs"
	"os"
	"syscall"
)

// ownedHere reports whether a file that this process writes anew has the same
// owner.
func ownedHere(st fs.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid() && int(s.Gid) == os.Getegid()
}
