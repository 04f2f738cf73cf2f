// SPDX-License-Identifier: Apache-2.0

//go:build linux

package conntrack

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/nft"
	"github.com/rpush-go/rpush/internal/conntrack/selftest"
	"github.com/rpush-go/rpush/internal/conntrack/xtables"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == selftest.Command { // the self-test calls its own program
		if err := selftest.Main(context.Background(), os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// With RPUSH_RECORD=DIR this writes down what the machine it runs on has: that
// is how testdata was made. RPUSH_RECORD_CASE names the rules.
func TestRecord(t *testing.T) {
	dir, name := os.Getenv("RPUSH_RECORD"), os.Getenv("RPUSH_RECORD_CASE")
	if dir == "" {
		return
	}
	copyFile := func(path string) {
		b, err := host.ThisHost().ReadFile(path)
		if err != nil {
			t.Logf("%s: %v", path, err)
			return
		}
		write(t, filepath.Join(dir, path), b)
	}
	for _, f := range []string{"proc/sys/kernel/osrelease", host.StatFile, host.SNMPFile, host.NetstatFile} {
		copyFile(f)
	}
	err := filepath.WalkDir("/"+host.Sysctls, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.Contains(path, "nf_conntrack_tcp") || strings.Contains(path, "_log_invalid") ||
			strings.HasSuffix(path, "_count") || strings.HasSuffix(path, "conntrack_max")) {
			copyFile(path[1:])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := nft.Read()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".nft.json"), b)
	if tables, err := host.ThisHost().ReadFile("proc/net/ip_tables_names"); err == nil && len(tables) > 0 {
		b, err := xtables.Save(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name+".legacy.txt"), b)
	}
	if _, err := os.Stat(filepath.Join(dir, "selftest.json")); err == nil {
		return
	}
	s := selftest.Run(t.Context())
	t.Logf("self-test: %+v", s)
	b, _ = json.Marshal(s)
	write(t, filepath.Join(dir, "selftest.json"), b)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
