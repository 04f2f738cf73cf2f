// SPDX-License-Identifier: Apache-2.0

// Package spool keeps blobs that were made on this machine on its disk, by
// their digests, until a registry has them: another try, or another process
// after a kill, then sends the same bytes without making them again.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/tempfile"
)

const (
	// maxBytes bounds all that is kept, by all processes; so does half of the
	// space that is free.
	maxBytes = 10 << 30
	// expiry is how long a blob is of use: registries purge uploads about then.
	expiry = 72 * time.Hour
	// step is how often the space is looked at while writing.
	step = 16 << 20
)

// ErrFull says that a blob does not fit.
var ErrFull = errors.New("the spool is full")

// errUnfit says that a place is no disk.
var errUnfit = errors.New("it is in memory, not on a disk")

// Dir is a directory of blobs, shared with other processes. It is safe for
// concurrent use.
type Dir struct {
	path string
	max  int64

	mu      sync.Mutex
	held    int64         // bytes of blobs of this process that wait to be delivered
	changed chan struct{} // closed when held gets less
}

// Open makes a spool in dir, in a directory of its own that is private to this
// user, and deletes blobs of it that are too old and those that dead processes
// left half written. Other files stay, whoever created them. max bounds its
// bytes further; 0 does not. The error says why there can be no spool there.
func Open(dir string, max int64) (*Dir, error) {
	path, err := owndir.Make(dir, owndir.Spool)
	if err != nil {
		return nil, err
	}
	if inMemory(path) {
		return nil, fmt.Errorf("%s: %w", path, errUnfit)
	}
	if max <= 0 || max > maxBytes {
		max = maxBytes
	}
	d := &Dir{path: path, max: max, changed: make(chan struct{})}
	d.sweep(time.Now())
	return d, nil
}

// sweep removes what nobody will ask for. What another process is at work on is
// locked and stays.
func (d *Dir) sweep(now time.Time) {
	all, err := os.ReadDir(d.path)
	if err != nil {
		return
	}
	for _, e := range all {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		if owndir.IsTemp(e.Name()) || isBlob(e.Name()) && now.Sub(fi.ModTime()) > expiry {
			d.remove(e.Name())
		}
	}
}

// Drop deletes a blob that an earlier process left and the registry has by now,
// unless another process is delivering it.
func (d *Dir) Drop(dgst digest.Digest) {
	if dgst.Validate() == nil {
		d.remove(name(dgst))
	}
}

// remove deletes a file unless somebody uses it.
func (d *Dir) remove(name string) {
	f, err := openToLock(filepath.Join(d.path, name))
	if err != nil {
		return
	}
	defer f.Close()
	if lock(f, true) {
		removeOpen(f, f.Name()) // whoever was faster
	}
}

// openToLock opens a file for writing too: over NFS only such a one can be
// locked for its holder alone (flock(2)).
func openToLock(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }

// room is how many bytes more may be written.
func (d *Dir) room() int64 {
	used := int64(0)
	all, err := os.ReadDir(d.path)
	if err != nil {
		return 0
	}
	for _, e := range all {
		if fi, err := e.Info(); err == nil {
			used += fi.Size()
		}
	}
	free, _ := tempfile.FreeAt(d.path)
	// Half of what would be free without the spool.
	return min(d.max, (free+used)/2) - used
}

func name(dgst digest.Digest) string { return strings.Replace(string(dgst), ":", "-", 1) }

// isBlob reports whether name gives this file name to some blob.
func isBlob(file string) bool {
	return digest.Digest(strings.Replace(file, "-", ":", 1)).Validate() == nil
}

// Writer is a blob that is being written.
type Writer struct {
	d     *Dir
	ctx   context.Context // of Create: ends a wait for space
	f     *os.File
	n     int64
	grant int64 // bytes that are known to fit
}

// Create begins a blob. The context ends the wait for space, see Write.
func (d *Dir) Create(ctx context.Context) (*Writer, error) {
	f, err := owndir.CreateTemp(d.path)
	if err != nil {
		return nil, err
	}
	lock(f, false)
	return &Writer{d: d, ctx: ctx, f: f}, nil
}

// Write waits where there is no space but some will be, once blobs of this
// process are delivered. It is ErrFull where that is of no use.
func (w *Writer) Write(p []byte) (int, error) {
	for w.grant < int64(len(p)) {
		w.d.mu.Lock()
		held, changed := w.d.held, w.d.changed
		w.d.mu.Unlock()
		if w.d.room() >= step+int64(len(p)) {
			w.grant = step + int64(len(p))
			break
		}
		if held == 0 {
			return 0, ErrFull
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			return 0, context.Cause(w.ctx)
		}
	}
	n, err := w.f.Write(p)
	w.grant -= int64(n)
	w.n += int64(n)
	if err != nil && tempfile.IsFull(err) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return n, err
}

// Discard gives up.
func (w *Writer) Discard() {
	removeOpen(w.f, w.f.Name()) // swept later, where it fails
	w.f.Close()
}

// Keep makes the blob one of the spool. The caller knows its digest.
func (w *Writer) Keep(dgst digest.Digest) (*Blob, error) {
	to := filepath.Join(w.d.path, name(dgst))
	f, err := renameOpen(w.f, to)
	if err != nil {
		w.Discard()
		return nil, err
	}
	return w.d.blob(f, to, dgst, w.n), nil
}

func (d *Dir) blob(f *os.File, path string, dgst digest.Digest, size int64) *Blob {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held += size
	return &Blob{Digest: dgst, Size: size, d: d, f: f, path: path}
}

// Get gives a blob that an earlier process left, if it has the digest. All of
// it is read.
func (d *Dir) Get(ctx context.Context, dgst digest.Digest, size int64) (*Blob, bool) {
	return d.get(ctx, dgst, size, func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
}

// GetLayer is Get for the blob of a layer. Whoever names the blob may be wrong
// about which layer it holds, so GetLayer decompresses the blob too: what it
// gives has the diffID.
func (d *Dir) GetLayer(ctx context.Context, diffID, dgst digest.Digest, size int64) (*Blob, bool) {
	if diffID.Validate() != nil {
		return nil, false
	}
	return d.get(ctx, dgst, size, func(r io.Reader) error {
		plain, err := saved.Decompress(r)
		if err != nil {
			return err
		}
		defer plain.Close()
		v := diffID.Verifier()
		if _, err := io.Copy(v, io.LimitReader(plain, saved.MaxLayer)); err != nil {
			return err
		}
		if !v.Verified() {
			return fmt.Errorf("it is not the layer %s", diffID)
		}
		return nil
	})
}

// get gives a blob if it has the digest and check, which reads all of it,
// does not fail.
func (d *Dir) get(ctx context.Context, dgst digest.Digest, size int64, check func(io.Reader) error) (*Blob, bool) {
	if dgst.Validate() != nil {
		return nil, false
	}
	path := filepath.Join(d.path, name(dgst))
	f, err := openToLock(path)
	if err != nil {
		return nil, false
	}
	lock(f, false)
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != size || !whole(ctx, f, dgst, check) {
		f.Close()
		if ctx.Err() == nil {
			d.remove(name(dgst))
		}
		return nil, false
	}
	return d.blob(f, path, dgst, size), true
}

// whole reports whether a file has a digest and passes a check.
func whole(ctx context.Context, f *os.File, dgst digest.Digest, check func(io.Reader) error) bool {
	v := dgst.Verifier()
	r := io.TeeReader(saved.Cancellable(ctx, f), v)
	if check(r) != nil {
		return false
	}
	_, err := io.Copy(io.Discard, r) // what a decompressor left
	return err == nil && v.Verified()
}

// Blob is a blob of the spool that this process delivers.
type Blob struct {
	Digest digest.Digest
	Size   int64

	d    *Dir
	f    *os.File // holds the lock
	path string
	once sync.Once
}

// Open is that of resume.Blob. Another process that made the same blob may have
// put its own in the place of this one, or taken it away.
func (b *Blob) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	if f, err := os.Open(b.path); err == nil {
		if b.is(f.Stat()) {
			if _, err := f.Seek(offset, io.SeekStart); err == nil {
				return f, nil
			}
		}
		f.Close()
	}
	return io.NopCloser(io.NewSectionReader(b.f, offset, b.Size-offset)), nil
}

// is reports whether a file is the blob's own.
func (b *Blob) is(fi os.FileInfo, err error) bool {
	own, ownErr := b.f.Stat()
	return err == nil && ownErr == nil && os.SameFile(fi, own)
}

// Delivered removes the blob, unless another process is delivering it too.
func (b *Blob) Delivered() {
	b.release(func() {
		if lock(b.f, true) && b.is(os.Lstat(b.path)) {
			removeOpen(b.f, b.path) // swept later, where it fails
		}
	})
}

// Keep lets go of the blob and leaves it to a later process.
func (b *Blob) Keep() { b.release(func() {}) }

func (b *Blob) release(f func()) {
	b.once.Do(func() {
		f()
		b.f.Close()
		b.d.mu.Lock()
		defer b.d.mu.Unlock()
		b.d.held -= b.Size
		close(b.d.changed)
		b.d.changed = make(chan struct{})
	})
}
