// SPDX-License-Identifier: Apache-2.0

package owndir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestMakeIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		path, err := Make(dir, Spool)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		want := filepath.Join(dir, Spool)
		if runtime.GOOS != "windows" {
			if want, err = filepath.EvalSymlinks(want); err != nil {
				t.Fatal(err)
			}
		}
		if path != want || !fi.IsDir() || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o700 {
			t.Errorf("%s has the mode %v", path, fi.Mode())
		}
	}
}

func TestMakeRefusesWhatIsNotRpushs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(path string) error
		want  string
		unix  bool
	}{
		{"a file", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "is not a directory", false},
		{"a link to a directory", func(p string) error { return os.Symlink(t.TempDir(), p) }, "is a symbolic link", true},
		{"a link to nothing", func(p string) error { return os.Symlink("nothing", p) }, "is a symbolic link", true},
		{"the group may write", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o720)) }, "can be written by other users", true},
		{"all may write", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o1777)) }, "can be written by other users", true}, //nolint:gosec // on purpose
	} {
		if tt.unix && runtime.GOOS == "windows" {
			continue
		}
		dir := t.TempDir()
		if err := tt.plant(filepath.Join(dir, Known)); err != nil {
			t.Fatal(err)
		}
		if _, err := Make(dir, Known); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := Check(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that nothing is there", err)
	}
}

func TestIsTemp(t *testing.T) {
	f, err := CreateTemp(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if name := filepath.Base(f.Name()); !IsTemp(name) {
		t.Errorf("%s is not taken for one of its own", name)
	}
	for _, name := range []string{"", "new-1", "rpush-new-", "rpush-new-1.txt", "rpush-new-year", "a-rpush-new-1"} {
		if IsTemp(name) {
			t.Errorf("%q is taken for one of its own", name)
		}
	}
}
