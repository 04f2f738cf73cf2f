// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/tempfile"
	"github.com/rpush-go/rpush/internal/wire"
)

// passed is the body of another client's request, which can be read again.
// Offsets count from its beginning. Not for concurrent use.
type passed interface {
	// first is what the client itself would have sent. It is called once.
	first() wire.Body
	// open reads the body again, from offset. It ends what was opened before.
	open(ctx context.Context, offset int64) (io.ReadCloser, error)
	// kept is the least offset that open can go back to.
	kept() int64
	// length reads as much as is needed to say how long the body is.
	length(ctx context.Context) (int64, error)
	// close gives everything back, the client's own body included.
	close()
}

// newPassed says how the body of req can be read again.
func (t *transporter) newPassed(req *http.Request) passed {
	n := req.ContentLength
	if n == 0 {
		n = -1 // net/http takes a body of length 0 for one of unknown length
	}
	if req.GetBody != nil && n >= 0 {
		return &remade{req: req, n: n, last: req.Body}
	}
	if f, ok := req.Body.(*os.File); ok && n >= 0 {
		if at, ok := wire.Position(f); ok {
			return &lent{f: f, at: at, n: n}
		}
	}
	return newSpool(req.Body, n, t.spools)
}

// remade is a body that its client makes again, if the tail of the one before does
// not have what is needed. The one before is closed first: containerd's is a pipe
// whose writer looks for the next only then.
type remade struct {
	req *http.Request
	n   int64

	mu   sync.Mutex // net/http may make one more while it is being given up
	last io.Closer
	tail *tail // of last; nil of a file, which has no need of it
}

func (r *remade) first() wire.Body {
	r.mu.Lock()
	defer r.mu.Unlock()
	if isFile(r.req.Body) {
		b := wire.Whole(wire.NewBody(r.req.Body, r.n))
		r.last = b // which passes the first Close on only
		return b
	}
	b := &closedOnce{ReadCloser: r.req.Body}
	r.last, r.tail = b, newTail(b, 0)
	return wire.Whole(wire.NewBody(r.tail.open(0), r.n))
}

// isFile reports whether a body is a file, which wire can send by itself.
func isFile(b io.ReadCloser) bool {
	_, part := b.(interface{ File() *os.File })
	_, file := b.(*os.File)
	return file || part
}

func (r *remade) kept() int64 { return 0 }

func (r *remade) length(context.Context) (int64, error) { return r.n, nil }

func (r *remade) close() { r.now(nil, nil) }

// now closes the body before b, whose tail is t.
func (r *remade) now(b io.Closer, t *tail) {
	r.mu.Lock()
	last := r.last
	r.last, r.tail = b, t
	r.mu.Unlock()
	if last != nil {
		last.Close()
	}
}

// readOn returns a reader of the newest body from offset, or nil if that is not
// remembered.
func (r *remade) readOn(offset int64) io.ReadCloser {
	r.mu.Lock()
	t := r.tail
	r.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.open(offset)
}

// again makes the body for one more attempt of net/http's own.
func (r *remade) again() (wire.Body, error) {
	if b := r.readOn(0); b != nil {
		return wire.Whole(wire.NewBody(b, r.n)), nil
	}
	r.now(nil, nil)
	b, err := r.req.GetBody()
	if err != nil {
		return nil, err
	}
	body := wire.Whole(wire.NewBody(b, r.n))
	r.now(body, nil)
	return body, nil
}

func (r *remade) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if b := r.readOn(offset); b != nil {
		return b, nil
	}
	r.now(nil, nil)
	type made struct {
		b   io.ReadCloser
		err error
	}
	done := make(chan made, 1)
	go func() { // a pipe waits for its writer to look
		b, err := r.req.GetBody()
		done <- made{b, err}
	}()
	var m made
	select {
	case m = <-done:
	case <-ctx.Done():
		go func() {
			if m := <-done; m.err == nil {
				m.b.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
	if m.err != nil {
		return nil, m.err
	}
	b, file := m.b, isFile(m.b)
	if _, ok := b.(*os.File); !ok { // which bears it, and keeps sendfile
		b = &closedOnce{ReadCloser: b}
	}
	r.now(b, nil)
	if err := skip(ctx, b, offset); err != nil {
		r.now(nil, nil)
		return nil, err
	}
	if !file {
		t := newTail(b, offset)
		r.mu.Lock()
		r.tail = t
		r.mu.Unlock()
		return t.open(offset), nil
	}
	return b, nil
}

// closedOnce passes the first Close on only.
type closedOnce struct {
	io.ReadCloser
	once sync.Once
	err  error
}

func (c *closedOnce) Close() error {
	c.once.Do(func() { c.err = c.ReadCloser.Close() })
	return c.err
}

// skip goes to offset, by reading where there is no other way.
func skip(ctx context.Context, r io.ReadCloser, offset int64) error {
	if offset == 0 {
		return nil
	}
	if f, ok := r.(*os.File); ok {
		if at, ok := wire.Position(f); ok {
			_, err := f.Seek(at+offset, io.SeekStart)
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { r.Close() })()
	_, err := io.CopyN(io.Discard, r, offset)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// lent is a body that is a file, which has no other copy: oras-go's. It is
// closed only when the upload is over.
type lent struct {
	f     *os.File
	at, n int64
}

func (l *lent) first() wire.Body { return wire.Whole(wire.Borrow(l.f, l.n)) }

func (l *lent) kept() int64 { return 0 }

func (l *lent) length(context.Context) (int64, error) { return l.n, nil }

func (l *lent) close() { l.f.Close() }

// open gives each attempt a file of its own, for sendfile; if there is none
// under that name any more, a reader that shares no position.
func (l *lent) open(_ context.Context, offset int64) (io.ReadCloser, error) {
	if f, err := os.Open(l.f.Name()); err == nil {
		if same(f, l.f) {
			if _, err := f.Seek(l.at+offset, io.SeekStart); err == nil {
				return f, nil
			}
		}
		f.Close()
	}
	return io.NopCloser(io.NewSectionReader(l.f, l.at+offset, l.n-offset)), nil
}

func same(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// spool keeps what was read of a body that cannot be read again, within a quota.
type spool struct {
	src io.ReadCloser
	n   int64 // -1 where it is not known

	reading chan struct{} // held by whoever reads src
	closing sync.Once
	begin   int64 // where src stood at first, -1 where it cannot be told
	reused  bool  // after a 401, by a client that may have rewound it
	// covers, unless nil, is called before bytes are handed out that lie behind
	// covered. Both want reading.
	covers  func(size int64, sum digest.Digest)
	covered int64

	mu    sync.Mutex
	held  *tempfile.File // the first bytes of the body
	tail  []byte         // those behind them that did not fit while they were read ahead
	taken int64          // bytes read of src
	lost  bool           // what was read is not kept
	end   error          // how src ended
	hash  hash.Hash      // of what was taken, nil if nobody wants to know
	early bool           // what is read now is not handed out yet
}

// inMemory is how much is kept before there is a file.
const inMemory = 32 << 10

func newSpool(src io.ReadCloser, n int64, o tempfile.Options) *spool {
	o.Memory = inMemory
	s := &spool{src: src, n: n, begin: -1, lost: n > o.Quota.Limit(), held: tempfile.New(o), reading: make(chan struct{}, 1)}
	if k, ok := src.(io.Seeker); ok {
		if at, err := k.Seek(0, io.SeekCurrent); err == nil {
			s.begin = at
		}
	}
	return s
}

// reuse is called when the client sends the same body again. Where it can be
// seen that it was rewound, that is undone; else surplus finds out.
func (s *spool) reuse() {
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	s.reused = true
	k, ok := s.src.(io.Seeker)
	if !ok || s.begin < 0 {
		return
	}
	s.mu.Lock()
	want := s.begin + s.taken
	s.mu.Unlock()
	if at, err := k.Seek(0, io.SeekCurrent); err == nil && at != want {
		k.Seek(want, io.SeekStart) //nolint:errcheck // surplus finds out
	}
}

func (s *spool) closeSource() { s.closing.Do(func() { s.src.Close() }) }

func (s *spool) first() wire.Body {
	return wire.Whole(wire.NewBody(&spoolReader{s: s, done: make(chan struct{})}, s.n))
}

func (s *spool) open(_ context.Context, offset int64) (io.ReadCloser, error) {
	return &spoolReader{s: s, at: offset, done: make(chan struct{})}, nil
}

func (s *spool) kept() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost {
		return s.taken
	}
	return 0
}

func (s *spool) length(ctx context.Context) (int64, error) {
	if s.n >= 0 {
		return s.n, nil
	}
	s.mu.Lock()
	at := s.taken
	s.mu.Unlock()
	r := &spoolReader{s: s, at: at, done: make(chan struct{})}
	defer context.AfterFunc(ctx, func() {
		r.Close()       //nolint:errcheck // never fails
		s.closeSource() // which alone ends a Read that waits
	})()
	n, err := io.Copy(io.Discard, r)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return 0, err
	}
	s.n = at + n
	return s.n, nil
}

func (s *spool) close() {
	s.closeSource()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
}

// drop forgets what was kept.
func (s *spool) drop() {
	s.lost = true
	_ = s.held.Close()
}

// keep adds what was read of src.
func (s *spool) keep(p []byte) {
	s.taken += int64(len(p))
	if s.lost || len(p) == 0 {
		return
	}
	if s.hash != nil {
		s.hash.Write(p)
	}
	switch {
	case s.tail != nil:
		s.drop()
	// Nobody is waited for without Options.Ahead.
	case s.held.Write(context.Background(), p) == nil:
	case s.early:
		s.tail = bytes.Clone(p)
	default:
		s.drop()
	}
}

// read gives what is kept from offset; ok is false where src has to be read.
func (s *spool) read(p []byte, at int64) (n int, err error, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case at < s.taken && s.lost:
		return 0, errNotKept, true
	case at >= s.held.Size() && at < s.taken:
		return copy(p, s.tail[at-s.held.Size():]), nil, true
	case at < s.held.Size():
		n, err := s.held.ReadAt(p, at)
		if n > 0 {
			err = nil
		}
		return n, err, true
	case s.end != nil:
		return 0, s.end, true
	}
	return 0, nil, false
}

var errRewound = errors.New("the body of the request was rewound without being made again")

var errNotKept = errors.New("the body of the request was too large to be kept, and cannot be read again")

// spoolReader reads a spooled body from one offset. Close ends it, and nothing
// else.
type spoolReader struct {
	s    *spool
	at   int64
	once sync.Once
	done chan struct{}
}

func (r *spoolReader) Read(p []byte) (int, error) {
	s := r.s
	n, err, ok := s.read(p, r.at)
	if ok || len(p) == 0 {
		r.at += int64(n)
		return n, err
	}
	select { // a reader that was given up may still be in src
	case s.reading <- struct{}{}:
	case <-r.done:
		return 0, wire.ErrSpent
	}
	defer func() { <-s.reading }()
	if n, err, ok = s.read(p, r.at); ok { // it has brought something
		r.at += int64(n)
		return n, err
	}
	for s.covers != nil {
		if !s.ahead() {
			s.covers = nil // no more room: what is read from now on goes out at once
		} else if n, err, ok = s.read(p, r.at); ok {
			r.at += int64(n)
			return n, err
		}
	}
	for {
		gap := s.before(r.at)
		if gap > 0 {
			_, err = s.more(make([]byte, min(gap, 32<<10)))
		} else {
			n, err = s.more(p)
		}
		if gap <= 0 || err != nil {
			r.at += int64(n)
			return n, err
		}
	}
}

// before is how much of the body has still to be read before offset at.
func (s *spool) before(at int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return at - s.taken
}

// more reads on in src.
func (s *spool) more(p []byte) (int, error) {
	n, err := s.src.Read(p)
	if err == nil && s.surplus(n) {
		n, err = 0, errRewound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(p[:n])
	if err != nil {
		s.end = err
	}
	return n, err
}

// surplus reports whether a body that is used again goes on behind its end, n
// bytes further: then it was rewound, and what was read of it is not what was
// asked for.
func (s *spool) surplus(n int) bool {
	s.mu.Lock()
	last := s.taken+int64(n) == s.n
	s.mu.Unlock()
	if !s.reused || !last {
		return false
	}
	m, _ := io.ReadFull(s.src, make([]byte, 1))
	return m > 0
}

func (r *spoolReader) Close() error {
	r.once.Do(func() { close(r.done) })
	return nil
}
