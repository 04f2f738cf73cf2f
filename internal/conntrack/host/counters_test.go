// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		name, text string
		invalid    uint64
		ok         bool
	}{
		{"two CPUs", "entries invalid drop\n01 0a 00\n01 05 01\n", 15, true},
		{"columns in another order", "invalid searched\n7 1\n", 7, true},
		{"hexadecimal of eight digits", "entries invalid\n00000001 ffffffff\n", math.MaxUint32, true},
		{"empty", "", 0, false},
		{"no CPU", "entries invalid\n", 0, false},
		{"no such column", "entries found\n1 2\n", 0, false},
		{"too few values", "entries invalid\n1\n", 0, false},
		{"no number", "entries invalid\n1 x\n", 0, false},
	} {
		var got Counters
		err := parseStat([]byte(c.text), &got)
		if (err == nil) != c.ok || c.ok && got.Invalid != c.invalid {
			t.Errorf("%s: got %+v, %v", c.name, got, err)
		}
		if err != nil && !errors.Is(err, errTable) {
			t.Errorf("%s: %v is no errTable", c.name, err)
		}
	}
}

func TestParsePairs(t *testing.T) {
	got, err := parsePairs([]byte("Ip: A\nIp: 1\nTcp: MaxConn OutRsts\nTcp: -1 5\n"), "Tcp:")
	if err != nil || got["OutRsts"] != 5 || got["MaxConn"] != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "Tcp: A\n", "Tcp: A B\nTcp: 1\n", "Tcp: A\nTcp: x\n"} {
		if got, err := parsePairs([]byte(text), "Tcp:"); err == nil {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for s, want := range map[string]bool{
		"5.10.0-28-amd64": true, "6.0.19": true, "6.1.0": false, "6.18.44-fc-v669": false, "7.0-rc1": false, "4.18.0-553.el8_10.x86_64": true,
	} {
		if r, ok := ParseRelease(s); !ok || r.Before((Release{6, 1})) != want {
			t.Errorf("%s: got %v, %t, want before 6.1: %t", s, r, ok, want)
		}
	}
	for _, s := range []string{"", "six", "-1.2", "6", "6."} {
		if r, ok := ParseRelease(s); ok {
			t.Errorf("%q: got %v", s, r)
		}
	}
}

func FuzzTables(f *testing.F) {
	for _, pattern := range []string{StatFile, SNMPFile, NetstatFile} {
		files, _ := filepath.Glob(filepath.Join("../testdata/linux-*", pattern))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Counters
		if err := parseStat(b, &c); (err == nil) != c.Tracked {
			t.Errorf("got %+v, %v", c, err)
		}
		for _, prefix := range []string{"Tcp:", "TcpExt:"} {
			if all, err := parsePairs(b, prefix); (err == nil) != (all != nil) {
				t.Errorf("got %v, %v", all, err)
			}
		}
		ParseRelease(string(b))
	})
}
