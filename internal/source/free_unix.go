//go:build unix

package source

import (
	"os"

	"golang.org/x/sys/unix"
)

// free is how many bytes the file system of f has left.
func free(f *os.File) int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return unlimited
	}
	return int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // differs between systems
}

// nonblock keeps opening a named pipe from waiting for its other end.
const nonblock = unix.O_NONBLOCK
