// SPDX-License-Identifier: Apache-2.0

package known

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const keySize = 32

// ReadKey reads the secret with which the layers of a cache are signed. If the
// file does not exist and create is true, ReadKey creates it, readable by its
// owner alone; its directory too. A file that others can read or write is an
// error.
func ReadKey(file string, create bool) ([]byte, error) {
	key, err := readKey(file)
	if !create || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	// CreateTemp gives the mode 0600. Of two processes that create a key at the
	// same time one is forgotten, with what it signed.
	f, err := os.CreateTemp(filepath.Dir(file), ".new-key-")
	if err != nil {
		return nil, err
	}
	_, err = f.Write(newKey())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return readKey(file)
}

func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return key
}

func readKey(file string) ([]byte, error) {
	fi, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if err := secret(fi); err != nil {
		return nil, fmt.Errorf("%s %w", file, err)
	}
	key, err := os.ReadFile(file)
	if err == nil && len(key) != keySize {
		return nil, fmt.Errorf("%s is damaged: delete it", file)
	}
	return key, err
}
