// SPDX-License-Identifier: Apache-2.0

//go:build unix

package resume

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK // nor wait for the writer of a pipe

// owned fails where a directory that is there belongs to another user.
func owned(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return ignore(err, os.ErrNotExist)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user", dir)
	}
	return nil
}

// SyncDir makes renames in a directory durable. Some file systems cannot, and
// need not.
func (osDisk) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
