// SPDX-License-Identifier: Apache-2.0

package tempfile

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// Free is how many bytes the disk of an open file or directory has left for this
// user. ok is false if the system does not tell.
func Free(f *os.File) (bytes int64, ok bool) {
	name := f.Name()
	if fi, err := f.Stat(); err == nil && !fi.IsDir() {
		name = filepath.Dir(name)
	}
	dir, err := windows.UTF16PtrFromString(name)
	var n uint64
	if err != nil || windows.GetDiskFreeSpaceEx(dir, &n, nil, nil) != nil {
		return 0, false
	}
	return int64(min(n, 1<<62)), true //nolint:gosec // bounded
}

func isFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }
