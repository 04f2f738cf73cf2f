// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/require"
)

var schema = Schema{
	Push: func(key string, text []string) error {
		switch {
		case key != "retry-for" && key != "ca-file" && key != "insecure":
			return errors.New("unknown key \"" + key + "\"")
		case len(text) != 1:
			return errors.New("one value is needed")
		}
		return nil
	},
	Gateway: func(key string, _ []string) error {
		if key != "listen" {
			return errors.New("unknown key \"" + key + "\"")
		}
		return nil
	},
	Fixable: func(key string) bool { return key == "retry-for" || key == "insecure" },
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPrecedence(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	system := write(t, `
defaults:
  retry-for: 1m
  ca-file: /system
registries:
  registry.example: {retry-for: 2m}
gateway: {listen: ":1"}
`)
	user := write(t, `
defaults: {retry-for: 3m, insecure: true}
registries:
  docker.io: {ca-file: /hub}
`)
	s, err := Load(system, user, schema)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		registry, key, want string
		line                int
	}{
		{"registry.example", "retry-for", "2m", 6}, // what is about the registry beats defaults
		{"other.example", "retry-for", "3m", 2},    // the user's beats the system's
		{"other.example", "ca-file", "/system", 4},
		{"index.docker.io", "ca-file", "/hub", 4},
		{"", "retry-for", "3m", 2},
	} {
		v := s.For(c.registry)[c.key]
		if strings.Join(v.Text, ",") != c.want || v.Line != c.line || v.Fixed {
			t.Errorf("%s of %q is %+v, want %s, line %d", c.key, c.registry, v, c.want, c.line)
		}
	}
	if v := s.Gateway()["listen"]; len(v.Text) != 1 || v.Text[0] != ":1" {
		t.Errorf("listen is %+v", v)
	}
}

// What the system's file fixes, the user's does not change; without a value it is
// fixed at the built-in default.
func TestFixed(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	system := write(t, "defaults: {retry-for: 1m}\nfixed: [retry-for, insecure]\n")
	user := write(t, "defaults: {retry-for: 3m, insecure: true}\nregistries: {a.example: {retry-for: 4m}}\n")
	s, err := Load(system, user, schema)
	if err != nil {
		t.Fatal(err)
	}
	got := s.For("a.example")
	if v := got["retry-for"]; !v.Fixed || v.Text[0] != "1m" || v.File != system {
		t.Errorf("retry-for is %+v", v)
	}
	if v := got["insecure"]; !v.Fixed || v.Text != nil || v.Line != 2 {
		t.Errorf("insecure is %+v", v)
	}
}

func TestStrict(t *testing.T) {
	for text, want := range map[string]string{
		"defaults:\n  retry_for: 1m\n":                                `:2: unknown key "retry_for"`,
		"default: {}\n":                                               `:1: unknown key "default"`,
		"defaults:\n  retry-for: 1m\n  retry-for: 2m\n":               `:3: "retry-for" is here twice`,
		"defaults:\n  retry-for: [1m, 2m]\n":                          ":2: one value is needed",
		"defaults:\n  retry-for: {a: b}\n":                            ":2: a value, or a list",
		"defaults:\n  retry-for:\n":                                   ":2: a value, or a list",
		"defaults: [a]\n":                                             ":1: a mapping is needed",
		"registries:\n\n  'a b': {}\n":                                `:3: "a b" is no registry`,
		"registries:\n  docker.io: {}\n  index.docker.io: {}\n":       ":3: ",
		"fixed: [insecure]\n":                                         ":1: fixed works in the system's file only",
		"defaults: {}\n---\ndefaults: {}\n":                           "more than one document",
		"defaults: {\n":                                               "line ",
		"gateway: {upstream: a}\n":                                    `:1: unknown key "upstream"`,
		"registries:\n  a.example:\n    retry-for: 1m\n    x: y\n":    `:4: unknown key "x"`,
		"defaults: &a {retry-for: 1m}\nregistries: {a.example: *a}\n": ":2: a mapping",
	} {
		if _, err := Load("", write(t, text), schema); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"", "# nothing\n", "defaults:\n"} {
		if _, err := Load("", write(t, text), schema); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	if s, err := Load(filepath.Join(t.TempDir(), "missing"), "", schema); err != nil || len(s.For("a.example")) != 0 {
		t.Errorf("no file: %v", err)
	}
}

// A file that others can write decides nothing.
func TestOwnership(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("access lists decide there")
	}
	file := write(t, "defaults: {retry-for: 1m}\n")
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Load("", file, schema); err == nil || !strings.Contains(err.Error(), "other users") {
		t.Errorf("a file of mode 0666: %v", err)
	}
	if os.Getuid() != 0 {
		return
	}
	file = write(t, "defaults: {retry-for: 1m}\n")
	if err := os.Chown(file, 12345, 12345); err != nil {
		require.Missing(t, "chown: %v", err)
	}
	if _, err := Load("", file, schema); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("a file of somebody else: %v", err)
	}
	if _, err := Load(file, "", schema); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("a system's file of somebody else: %v", err)
	}
}
