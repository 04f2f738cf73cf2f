package spool

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
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
