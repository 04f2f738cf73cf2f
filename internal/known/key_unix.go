// SPDX-License-Identifier: Apache-2.0

//go:build unix

package known

import (
	"errors"
	"os"
	"syscall"
)

// secret fails for a file that anyone but this user may have read or written.
func secret(fi os.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular() || fi.Size() != keySize:
		return errors.New("is damaged: delete it")
	case fi.Mode().Perm()&0o077 != 0:
		return errors.New("is open to others: delete it")
	case ok && int(st.Uid) != os.Geteuid():
		return errors.New("belongs to another user")
	}
	return nil
}
