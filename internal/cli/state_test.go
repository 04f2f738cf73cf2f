// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStateFlags(t *testing.T) {
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	const url = "redis://user:secret@localhost:1"
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		exit int
		word string // on stderr
	}{
		{"a Redis", []string{"--state", url}, nil, 0, "pushed"},
		{"a key", []string{"--state", url}, map[string]string{stateKeyVariable: key}, 0, "pushed"},
		{"a key in base64", []string{"--state", url}, map[string]string{stateKeyVariable: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}, 0, "pushed"},
		{"a key file", []string{"--state", url, "--state-key-file", file(key + "\n")}, nil, 0, "pushed"},
		{"a directory", []string{"--state", "file:" + t.TempDir()}, nil, 0, "pushed"},
		{"no directory", []string{"--state", "file:"}, nil, 2, "without a directory"},
		{"another scheme", []string{"--state", "http://user:secret@localhost"}, nil, 2, "begins with redis://"},
		{"a bad URL", nil, map[string]string{"RPUSH_STATE": "redis://user:secret@local host"}, 2, "RPUSH_STATE"},
		{"a bad database", []string{"--state", url + "/x"}, nil, 2, "--state"},
		{"a short key", []string{"--state", url}, map[string]string{stateKeyVariable: "secret"}, 2, "RPUSH_STATE_KEY holds no key"},
		{"an empty key file", []string{"--state", url, "--state-key-file", file("")}, nil, 2, "is empty"},
		{"no key file", []string{"--state", url, "--state-key-file", "/nowhere"}, nil, 2, "--state-key-file: open /nowhere"},
		{"no certificate", []string{"--state", "rediss://localhost", "--state-ca-file", file("nothing")}, nil, 2, "holds no certificate"},
		{"both", []string{"--state", url, "--state-dir", "dir"}, nil, 2, "--state-dir and --state contradict"},
		{"none", []string{"--state", url, "--no-state"}, nil, 2, "--no-state and --state contradict"},
		{"a flag wins", []string{"--no-state"}, map[string]string{"RPUSH_STATE": url}, 0, "pushed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, returning(half(), nil))
			for k, v := range c.env {
				r.env[k] = v
			}
			if got := r.main(append(c.args, "oci:"+newLayout(t), "reg.example/app:1")); got != c.exit {
				t.Errorf("exit code %d, want %d", got, c.exit)
			}
			stderr := r.stderr.String()
			if !strings.Contains(stderr, c.word) {
				t.Errorf("stderr %q; want %q in it", stderr, c.word)
			}
			if strings.Contains(stderr, "secret") || strings.Contains(stderr, key) {
				t.Errorf("stderr shows a secret: %q", stderr)
			}
		})
	}
}
