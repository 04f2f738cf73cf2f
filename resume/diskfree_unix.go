//go:build linux || darwin

package resume

import (
	"os"

	"golang.org/x/sys/unix"
)

// freeSpace is how many bytes the disk of a file has left for this user.
func freeSpace(f *os.File) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // its type differs between systems
}
