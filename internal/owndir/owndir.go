// SPDX-License-Identifier: Apache-2.0

// Package owndir makes and checks the directories in which rpush deletes and
// replaces files. Such a directory holds nothing but rpush's files: a directory
// that the user names may hold anything, so rpush works in a subdirectory.
package owndir

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The names of rpush's directories.
const (
	Spool = "rpush-spool" // blobs and archives that wait on disk
	Known = "rpush-known" // hints about registries, layers and images

	Accepted = "rpush-accepted" // uploads that a gateway has received for a registry
)

// tempPrefix begins the names of files that are being written.
const tempPrefix = "rpush-new-"

// Make creates the directory name inside dir, with mode 0700, and returns its
// path, without symbolic links. If the directory exists, it must pass Check. Make
// creates dir too.
//
// Make fails if another user, other than root, could put something else in the
// place of the directory later: if dir or a directory above it belongs to that
// user, or can be written by others and is not sticky, as /tmp is.
func Make(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return path, err
	}
	dir, err := steady(dir)
	if err != nil {
		return path, err
	}
	path = filepath.Join(dir, name)
	return path, makeChecked(path)
}

// MakePrivate is for files that others must not read: it closes a directory that
// others can read. Unlike Make it takes any dir, for the one place that the user
// or the system chose: in a container the home directory often belongs to another
// user, or is a volume that everybody can write to.
func MakePrivate(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return path, err
	}
	if err := makeChecked(path); err != nil {
		return path, err
	}
	return path, closeToOthers(path)
}

func makeChecked(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return Check(path)
}

// Check fails unless path is a directory, not a symbolic link to one, that
// belongs to this user and to which nobody else can write. On Windows it does
// not look at owner and mode: the user's directories are private there. The
// error wraps fs.ErrNotExist if there is nothing at path.
func Check(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case fi.Mode()&os.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: rpush needs a directory there", path)
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	}
	if err := exclusive(fi); err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	return nil
}

// CreateTemp creates a file of mode 0600 in path, with a name for which IsTemp
// holds.
func CreateTemp(path string) (*os.File, error) { return os.CreateTemp(path, tempPrefix) }

// IsTemp reports whether a file name, without its directory, is one that
// CreateTemp gives.
func IsTemp(name string) bool {
	digits, ok := strings.CutPrefix(name, tempPrefix)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}
