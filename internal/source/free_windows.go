package source

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// free is how many bytes the file system of f has left.
func free(f *os.File) int64 {
	dir, err := windows.UTF16PtrFromString(filepath.Dir(f.Name()))
	var n uint64
	if err != nil || windows.GetDiskFreeSpaceEx(dir, &n, nil, nil) != nil || n > unlimited {
		return unlimited
	}
	return int64(n)
}

// nonblock keeps opening a named pipe from waiting for its other end.
const nonblock = 0
