// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrSpent is returned for a request whose body has been used: some
// authorising transports send a request again after a 401 without being able
// to rewind it. Nothing has been sent then.
var ErrSpent = errors.New("the body of this request has been used already")

var errLonger = errors.New("the body of the request is longer than its ContentLength")

var errEnded = errors.New("the source ended early")

// ShortError says that the source ended, or failed, before the body was
// complete.
type ShortError struct {
	Want, Got int64
	Err       error // nil where the source simply ended
}

func (e *ShortError) Error() string {
	if e.Err != nil {
		return "reading the source: " + e.Err.Error()
	}
	return errEnded.Error()
}

// Unwrap returns what reading the source failed with.
func (e *ShortError) Unwrap() error { return e.Err }

// Body is the body of one attempt: exactly length bytes of a reader that
// nothing else uses. net/http may go on reading it after RoundTrip returned.
type Body interface {
	io.ReadCloser
	// Sent is how many bytes were taken from the source for the connection. While
	// sendfile is at work it may lack what one call moves.
	Sent() int64
	// waiting reports whether it waits for its source.
	waiting() bool
	// take reports whether the body has not been used before, and marks it used.
	take() bool
	// Err is *ShortError if the source, not the connection, is at fault.
	Err() error
}

// used is set once a body has been given to a request.
type used struct{ flag atomic.Bool }

func (u *used) take() bool { return !u.flag.Swap(true) }

// NewBody makes a body of the next length bytes of r, which it closes; all of
// them where length is negative. An *os.File keeps sendfile, and so does a part
// of one: a reader with a method File that gives the file it reads from, at the
// same position.
func NewBody(r io.ReadCloser, length int64) Body {
	f, ok := r.(*os.File)
	if part, is := r.(interface{ File() *os.File }); is {
		f, ok = part.File(), true
	}
	if ok && length >= 0 {
		if start, ok := Position(f); ok {
			return &fileBody{f: f, start: start, end: start + length}
		}
	}
	return newStream(r, length)
}

// Borrow makes a body of the next length bytes of f, which stays open: Close
// only says that the body is done with.
func Borrow(f *os.File, length int64) Body {
	if start, ok := Position(f); ok && length >= 0 {
		return &fileBody{f: f, start: start, end: start + length, borrowed: true}
	}
	return newStream(io.NopCloser(f), length)
}

// Whole makes a body fail whose source goes on behind its length, which is
// looked for as net/http does: by reading once more. It has to be called before
// the body is used.
func Whole(b Body) Body {
	switch b := b.(type) {
	case *fileBody:
		b.whole = true
	case *streamBody:
		b.whole = !b.endless
	}
	return b
}

// Position is where the next Read of f begins; ok is false where f is no
// regular file.
func Position(f *os.File) (at int64, ok bool) {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return 0, false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	return at, err == nil
}

func newStream(r io.ReadCloser, length int64) *streamBody {
	b := &streamBody{r: r, left: length, length: length}
	if length < 0 {
		b.left, b.endless = math.MaxInt64, true
	}
	return b
}

// fileBody reads a part of a file. The file's own position is the only count
// there is, since sendfile moves it without calling Read.
//
// It has no WriteTo, which would hide the file from net's sendfile, and is
// clipped at its end, because net/http reads once more to see whether a body
// is longer than it said.
type fileBody struct {
	used
	f          *os.File
	start, end int64
	borrowed   bool
	whole      bool

	mu     sync.Mutex
	closed bool
	pos    int64 // valid once closed
	err    error
}

func (b *fileBody) Read(p []byte) (int, error) {
	if b.borrowed && b.isClosed() {
		return 0, ErrSpent
	}
	pos, err := b.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, b.fail(err)
	}
	if pos >= b.end && b.whole {
		if n, _ := b.f.ReadAt(make([]byte, 1), b.end); n > 0 {
			return 0, b.fail(errLonger)
		}
	}
	if pos >= b.end {
		return 0, io.EOF
	}
	n, err := b.f.Read(p[:min(int64(len(p)), b.end-pos)])
	if err != nil && !errors.Is(err, io.EOF) {
		return n, b.fail(err)
	}
	return n, err
}

func (b *fileBody) fail(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return ErrSpent
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	return err
}

// SyscallConn is what net's sendfile looks for.
func (b *fileBody) SyscallConn() (syscall.RawConn, error) {
	if b.borrowed && b.isClosed() {
		return nil, ErrSpent
	}
	return b.f.SyscallConn()
}

func (b *fileBody) waiting() bool { return false }

func (b *fileBody) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

func (b *fileBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if pos, err := b.f.Seek(0, io.SeekCurrent); err == nil {
		b.pos = pos
	}
	if st, err := b.f.Stat(); err == nil && b.err == nil && st.Size() < b.end && b.pos < b.end {
		b.err = errEnded
	}
	if b.borrowed {
		return nil
	}
	return b.f.Close()
}

func (b *fileBody) Sent() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	pos := b.pos
	if !b.closed {
		pos, _ = b.f.Seek(0, io.SeekCurrent)
	}
	return min(max(pos, b.start), b.end) - b.start
}

func (b *fileBody) Err() error {
	got := b.Sent()
	b.mu.Lock()
	defer b.mu.Unlock()
	return short(b.err, b.end-b.start, got)
}

// streamBody clips any other reader and counts.
type streamBody struct {
	used
	r       io.ReadCloser
	length  int64
	endless bool // the length is not known
	whole   bool
	sent    atomic.Int64
	closed  atomic.Bool
	asking  atomic.Bool // in r.Read

	reading sync.Mutex // Read; left, ended
	left    int64
	ended   bool

	mu  sync.Mutex
	err error
}

func (b *streamBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.closed.Load() {
		return 0, ErrSpent
	}
	if b.left == 0 {
		return 0, b.surplus()
	}
	b.asking.Store(true)
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.asking.Store(false)
	b.left -= int64(n)
	b.sent.Add(int64(n))
	if errors.Is(err, io.EOF) && b.left > 0 && !b.endless {
		err = errEnded
	}
	b.ended = errors.Is(err, io.EOF)
	if errors.Is(err, io.EOF) && n > 0 && !b.endless {
		err = nil
	}
	b.failed(err)
	return n, err
}

func (b *streamBody) failed(err error) {
	if err != nil && !errors.Is(err, io.EOF) && !b.closed.Load() {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
}

// surplus is how a body ends of which all has been read.
func (b *streamBody) surplus() error {
	if !b.whole || b.ended {
		return io.EOF
	}
	b.asking.Store(true)
	n, err := io.ReadFull(b.r, make([]byte, 1))
	b.asking.Store(false)
	if n > 0 {
		err = errLonger
	}
	b.ended = errors.Is(err, io.EOF)
	b.failed(err)
	return err
}

func (b *streamBody) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	return b.r.Close()
}

func (b *streamBody) waiting() bool { return b.asking.Load() }

func (b *streamBody) Sent() int64 { return b.sent.Load() }

func (b *streamBody) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return short(b.err, b.length, b.sent.Load())
}

func short(err error, want, got int64) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errEnded):
		return &ShortError{Want: want, Got: got}
	default:
		return &ShortError{Want: want, Got: got, Err: err}
	}
}
