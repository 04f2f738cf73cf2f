package spool

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// lock has nothing to do: Windows deletes no file that somebody has open.
func lock(*os.File, bool) bool { return true }

func free(path string) int64 {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0
	}
	var free uint64
	if windows.GetDiskFreeSpaceEx(p, &free, nil, nil) != nil {
		return 0
	}
	return int64(min(free, 1<<62)) //nolint:gosec // bounded
}

func noSpace(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

func private(fs.FileInfo) bool { return true }
