// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

func TestNotSaved(t *testing.T) {
	for _, dump := range []string{
		"-A INPUT -j DROP\n", "*filter\n-A INPUT -j DROP\nCOMMIT\n", "*filter\n:INPUT ACCEPT [0:0]\n", "*filter\n:\nCOMMIT\n",
		"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment \"open\nCOMMIT\n", "<html>",
	} {
		if err := Parse([]byte(dump), false, &rules.Set{}); !errors.Is(err, errNotSave) {
			t.Errorf("%q: got %v", dump, err)
		}
	}
}

func FuzzXtables(f *testing.F) {
	files, _ := filepath.Glob("../testdata/linux-*/*.legacy.txt")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("*filter\n:INPUT DROP [0:0]\n-A INPUT ! -p tcp -m x --dports 1:2,3 \"a b\" -g c\nCOMMIT"))
	f.Fuzz(func(t *testing.T, b []byte) {
		set := &rules.Set{}
		if Parse(b, false, set) != nil {
			return
		}
		for _, p := range []rules.Packet{{Port: 5000, IsLocal: rules.Yes}, {Port: 5000, To: netip.MustParseAddr("10.0.0.1")}} {
			set.Judge(p)
			set.Translations(p)
			set.Untracked(p)
		}
	})
}

// The program of nft prints no legacy rules, so that its dump says nothing.
func TestLegacyByTheWrongProgram(t *testing.T) {
	for _, c := range []struct {
		installed []string
		version   string
		ok        bool
	}{
		{[]string{"iptables-legacy-save", "iptables-save"}, "iptables-save v1.8.9 (nf_tables)\n", true},
		{[]string{"iptables-save"}, "iptables-save v1.8.9 (nf_tables)\n", false},
		{[]string{"iptables-save"}, "iptables-save v1.8.9 (legacy)\n", true},
		{[]string{"iptables-save"}, "iptables-save v1.6.1\n", true},
		{nil, "", false},
	} {
		find := func(name string) (string, error) {
			if slices.Contains(c.installed, name) {
				return name, nil
			}
			return "", fmt.Errorf("%s is not installed", name)
		}
		run := func(_ context.Context, _ []byte, _ string, args ...string) ([]byte, error) {
			if args[0] == "--version" {
				return []byte(c.version), nil
			}
			return []byte("dump"), nil
		}
		b, err := saveWith(t.Context(), false, find, run)
		if c.ok && (err != nil || string(b) != "dump") || !c.ok && (err == nil || err.Error() != "iptables-legacy-save is not installed") {
			t.Errorf("%q, %s: got %q, %v", c.installed, c.version, b, err)
		}
	}
}
