// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// A gateway that serves whatever registry a client names must not connect to all
// of them as flags say that are about one.
func TestGatewayFlagsReachOneRegistry(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  []string
		env   map[string]string
		fails bool
		lax   bool
	}{
		{"any", []string{"--insecure"}, nil, true, false},
		{"any over plain HTTP", []string{"--plain-http"}, nil, true, false},
		{"two", []string{"--tls-verify=false", "--registry", "reg.example", "--registry", "other.example"}, nil, true, false},
		{"the upstream", []string{"--insecure", "--upstream", "reg.example"}, nil, false, true},
		{"one", []string{"--insecure", "--registry", "reg.example"}, nil, false, true},
		{"any, by a variable", nil, map[string]string{"RPUSH_INSECURE": "true"}, false, false},
		{"one, by a variable", []string{"--registry", "reg.example"}, map[string]string{"RPUSH_INSECURE": "true"}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			newRig(t, nil)
			var o options
			var s serveOptions
			all := newGroup("all")
			for _, g := range o.serveFlags(&s) {
				all.AddFlagSet(g.FlagSet)
			}
			if err := all.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			if err := o.load(all.FlagSet, tt.env); err != nil {
				t.Fatal(err)
			}
			if err := s.check(all.FlagSet, &o); (err != nil) != tt.fails {
				t.Fatalf("check: %v, want an error: %t", err, tt.fails)
			}
			if tt.fails {
				return
			}
			u, err := s.flagsFor(&o).gatewayUpstream("reg.example")
			if err != nil {
				t.Fatal(err)
			}
			if lax := u.MaybePlain && u.TLS != nil && u.TLS.InsecureSkipVerify; lax != tt.lax || u.URL.Scheme != "https" {
				t.Errorf("the registry is verified: %t, with %s", !lax, u.URL.Scheme)
			}
		})
	}
}

// Passwords are read again when their file changes, and a mistake in it changes
// nothing.
func TestHtpasswdChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	put := func(password string) {
		t.Helper()
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err == nil {
			// As htpasswd does: another file, renamed.
			err = os.WriteFile(file+".new", []byte("ci:"+string(hash)+"\n"), 0o600)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	var said []error
	users, err := newFreshHtpasswd(file, func(err error) { said = append(said, err) })
	if err != nil {
		t.Fatal(err)
	}
	valid := func(password string) bool {
		t.Helper()
		ok, err := users.check(t.Context(), "ci", password)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !valid("one") || valid("two") {
		t.Error("the first password")
	}
	put("two")
	if valid("one") || !valid("two") {
		t.Error("the second password")
	}
	if err := os.WriteFile(file, []byte("ci:plain text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is said once
		if !valid("two") || len(said) != 1 {
			t.Errorf("after a mistake: said %v", said)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if !valid("two") {
		t.Error("without the file")
	}
	put("three")
	if valid("two") || !valid("three") {
		t.Error("the third password")
	}
}
