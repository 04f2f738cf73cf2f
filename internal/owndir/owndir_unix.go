// SPDX-License-Identifier: Apache-2.0

//go:build unix

package owndir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// steady resolves the links of a directory, and fails if another user could
// replace what is in it.
func steady(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return dir, err
	}
	for at := dir; ; at = filepath.Dir(at) {
		fi, err := os.Lstat(at)
		if err != nil {
			return dir, err
		}
		if at == filepath.Dir(at) {
			return dir, nil // in a container nobody may own the root
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			continue
		}
		// The group of this user is often theirs alone.
		others := fi.Mode().Perm()&0o002 != 0 || fi.Mode().Perm()&0o020 != 0 && int(st.Gid) != os.Getegid()
		switch {
		case st.Uid != 0 && int(st.Uid) != os.Geteuid():
			return dir, fmt.Errorf("%s belongs to another user, who could replace what rpush keeps below it: choose another directory", at)
		case others && fi.Mode()&fs.ModeSticky == 0:
			return dir, fmt.Errorf("%s can be written by other users, who could replace what rpush keeps below it: choose another directory, or chmod +t", at)
		}
	}
}

func closeToOthers(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(path, 0o700)
}
