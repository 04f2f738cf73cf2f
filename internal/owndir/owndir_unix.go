//go:build unix

package owndir

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// exclusive fails if another user owns the directory or can write to it.
func exclusive(fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case ok && int(st.Uid) != os.Geteuid():
		return errors.New("belongs to another user")
	case fi.Mode().Perm()&0o022 != 0:
		return errors.New("can be written by other users: remove it, or their permission")
	}
	return nil
}
