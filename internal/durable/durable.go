// SPDX-License-Identifier: Apache-2.0

// Package durable replaces small files whole or not at all, and durably. What is
// recorded before a change must be on the disk before the change is.
package durable

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Disk changes files, one operation per method. Tests stop between two.
type Disk interface {
	MkdirAll(dir string, mode fs.FileMode) error
	// Write makes a file that is not there, and syncs it.
	Write(name string, b []byte, mode fs.FileMode) error
	Rename(from, to string) error
	// Remove is nil if there is no such file.
	Remove(name string) error
	// SyncDir makes the names in a directory durable. It is nil if there is no
	// such directory.
	SyncDir(dir string) error
}

// TempName is where Replace writes the new content of a file before it renames
// it. It is always the same, so that whoever takes a change back finds what a kill
// left there.
func TempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// Replace writes a file whole or not at all, and durably. It makes the directory.
func Replace(d Disk, path string, b []byte, mode fs.FileMode) error {
	dir, temp := filepath.Dir(path), TempName(path)
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

// OS is the disk of this machine.
type OS struct{}

// MkdirAll implements Disk.
func (OS) MkdirAll(dir string, mode fs.FileMode) error { return os.MkdirAll(dir, mode) }

// Rename implements Disk.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements Disk.
func (OS) Remove(name string) error { return present(os.Remove(name)) }

// Write implements Disk.
func (OS) Write(name string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// SyncDir implements Disk.
func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return present(err)
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) { // this file system cannot
		err = nil
	}
	return errors.Join(err, d.Close())
}

// present is err, but nil for what is not there.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Hash is the SHA-256 of b in hexadecimal.
func Hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
