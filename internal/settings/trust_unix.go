// SPDX-License-Identifier: Apache-2.0

//go:build unix

package settings

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// trusted fails if somebody else than root, or for the user's own file the user,
// could have written it: who decides which authority is trusted decides who gets
// the password.
func trusted(fi fs.FileInfo, system bool) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	owner := int(st.Uid) == 0 || !system && int(st.Uid) == os.Geteuid()
	// The group of this user is often theirs alone.
	writable := fi.Mode().Perm()&0o002 != 0 || fi.Mode().Perm()&0o020 != 0 && (system && st.Gid != 0 || !system && int(st.Gid) != os.Getegid())
	switch {
	case !owner && system:
		return errors.New("does not belong to root, and is not used")
	case !owner:
		return errors.New("belongs to another user, and is not used")
	case writable:
		return errors.New("can be written by other users, and is not used: chmod go-w")
	}
	return nil
}
