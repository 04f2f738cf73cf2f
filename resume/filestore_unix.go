//go:build unix

package resume

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK // nor wait for the writer of a pipe

// private makes sure that nobody else can read or plant records: whoever can
// write them can say where a blob is sent. A directory with files of others is
// left as it is.
func (s *FileStore) private() error {
	fi, err := os.Lstat(s.dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory", s.dir)
	}
	if err := owned(s.dir); err != nil {
		return err
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	names, err := s.list()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !ours(name) {
			return fmt.Errorf("%s is open to others, and has other files than rpush's", s.dir)
		}
	}
	return os.Chmod(s.dir, 0o700)
}

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
