// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/rpush-go/rpush/internal/cli"
)

func TestPick(t *testing.T) {
	got, err := pick("windows/amd64,linux/arm")
	if err != nil || len(got) != 2 || got[0].binary() != "rpush.exe" || got[1].arm != "7" {
		t.Errorf("got %v, %v", got, err)
	}
	if all, err := pick(""); err != nil || len(all) != len(targets) {
		t.Errorf("got %v, %v", all, err)
	}
	if _, err := pick("plan9/amd64"); err == nil {
		t.Error("plan9/amd64 was taken")
	}
}

// A directory with the user's own files is not emptied.
func TestReplaceDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceDirectory(dir); err == nil {
		t.Error("a directory of the user's was taken")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	dist := filepath.Join(t.TempDir(), "dist")
	for range 2 {
		if err := replaceDirectory(dist); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dist, marker), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Each command that is not hidden has a man page that names its flags, and the
// scripts of the shells that are here parse.
func TestDocuments(t *testing.T) {
	r := &release{version: "1.2.3", time: time.Unix(1700000000, 0).UTC(), work: t.TempDir()}
	if err := r.documents(); err != nil {
		t.Fatal(err)
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden || !c.IsAvailableCommand() && c.HasParent() {
			return
		}
		page, err := os.ReadFile(filepath.Join(r.manDir(), strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		plain := bytes.ReplaceAll(page, []byte(`\-`), []byte("-"))
		for _, flag := range []string{"retry-for", "output", "watch", "upstream"} {
			if c.Flags().Lookup(flag) != nil && !bytes.Contains(plain, []byte("--"+flag)) {
				t.Errorf("the page of %q does not name --%s", c.CommandPath(), flag)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(cli.Command())
	page, err := os.ReadFile(filepath.Join(r.manDir(), "rpush.1"))
	if err != nil || !bytes.Contains(page, []byte(`"Nov 2023"`)) || !bytes.Contains(page, []byte("rpush 1.2.3")) {
		t.Errorf("%v\n%.200s", err, page)
	}
	for shell, file := range map[string]string{"bash": "rpush.bash", "zsh": "_rpush", "fish": "rpush.fish"} {
		if path, err := exec.LookPath(shell); err == nil {
			if out, err := exec.Command(path, "-n", filepath.Join(r.completionDir(), file)).CombinedOutput(); err != nil {
				t.Errorf("%s -n: %v: %s", shell, err, out)
			}
		}
	}
}

// What the time, the order of maps and the directory do not change is the same
// twice.
func TestArchivesAreReproducible(t *testing.T) {
	rootDir := root(t)
	var all [2]map[string][]byte
	for i := range all {
		r := &release{version: "1.2.3", commit: "abc", time: time.Unix(1700000000, 0).UTC(), work: t.TempDir(), out: t.TempDir()}
		r.targets = []target{{"linux", "amd64", ""}, {"linux", "arm", "7"}, {"windows", "amd64", ""}}
		for _, tt := range r.targets {
			if err := os.MkdirAll(filepath.Dir(r.binary(tt)), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.binary(tt), []byte("program for "+tt.String()), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		t.Chdir(rootDir)
		for _, step := range []func() error{r.documents, r.archives, r.image, r.sums} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		all[i] = map[string][]byte{}
		names, err := r.files()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range append(names, marker) {
			if all[i][name], err = os.ReadFile(filepath.Join(r.out, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(all[0]) != 5 {
		t.Errorf("%d files", len(all[0]))
	}
	for name, b := range all[0] {
		if !bytes.Equal(b, all[1][name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
