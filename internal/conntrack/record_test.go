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
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == SelfTestCommand { // the self-test calls its own program
		if err := SelfTestMain(context.Background(), os.Stdout); err != nil {
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
		b, err := readFile("/", path)
		if err != nil {
			t.Logf("%s: %v", path, err)
			return
		}
		write(t, filepath.Join(dir, path), b)
	}
	for _, f := range []string{"proc/sys/kernel/osrelease", statFile, snmpFile, netstatFile} {
		copyFile(f)
	}
	err := filepath.WalkDir("/"+sysctls, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.Contains(path, "nf_conntrack_tcp") || strings.Contains(path, "_log_invalid") ||
			strings.HasSuffix(path, "_count") || strings.HasSuffix(path, "conntrack_max")) {
			copyFile(path[1:])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := readNFT()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".nft.json"), b)
	if tables, err := readFile("/", "proc/net/ip_tables_names"); err == nil && len(tables) > 0 {
		b, err := saveLegacy(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name+".legacy.txt"), b)
	}
	if _, err := os.Stat(filepath.Join(dir, "selftest.json")); err == nil {
		return
	}
	s := RunSelfTest(t.Context())
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
