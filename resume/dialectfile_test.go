// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpush-go/rpush/resume"
)

func TestFileDialects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache", "hosts.json")
	want := resume.Dialect{Class: resume.Boundary, Chunk: 5 * mib, MaxBody: 7, StatusGET: true, OffByOne: true}
	resume.FileDialects(path).Save("https://a:443", want)
	resume.FileDialects(path).Save("https://b:443", resume.Dialect{Class: resume.Exact})
	if got, ok := resume.FileDialects(path).Load("https://a:443"); !ok || got != want {
		t.Errorf("got %+v, %v; want %+v", got, ok, want)
	}
	if _, ok := resume.FileDialects(path).Load("https://c:443"); ok {
		t.Error("knows a host that nobody saved")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Cut at every byte, or full of anything: as good as none, and mended by the
// next save.
func TestFileDialectsDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.json")
	resume.FileDialects(path).Save("h", resume.Dialect{Class: resume.Exact})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	contents := [][]byte{[]byte("null"), []byte("[]"), []byte(`{"version":99,"hosts":{"h":{"class":"exact"}}}`), []byte(`{"version":1,"hosts":{"h":7}}`)}
	for i := range whole[:len(whole)-2] {
		contents = append(contents, whole[:i])
	}
	for _, b := range contents {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, ok := resume.FileDialects(path).Load("h"); ok {
			t.Errorf("%q gives %+v", b, d)
		}
		resume.FileDialects(path).Save("h", resume.Dialect{Class: resume.Boundary})
		if d, _ := resume.FileDialects(path).Load("h"); d.Class != resume.Boundary {
			t.Errorf("after %q nothing can be saved", b)
		}
	}
}

func TestFileDialectsExpire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.json")
	synctest.Test(t, func(t *testing.T) {
		resume.FileDialects(path).Save("h", resume.Dialect{Class: resume.Exact})
		time.Sleep(7*24*time.Hour - time.Minute)
		if _, ok := resume.FileDialects(path).Load("h"); !ok {
			t.Error("gone within a week")
		}
		time.Sleep(2 * time.Minute)
		if _, ok := resume.FileDialects(path).Load("h"); ok {
			t.Error("there after a week")
		}
	})
}

func TestFileDialectsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.json")
	ds := resume.FileDialects(path)
	for i := range 300 {
		ds.Save(fmt.Sprint("host", i), resume.Dialect{Class: resume.Exact})
	}
	n := 0
	for i := range 300 {
		if _, ok := ds.Load(fmt.Sprint("host", i)); ok {
			n++
		}
	}
	if n != 256 {
		t.Errorf("%d hosts are kept, want 256", n)
	}
}

func TestFileDialectsThatCannotBeWritten(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file below a file is another error there")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ds := resume.FileDialects(filepath.Join(file, "hosts.json"))
	ds.Save("h", resume.Dialect{Class: resume.Exact})
	if _, ok := ds.Load("h"); ok {
		t.Error("kept where nothing can be kept")
	}
}
