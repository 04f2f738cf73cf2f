// SPDX-License-Identifier: Apache-2.0

// Package tempfile keeps bytes that cannot be read twice, in memory while they are
// few and then in a temporary file, within a bound and half of the free disk.
//
// A [File] has one writer and any number of readers, which may follow the writer:
// a reader waits for bytes that are still to come, and the writer, if it is asked
// to, waits for a reader that is behind. The file has no name where the system
// allows that, so nothing of it outlives the process.
package tempfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/rpush-go/rpush/internal/owndir"
)

// ErrFull says that bytes do not fit within the quota, or on the disk.
var ErrFull = errors.New("there is no room for a temporary file")

// Quota bounds what several files hold together. It is safe for concurrent use.
type Quota struct {
	limit int64

	mu   sync.Mutex
	used int64
	free int64 // half of what the disk had when the first file was made; 0 if not known
}

// NewQuota returns a quota of so many bytes. As long as there is a file on disk,
// it is also at most half of the space that was free when the first was made.
func NewQuota(bytes int64) *Quota { return &Quota{limit: max(bytes, 0)} }

// Limit is how many bytes may be held at most.
func (q *Quota) Limit() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.max()
}

func (q *Quota) max() int64 {
	if q.free > 0 {
		return min(q.limit, q.free)
	}
	return q.limit
}

func (q *Quota) take(n int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used+n > q.max() {
		return false
	}
	q.used += n
	return true
}

func (q *Quota) giveBack(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used -= n; q.used == 0 {
		q.free = 0
	}
}

// on takes note of the disk that a file is on.
func (q *Quota) on(f *os.File) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free > 0 {
		return
	}
	if free, ok := Free(f); ok {
		q.free = max(free/2, 1)
	}
}

// Options are those of New.
type Options struct {
	// Dir is where the file goes. It must exist. Empty is DefaultDir.
	Dir string
	// Quota bounds this file together with others. It must not be nil.
	Quota *Quota
	// Memory is how many bytes are kept in memory before there is a file.
	Memory int64
	// Ahead is how many bytes Write may be ahead of the reader that is furthest,
	// so that a slow reader slows the writer down. 0 is no bound.
	Ahead int64
}

// File holds what is written to it, and can be read from any offset, also while it
// is written. Write and End are for one goroutine; all else is safe for
// concurrent use.
type File struct {
	o Options

	mu      sync.Mutex
	changed chan struct{} // closed at the next change; nil if nobody waits
	mem     []byte
	f       *os.File
	size    int64
	read    int64 // the furthest that a reader has come
	end     error // why no more will be written: io.EOF after a whole file
	closed  bool
}

// New returns an empty File. There is no file on disk before one is needed.
func New(o Options) *File { return &File{o: o} }

// ErrClosed says that a File was used after Close.
var ErrClosed = errors.New("the temporary file was closed")

// Write appends p, all of it or nothing. It waits for readers as Options.Ahead
// says, until ctx is done; the error is then its cause. ErrFull means that p does
// not fit; what was written before stays.
func (f *File) Write(ctx context.Context, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.o.Ahead > 0 && !f.closed && f.size > f.read && f.size+int64(len(p))-f.read > f.o.Ahead {
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
	switch {
	case f.closed:
		return ErrClosed
	case f.end != nil:
		return errors.New("the temporary file was ended")
	case !f.o.Quota.take(int64(len(p))):
		return ErrFull
	}
	if err := f.put(p); err != nil {
		f.o.Quota.giveBack(int64(len(p)))
		if isFull(err) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	f.size += int64(len(p))
	f.wake()
	return nil
}

func (f *File) put(p []byte) error {
	if f.f == nil && f.size+int64(len(p)) <= f.o.Memory {
		f.mem = append(f.mem, p...)
		return nil
	}
	if err := f.spill(); err != nil {
		return err
	}
	_, err := f.f.WriteAt(p, f.size)
	return err
}

// spill makes the file on disk.
func (f *File) spill() error {
	if f.f != nil {
		return nil
	}
	dir := f.o.Dir
	if dir == "" {
		dir = DefaultDir()
	}
	file, err := owndir.CreateTemp(dir)
	if err != nil {
		return err
	}
	_ = os.Remove(file.Name()) // Windows cannot, see discard
	if _, err := file.Write(f.mem); err != nil {
		discard(file)
		return err
	}
	f.o.Quota.on(file)
	f.f, f.mem = file, nil
	return nil
}

func discard(file *os.File) {
	file.Close()
	_ = os.Remove(file.Name()) // gone already where that was possible
}

// End says that no more will be written: readers get err after the last byte, or
// io.EOF if it is nil.
func (f *File) End(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end == nil {
		f.end = err
		if err == nil {
			f.end = io.EOF
		}
		f.wake()
	}
}

// Close deletes the file, ends all readers and gives its bytes back to the quota.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.o.Quota.giveBack(f.size)
	f.mem = nil
	if f.f != nil {
		discard(f.f)
	}
	f.wake()
	return nil
}

// Size is how many bytes were written.
func (f *File) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// OnDisk returns the file on disk, and makes it if all is in memory still. It is
// closed by Close; its position belongs to the caller.
func (f *File) OnDisk() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	err := f.spill()
	return f.f, err
}

// ReadAt reads what was written, and does not wait for more. It is io.ReaderAt.
func (f *File) ReadAt(p []byte, offset int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readAt(p, offset)
}

func (f *File) readAt(p []byte, offset int64) (n int, err error) {
	switch {
	case f.closed:
		return 0, ErrClosed
	case offset >= f.size:
		return 0, io.EOF
	case f.f == nil:
		n = copy(p, f.mem[offset:])
	default:
		n, err = f.f.ReadAt(p[:min(int64(len(p)), f.size-offset)], offset)
	}
	if n < len(p) && (err == nil || n > 0) {
		err = io.EOF
	}
	f.read = max(f.read, offset+int64(n))
	return n, err
}

// Open returns a reader from offset, which waits for bytes that are still to be
// written, until ctx is done. Close ends that reader only.
func (f *File) Open(ctx context.Context, offset int64) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	return &reader{f: f, ctx: ctx, cancel: cancel, at: offset}
}

type reader struct {
	f      *File
	ctx    context.Context // of Open
	cancel context.CancelCauseFunc
	at     int64
}

func (r *reader) Read(p []byte) (int, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := f.readAt(p, r.at)
		switch {
		case n > 0:
			r.at += int64(n)
			f.wake()
			return n, nil
		case !errors.Is(err, io.EOF):
			return 0, err
		case f.end != nil:
			return 0, f.end
		}
		if err := f.wait(r.ctx); err != nil {
			return 0, err
		}
	}
}

func (r *reader) Close() error {
	r.cancel(ErrClosed)
	return nil
}

// wait waits for a change. The lock is free meanwhile.
func (f *File) wait(ctx context.Context) error {
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	changed := f.changed
	f.mu.Unlock()
	defer f.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *File) wake() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// DefaultDir is where large temporary files go: /tmp is in memory on many
// systems.
func DefaultDir() string {
	if os.Getenv("TMPDIR") == "" {
		if st, err := os.Stat("/var/tmp"); err == nil && st.IsDir() {
			return "/var/tmp"
		}
	}
	return os.TempDir()
}

// FreeAt is Free for a directory by its path.
func FreeAt(dir string) (bytes int64, ok bool) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer d.Close()
	return Free(d)
}

// IsFull reports whether an error of writing means that there is no more space.
func IsFull(err error) bool { return errors.Is(err, ErrFull) || isFull(err) }
