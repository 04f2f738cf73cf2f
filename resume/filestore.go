// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/rpush-go/rpush/internal/owndir"
)

const (
	recordVersion = 1
	maxRecord     = 64 << 10 // locations of some registries are long
	recordExt     = ".json"
	lockExt       = ".lock"
	newExt        = ".new"
	keyBytes      = 16 // of a name, written as hex digits
)

// StateDir is where records are kept unless said otherwise:
// $XDG_STATE_HOME/rpush, else ~/.local/state/rpush, on Windows
// %LocalAppData%\rpush\state. It is an error where there is no home.
func StateDir() (string, error) {
	if runtime.GOOS == "windows" {
		dir, err := os.UserCacheDir()
		return filepath.Join(dir, "rpush", "state"), err
	}
	// The XDG specification has relative paths ignored.
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "rpush"), nil
	}
	home, err := os.UserHomeDir()
	if err == nil && !filepath.IsAbs(home) {
		err = fmt.Errorf("the home directory %q is not absolute", home)
	}
	if err == nil {
		// root with a user's HOME would leave directories there that are root's.
		err = owned(home)
	}
	return filepath.Join(home, ".local", "state", "rpush"), err
}

// FileStore is a Store in a directory, made with NewFileStore. Each record is a
// file of mode 0600 in a directory of mode 0700, written so that at any moment,
// also after a power cut, there is the old record or the new one. Beside it is
// a lock file while an upload is under way. Processes on the same machine may
// share the directory; where the file system has no locks, nothing is kept.
//
// The files are of version 1. Later versions of this package read them; a file
// of a version they do not know is as good as none.
type FileStore struct {
	dir  string
	disk disk

	pruned sync.Once
}

// NewFileStore keeps records below dir, which is made when there is something
// to keep.
func NewFileStore(dir string) *FileStore {
	return &FileStore{dir: filepath.Join(dir, "rpush-uploads"), disk: osDisk{}}
}

type recordFile struct {
	Version int `json:"version"`
	Record
}

// path is that of the files of k, without their extension.
func (s *FileStore) path(k Key) string {
	h := sha256.Sum256([]byte(k.Registry + "\n" + k.Repository + "\n" + string(k.Digest)))
	return filepath.Join(s.dir, hex.EncodeToString(h[:keyBytes]))
}

// prepare makes the directory, and takes out once what has expired.
func (s *FileStore) prepare() error {
	if _, err := owndir.MakePrivate(filepath.Dir(s.dir), filepath.Base(s.dir)); err != nil {
		return err
	}
	s.pruned.Do(func() { _, _ = s.Prune(time.Now()) })
	return nil
}

// ours holds for the names of this package's files, without the directory.
func ours(name string) bool {
	ext := filepath.Ext(name)
	key := strings.TrimSuffix(name, ext)
	return len(key) == 2*keyBytes && strings.Trim(key, "0123456789abcdef") == "" && (ext == recordExt || ext == lockExt || ext == newExt)
}

// Reserve implements Store.
func (s *FileStore) Reserve(_ context.Context, k Key) (Lease, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	path := s.path(k)
	lock, err := reserve(path + lockExt)
	if err != nil {
		return nil, err
	}
	return &fileLease{s, path, lock}, nil
}

// Forget implements Store.
func (s *FileStore) Forget(ctx context.Context, k Key) error {
	left := func(ext string) bool {
		_, err := os.Lstat(s.path(k) + ext)
		return err == nil
	}
	if !left(recordExt) && !left(newExt) && !left(lockExt) {
		return nil
	}
	l, err := s.Reserve(ctx, k)
	if err != nil {
		return err
	}
	return errors.Join(l.Remove(ctx), l.Release(ctx))
}

// reserve locks the file at path. The holder of a lock may remove the file, so
// that a lock counts only while the path still leads to the file that is
// locked.
func reserve(path string) (*flock.Flock, error) {
	for range 10 {
		if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no file", path) // and may block whoever opens it
		}
		lock := flock.New(path, flock.SetPermissions(0o600))
		switch locked, err := lock.TryLock(); {
		case err != nil:
			return nil, errors.Join(err, lock.Close())
		case !locked:
			return nil, errors.Join(ErrHeld, lock.Close())
		}
		held, err := holds(lock)
		if held {
			return lock, nil
		}
		if err := errors.Join(lock.Close(), err); err != nil {
			return nil, err
		}
	}
	return nil, ErrHeld // somebody is always quicker
}

// holds reports whether the path of a lock leads to the file that is locked.
func holds(lock *flock.Flock) (bool, error) {
	mine, err := lock.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(lock.Path())
	return err == nil && os.SameFile(mine, there), ignore(err, fs.ErrNotExist)
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

type fileLease struct {
	s    *FileStore
	path string
	lock *flock.Flock
}

func (l *fileLease) Load(context.Context) (Record, error) {
	if err := l.held(); err != nil {
		return Record{}, err
	}
	return load(l.path + recordExt)
}

// load reads a record, which is foreign input.
func load(path string) (Record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, ErrNoRecord
	}
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return Record{}, fmt.Errorf("%s is no file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Record{}, err
	}
	if len(b) > maxRecord {
		return Record{}, fmt.Errorf("%s is too large", path)
	}
	var r recordFile
	if json.Unmarshal(b, &r) != nil {
		return Record{}, fmt.Errorf("%s is damaged", path) // the error would quote it
	}
	switch {
	case r.Version != recordVersion:
		return Record{}, fmt.Errorf("%s is of version %d, not %d", path, r.Version, recordVersion)
	case !r.sound():
		return Record{}, fmt.Errorf("%s is damaged", path)
	}
	return r.Record, nil
}

// held fails if somebody took the lock file away: another process may have the
// record by now.
func (l *fileLease) held() error {
	switch ok, err := holds(l.lock); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%w: its lock file is not there any more", ErrLeaseLost)
	}
	return nil
}

// Renew implements Lease. The lock ends with the process only.
func (l *fileLease) Renew(context.Context) error { return l.held() }

func (l *fileLease) Save(_ context.Context, r Record) error {
	if err := l.held(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(recordFile{recordVersion, r}, "", "  ")
	if err != nil {
		return err
	}
	return replace(l.s.disk, l.path+recordExt, l.path+newExt, append(b, '\n'))
}

func (l *fileLease) Remove(context.Context) error {
	if err := l.held(); err != nil {
		return err
	}
	return errors.Join(
		ignore(l.s.disk.Remove(l.path+newExt), fs.ErrNotExist),
		ignore(l.s.disk.Remove(l.path+recordExt), fs.ErrNotExist))
}

// Release implements Lease.
func (l *fileLease) Release(context.Context) error { return l.release() }

// release removes the lock file, unless there is a record to find it by: one
// for every blob that was ever pushed would pile up.
func (l *fileLease) release() error {
	if _, err := os.Lstat(l.path + recordExt); errors.Is(err, fs.ErrNotExist) && l.held() == nil {
		return removeLock(l.lock)
	}
	return l.lock.Close()
}

// removeLock removes a lock file that is held, and lets go of it. Windows does
// not remove open files: there the next process may be quicker, and keep it.
func removeLock(lock *flock.Flock) error {
	if runtime.GOOS == "windows" {
		err := lock.Close()
		_ = os.Remove(lock.Path())
		return err
	}
	return errors.Join(ignore(os.Remove(lock.Path()), fs.ErrNotExist), lock.Close())
}

// Records returns what is kept, the oldest first, those that have expired
// included. Files that are no records are left out.
func (s *FileStore) Records() ([]Record, error) {
	names, err := s.list()
	if err != nil {
		return nil, err
	}
	var all []Record
	for _, name := range names {
		if !strings.HasSuffix(name, recordExt) {
			continue
		}
		path := filepath.Join(s.dir, name)
		// A record belongs where its key leads.
		if r, err := load(path); err == nil && s.path(r.Key)+recordExt == path {
			all = append(all, r)
		}
	}
	byAge(all)
	return all, nil
}

// list names what is in the directory, if it is rpush's own: whoever can write
// records says where a blob is sent, and which files Prune removes.
func (s *FileStore) list() (names []string, err error) {
	if err := owndir.Check(s.dir); err != nil {
		return nil, ignore(err, fs.ErrNotExist)
	}
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Prune removes the records that have expired at now, and what is no record of
// this version although it has been there for as long, unless an upload is
// under way. It returns how many records it removed.
func (s *FileStore) Prune(now time.Time) (int, error) {
	names, err := s.list()
	if err != nil {
		return 0, err
	}
	pruned := 0
	var errs []error
	for _, name := range names {
		path := filepath.Join(s.dir, name)
		if !ours(name) || !stale(path, now) {
			continue
		}
		removed, err := s.pruneFile(path, now)
		if removed && filepath.Ext(path) == recordExt {
			pruned++
		}
		if !errors.Is(err, ErrHeld) {
			errs = append(errs, err)
		}
	}
	return pruned, errors.Join(errs...)
}

// stale reports whether a file has been of no use for long enough.
func stale(path string, now time.Time) bool {
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() {
		return false
	}
	if now.Sub(fi.ModTime()) >= RecordsFor {
		return true
	}
	if filepath.Ext(path) != recordExt {
		return false
	}
	r, err := load(path)
	return err == nil && r.Expired(now)
}

func (s *FileStore) pruneFile(path string, now time.Time) (bool, error) {
	base := strings.TrimSuffix(path, filepath.Ext(path))
	lock, err := reserve(base + lockExt)
	if err != nil {
		return false, err
	}
	l := &fileLease{s, base, lock}
	if filepath.Ext(path) == lockExt {
		return true, l.release()
	}
	if !stale(path, now) { // somebody has just continued it
		return false, l.release()
	}
	err = ignore(os.Remove(path), fs.ErrNotExist)
	return err == nil, errors.Join(err, l.release())
}

// disk is the part of a file system that durability rests on. It is an
// interface so that a test can cut the power between any two calls.
type disk interface {
	// Create makes a new file of mode 0600; an old one is taken away.
	Create(name string) (diskFile, error)
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(name string) error
}

type diskFile interface {
	io.WriteCloser
	Sync() error
}

// replace makes b the content of the file name: what is on disk at any moment
// is the old content or the new.
func replace(d disk, name, temp string, b []byte) error {
	f, err := d.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, ignore(d.Remove(temp), fs.ErrNotExist))
	}
	return d.SyncDir(filepath.Dir(name))
}

type osDisk struct{}

func (osDisk) Create(name string) (diskFile, error) {
	if err := ignore(os.Remove(name), fs.ErrNotExist); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) Remove(name string) error     { return os.Remove(name) }
