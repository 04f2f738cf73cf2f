// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func key(s string) Key {
	return Key{Registry: "https://reg.test:443", Repository: "team/app", Digest: digest.FromString(s)}
}

func recordOf(k Key) Record {
	now := time.Now().UTC().Truncate(time.Second)
	return Record{Key: k, Reference: "reg.test/team/app:1", Location: "https://reg.test/v2/x?_state=secret", Size: 10, Offset: 5, Acked: 3, Opened: now, Updated: now}
}

func mustReserve(t *testing.T, s Store, k Key) Lease {
	t.Helper()
	l, err := s.Reserve(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFilesArePrivateAndGoAway(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has other permissions, and keeps open files")
	}
	dir := t.TempDir()
	s := NewFileStore(dir)
	old := syscallUmask(0)
	defer syscallUmask(old)
	l := mustReserve(t, s, key("a"))
	if err := l.Save(t.Context(), recordOf(key("a"))); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(filepath.Join(dir, "rpush-uploads"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if err == nil && fi.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, want %v", path, fi.Mode().Perm(), want)
		}
		n++
		return err
	})
	if err != nil || n != 3 {
		t.Fatalf("%d files, %v", n, err)
	}
	if err := errors.Join(l.Remove(t.Context()), l.Release(context.Background())); err != nil {
		t.Fatal(err)
	}
	if left, _ := s.list(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// A directory that others can read is closed to them.
	if err := os.Chmod(filepath.Join(dir, "rpush-uploads"), 0o755); err != nil {
		t.Fatal(err)
	}
	l = mustReserve(t, NewFileStore(dir), key("a"))
	defer l.Release(context.Background())
	if fi, err := os.Stat(filepath.Join(dir, "rpush-uploads")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", fi.Mode(), err)
	}
}

// Whoever can write the directory can say where a blob is sent, and whoever puts
// a link in its place, which files are removed.
func TestDirectoryThatOthersChange(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has other permissions")
	}
	there := t.TempDir()
	l := mustReserve(t, NewFileStore(there), key("a"))
	old := recordOf(key("a"))
	old.Opened = time.Now().Add(-2 * RecordsFor)
	if err := errors.Join(l.Save(t.Context(), old), l.Release(context.Background())); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]func(t *testing.T) string{
		"others can write": func(t *testing.T) string {
			if err := os.Chmod(filepath.Join(there, "rpush-uploads"), 0o777); err != nil { //nolint:gosec // on purpose
				t.Fatal(err)
			}
			return there
		},
		"a link": func(t *testing.T) string {
			if err := os.Chmod(filepath.Join(there, "rpush-uploads"), 0o700); err != nil { //nolint:gosec // a directory
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.Symlink(filepath.Join(there, "rpush-uploads"), filepath.Join(dir, "rpush-uploads")); err != nil {
				t.Fatal(err)
			}
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewFileStore(dir(t))
			if _, err := s.Reserve(t.Context(), key("b")); err == nil || errors.Is(err, ErrHeld) {
				t.Errorf("Reserve: got %v", err)
			}
			if all, err := s.Records(); err == nil {
				t.Errorf("%d records were read", len(all))
			}
			if n, err := s.Prune(time.Now()); err == nil || n != 0 {
				t.Errorf("%d records were removed, %v", n, err)
			}
		})
	}
}

func TestDirectoryOfAnotherUser(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "rpush-uploads"), 0o700), os.Chown(filepath.Join(dir, "rpush-uploads"), 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFileStore(dir).Reserve(t.Context(), key("a")); err == nil || errors.Is(err, ErrHeld) {
		t.Errorf("got %v", err)
	}
}

// A lock on a file that is no longer at its path protects nothing.
func TestLockFollowsThePath(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not remove open files")
	}
	path := filepath.Join(t.TempDir(), "a.lock")
	first, err := reserve(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := reserve(path)
	if err != nil {
		t.Fatalf("the path is free: %v", err)
	}
	if _, err := reserve(path); !errors.Is(err, ErrHeld) {
		t.Errorf("got %v, want held", err)
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}

// The lease goes round between many, and never two have it.
func TestOneHolder(t *testing.T) {
	s := NewFileStore(t.TempDir())
	var inside, most, turns int
	var mu = make(chan struct{}, 1)
	done := make(chan error)
	for range 8 {
		go func() {
			for n := 0; n < 50; {
				l, err := s.Reserve(context.Background(), key("a"))
				if errors.Is(err, ErrHeld) {
					runtime.Gosched()
					continue
				}
				if err != nil {
					done <- err
					return
				}
				mu <- struct{}{}
				inside++
				most, turns = max(most, inside), turns+1
				<-mu
				runtime.Gosched()
				mu <- struct{}{}
				inside--
				<-mu
				if err := l.Release(context.Background()); err != nil {
					done <- err
					return
				}
				n++
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if most != 1 || turns != 400 {
		t.Errorf("%d at once, %d turns", most, turns)
	}
}

// sound is a record, but for one field.
func sound(field string) string {
	b, err := json.Marshal(recordFile{recordVersion, recordOf(key("a"))})
	if err != nil {
		panic(err)
	}
	return string(b[:len(b)-1]) + "," + field + "}"
}

func TestForeignRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	for name, text := range map[string]string{
		"empty":             "",
		"no JSON":           "hello",
		"another type":      "[]",
		"a future one":      `{"version": 2, "location": {"url": "x"}}`,
		"no version":        `{"location": "x"}`,
		"a wrong type":      `{"version": 1, "size": "ten"}`,
		"far too large":     `{"version": 1, "location": "` + strings.Repeat("x", maxRecord) + `"}`,
		"a negative count":  sound(`"idle": -5`),
		"a count too large": sound(`"idle": 1000000`),
		"no digest":         sound(`"digest": "sha256-x"`),
		"no registry":       sound(`"registry": "file:///"`),
		"no repository":     sound(`"repository": "../A b"`),
		"too far":           sound(`"offset": 11`),
		"a huge number":     `{"version": 1, "size": 1e400}`,
		"not even UTF-8":    "\xff\xfe\x00",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := load(path)
		if err == nil || errors.Is(err, ErrNoRecord) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		} else if strings.Contains(err.Error(), "xxx") {
			t.Errorf("%s: the error quotes the file: %v", name, err)
		}
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := load(path); err == nil || errors.Is(err, ErrNoRecord) {
		t.Errorf("a directory: got %v", err)
	}
	if _, err := reserve(path); err == nil || errors.Is(err, ErrHeld) {
		t.Errorf("a directory for a lock: got %v", err)
	}
	if err := os.WriteFile(path+"2", []byte(sound(`"idle": 5`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := load(path + "2"); err != nil || r.Idle != 5 {
		t.Errorf("a good one: %+v, %v", r, err)
	}
}

func TestRecordsAndPrune(t *testing.T) {
	dir := t.TempDir()
	s := NewFileStore(dir)
	for name, age := range map[string]time.Duration{"new": time.Hour, "old": 69 * time.Hour, "expired": 71 * time.Hour, "held": 71 * time.Hour} {
		l := mustReserve(t, s, key(name))
		r := recordOf(key(name))
		r.Opened = r.Opened.Add(-age)
		if err := l.Save(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if name != "held" {
			if err := l.Release(context.Background()); err != nil {
				t.Fatal(err)
			}
		} else {
			defer l.Release(context.Background())
		}
	}
	// What is not a record, new and long forgotten.
	at := func(name string) string { return filepath.Join(dir, "rpush-uploads", name) }
	hex := func(c byte) string { return strings.Repeat(string(c), 32) }
	young, rotten := hex('1')+".json", hex('2')+".json"
	long := time.Now().Add(-71 * time.Hour)
	for name, old := range map[string]bool{young: false, rotten: true, hex('c') + ".new": true, hex('f') + ".lock": true, "notes.txt": true, "customers.json": true} {
		if err := os.WriteFile(at(name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if old {
			if err := os.Chtimes(at(name), long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A record that is not where its key leads.
	b, err := os.ReadFile(s.path(key("new")) + recordExt)
	if err := errors.Join(err, os.WriteFile(at(hex('3')+".json"), b, 0o600)); err != nil {
		t.Fatal(err)
	}
	all, err := s.Records()
	if err != nil || len(all) != 4 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	if n, err := s.Prune(time.Now()); n != 2 || err != nil { // expired, rotten
		t.Errorf("pruned %d, %v", n, err)
	}
	got := map[string]bool{}
	names, _ := s.list()
	for _, n := range names {
		got[filepath.Ext(n)+" "+n] = true
	}
	want := map[string]bool{}
	for _, n := range []string{young, hex('3') + ".json", "notes.txt", "customers.json"} {
		want[filepath.Ext(n)+" "+n] = true
	}
	for _, k := range []string{"new", "old", "held"} {
		n := filepath.Base(s.path(key(k)))
		want[".json "+n+".json"] = true
		want[".lock "+n+".lock"] = true // beside its record
	}
	if !maps.Equal(got, want) {
		t.Errorf("left: %v\nwant: %v", got, want)
	}
	// A new process prunes by itself.
	if err := os.Chtimes(at(young), long, long); err != nil {
		t.Fatal(err)
	}
	l := mustReserve(t, NewFileStore(dir), key("other"))
	defer l.Release(context.Background())
	if _, err := os.Stat(at(young)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rotten files stay: %v", err)
	}
}

// What is not ours is left alone.
func TestDirectoryWithOtherFiles(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has other permissions")
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "rpush-uploads")
	if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "customers.json"), []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	l := mustReserve(t, NewFileStore(dir), key("a"))
	defer l.Release(context.Background())
	if _, err := NewFileStore(dir).Prune(time.Now().Add(1000 * RecordsFor)); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(filepath.Join(at, "customers.json")); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("the file is %v, %v", fi, err)
	}
}

// Somebody removes everything while an upload is under way: it writes no more,
// since another may have the record by now, and the next one starts again.
func TestDirectoryTakenAway(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not remove open files")
	}
	dir := t.TempDir()
	s := NewFileStore(dir)
	first := mustReserve(t, s, key("a"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	second := mustReserve(t, s, key("a"))
	want := recordOf(key("a"))
	if err := second.Save(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := first.Save(t.Context(), recordOf(key("a"))); err == nil {
		t.Error("the first one wrote")
	}
	if err := first.Remove(t.Context()); err == nil {
		t.Error("the first one removed")
	}
	if err := first.Release(context.Background()); err != nil {
		t.Error(err)
	}
	if got, err := second.Load(t.Context()); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.Reserve(t.Context(), key("a")); !errors.Is(err, ErrHeld) {
		t.Errorf("a third one: %v", err)
	}
	if err := second.Release(context.Background()); err != nil {
		t.Error(err)
	}
}

// Records that no version ever wrote are not believed in any part.
func FuzzRecord(f *testing.F) {
	path := filepath.Join(f.TempDir(), "x.json")
	f.Add([]byte(`{"version":1,"registry":"https://r:443","repository":"a/b","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","location":"https://r/x","size":10,"offset":5,"acked":3,"idle":2,"opened":"2026-01-01T00:00:00Z","updated":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"version":1,"idle":-5,"digest":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := load(path)
		if err != nil {
			return
		}
		// What is done with one must not panic.
		_, _, _, _ = r.Name(), r.String(), r.Digest.Encoded(), r.Expired(time.Now())
		newPacer("h", MemoryDialects()).stoodStill(r.Idle + 1)
		if r.Offset < 0 || r.Offset > r.Size || r.Idle < 0 || !r.valid(r.Key, r.Size) {
			t.Errorf("believed: %+v", r)
		}
	})
}

func TestRecordIsPrintedWithoutItsLocation(t *testing.T) {
	r := recordOf(key("a"))
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if s := fmt.Sprintf(f, r); strings.Contains(s, "_state") {
			t.Errorf("%s shows %s", f, s)
		}
	}
}

// powerless is a disk on which only what was synced survives. It has its own
// idea of what a file system may do when the power goes: a file that was not
// synced may have any part of its bytes, a directory that was not synced may
// have any of its changes, in order.
type powerless struct {
	now, safe map[string][]byte // names as of the directory
	synced    map[string]bool   // contents that are
	undone    []func()          // changes of the directory that are not yet durable
	ops       int
	cutAt     int
}

var errPower = errors.New("the power is gone")

func (p *powerless) op() error {
	p.ops++
	if p.cutAt > 0 && p.ops >= p.cutAt {
		return errPower
	}
	return nil
}

func (p *powerless) Create(name string) (diskFile, error) {
	if err := p.op(); err != nil {
		return nil, err
	}
	p.now[name], p.synced[name] = nil, false
	p.undone = append(p.undone, func() { p.safe[name] = p.now[name] })
	return &powerlessFile{p, name}, nil
}

func (p *powerless) Rename(from, to string) error {
	if err := p.op(); err != nil {
		return err
	}
	b, synced := p.now[from], p.synced[from]
	delete(p.now, from)
	p.now[to], p.synced[to] = b, synced
	p.undone = append(p.undone, func() {
		delete(p.safe, from)
		p.safe[to] = b
	})
	return nil
}

func (p *powerless) Remove(name string) error {
	if err := p.op(); err != nil {
		return err
	}
	delete(p.now, name)
	p.undone = append(p.undone, func() { delete(p.safe, name) })
	return nil
}

func (p *powerless) SyncDir(string) error {
	if err := p.op(); err != nil {
		return err
	}
	for _, f := range p.undone {
		f()
	}
	p.undone = nil
	return nil
}

// after returns what may be in a file when the power comes back.
func (p *powerless) after(name string) (all [][]byte) {
	for n := range len(p.undone) + 1 {
		for _, f := range p.undone[:n] {
			f()
		}
		b := p.safe[name]
		all = append(all, b)
		if !p.synced[name] {
			for cut := range b { // any part, or as many zeros
				all = append(all, b[:cut], make([]byte, len(b)))
			}
		}
	}
	return all
}

type powerlessFile struct {
	p    *powerless
	name string
}

func (f *powerlessFile) Write(b []byte) (int, error) {
	if err := f.p.op(); err != nil {
		n := len(b) / 2
		f.p.now[f.name] = append(f.p.now[f.name], b[:n]...)
		return n, err
	}
	f.p.now[f.name] = append(f.p.now[f.name], b...)
	return len(b), nil
}

func (f *powerlessFile) Sync() error {
	if err := f.p.op(); err != nil {
		return err
	}
	f.p.synced[f.name] = true
	return nil
}

func (f *powerlessFile) Close() error { return nil }

// The power is cut before every single operation: what is on disk is the old
// record or the new one, and once replace has returned, the new one.
func TestPowerCut(t *testing.T) {
	before, after := []byte("the old record"), []byte("the new one")
	dir := filepath.Join("state", "rpush-uploads")
	name, temp := filepath.Join(dir, "a.json"), filepath.Join(dir, "a.new")
	for cut := 1; ; cut++ {
		p := &powerless{now: map[string][]byte{name: before}, safe: map[string][]byte{name: before}, synced: map[string]bool{name: true}, cutAt: cut}
		err := replace(p, name, temp, after)
		if err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		for _, got := range p.after(name) {
			isNew := bytes.Equal(got, after)
			if !isNew && (err == nil || !bytes.Equal(got, before)) {
				t.Errorf("cut before operation %d (%v): the file may have %q", cut, err, got)
			}
		}
		if err == nil {
			if cut < 5 {
				t.Errorf("only %d operations", cut-1)
			}
			return
		}
	}
}

// The same order on the real disk, with a full one and a broken one.
func TestReplaceOnRealDisk(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a.json")
	for _, text := range []string{"old", "new"} {
		if err := replace(osDisk{}, name, filepath.Join(dir, "a.new"), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); string(got) != text || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	for op := 1; op <= 3; op++ {
		if err := replace(&failing{at: op}, name, filepath.Join(dir, "a.new"), []byte("newer")); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("operation %d: got %v", op, err)
		}
		if got, err := os.ReadFile(name); string(got) != "new" || err != nil {
			t.Errorf("operation %d: the file has %q, %v", op, got, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "a.new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("operation %d: half a file is left: %v", op, err)
		}
	}
}

// failing is the real disk, but for one operation.
type failing struct {
	osDisk
	n, at int
}

func (f *failing) next() error {
	if f.n++; f.n == f.at {
		return syscall.ENOSPC
	}
	return nil
}

func (f *failing) Create(name string) (diskFile, error) {
	file, err := f.osDisk.Create(name)
	return &failingFile{file, f}, err
}

func (f *failing) Rename(from, to string) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.osDisk.Rename(from, to)
}

type failingFile struct {
	diskFile
	f *failing
}

func (f *failingFile) Write(b []byte) (int, error) {
	if err := f.f.next(); err != nil {
		return 0, err
	}
	return f.diskFile.Write(b)
}

func (f *failingFile) Sync() error {
	if err := f.f.next(); err != nil {
		return err
	}
	return f.diskFile.Sync()
}
