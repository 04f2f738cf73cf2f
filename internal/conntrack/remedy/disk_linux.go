package remedy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk changes files, one operation per method. Tests stop between two.
type disk interface {
	MkdirAll(dir string, mode fs.FileMode) error
	// Write makes a file that is not there, and syncs it.
	Write(name string, b []byte, mode fs.FileMode) error
	Rename(from, to string) error
	// Remove is nil if there is no such file.
	Remove(name string) error
	// SyncDir makes the names in a directory durable. It is nil if there is no
	// such directory.
	SyncDir(dir string) error
	// Set writes a number to a sysctl.
	Set(name string, v int64) error
}

// tempName is where the new content of a file is written before the rename. It
// is always the same, so that undo finds what a kill left there. systemd reads
// no such name in the directories of its configuration.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// replace writes a file whole or not at all, and durably: a record must be on
// the disk before what it is about is changed.
func replace(d disk, path string, b []byte, mode fs.FileMode) error {
	dir, temp := filepath.Dir(path), tempName(path)
	if err := d.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := d.Remove(temp); err != nil {
		return err
	}
	err := d.Write(temp, b, mode)
	if err == nil {
		err = d.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	// The directory itself may be new.
	return errors.Join(d.SyncDir(dir), d.SyncDir(filepath.Dir(dir)))
}

type osDisk struct{}

func (osDisk) MkdirAll(dir string, mode fs.FileMode) error { return os.MkdirAll(dir, mode) }
func (osDisk) Rename(from, to string) error                { return os.Rename(from, to) }
func (osDisk) Remove(name string) error                    { return present(os.Remove(name)) }

func (osDisk) Write(name string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

func (osDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return present(err)
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) { // this file system cannot
		err = nil
	}
	return errors.Join(err, d.Close())
}

func (osDisk) Set(name string, v int64) error {
	return os.WriteFile(name, fmt.Appendf(nil, "%d\n", v), 0)
}

// present is err, but nil for what is not there.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
