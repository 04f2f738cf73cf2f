//go:build unix

package owndir

import (
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
