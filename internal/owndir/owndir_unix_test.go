// SPDX-License-Identifier: Apache-2.0

//go:build unix

package owndir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeRefusesAnotherUsersDirectory(t *testing.T) {
	dir, name := "/", "usr" // root's
	if os.Geteuid() == 0 {
		dir, name = t.TempDir(), Spool
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Make(dir, name); err == nil || !strings.Contains(err.Error(), "belongs to another user") {
		t.Errorf("got %v, want that it belongs to another user", err)
	}
}

// Whoever owns a directory above rpush's, or can write to it, can put another
// directory there after the check.
func TestMakeRefusesWhatOthersCanReplace(t *testing.T) {
	chown := func(uid, gid int) func(string) error {
		return func(dir string) error { return os.Chown(dir, uid, gid) }
	}
	chmod := func(mode os.FileMode) func(string) error {
		return func(dir string) error { return os.Chmod(dir, mode) }
	}
	for _, tt := range []struct {
		name string
		root bool // only root can set it up
		do   func(dir string) error
		want string
	}{
		{"as it is", false, chmod(0o755), ""},
		{"another user's", true, chown(65534, os.Getegid()), "belongs to another user"},
		{"all may write", false, chmod(0o777), "can be written by other users"},
		{"all may write, sticky", false, chmod(0o777 | os.ModeSticky), ""},
		{"the user's group may write", false, chmod(0o775), ""},
		{"another group may write", true, func(dir string) error { return errors.Join(chown(os.Geteuid(), 65534)(dir), chmod(0o775)(dir)) }, "can be written by other users"},
	} {
		if tt.root && os.Geteuid() != 0 {
			continue
		}
		for _, below := range []string{"", "a/b"} {
			dir := t.TempDir()
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, below), 0o700), tt.do(dir)); err != nil {
				t.Fatal(err)
			}
			// A link of the user's leads there: the path that is returned has none.
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(dir, link); err != nil {
				t.Fatal(err)
			}
			path, err := Make(filepath.Join(link, below), Spool)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, below %q: got %v, want %q", tt.name, below, err, tt.want)
			}
			if err == nil && strings.Contains(path, "link") {
				t.Errorf("%s: the path %s leads through a link", tt.name, path)
			}
		}
	}
}
