// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"os"
)

// lock has nothing to do: Windows deletes no file that somebody has open.
func lock(*os.File, bool) bool { return true }

// removeOpen deletes f, which is at path, and closes it first: Windows deletes and
// renames nothing that is open, and so nothing that another process has open.
func removeOpen(f *os.File, path string) {
	f.Close()
	_ = os.Remove(path) // what stays is swept
}

// renameOpen gives f another name, and returns it open.
func renameOpen(f *os.File, to string) (*os.File, error) {
	f.Close()
	if err := os.Rename(f.Name(), to); err != nil {
		return nil, err
	}
	return openToLock(to)
}
