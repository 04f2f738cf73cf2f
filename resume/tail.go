// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"errors"
	"io"
	"sync"

	"github.com/rpush-go/rpush/internal/wire"
)

// tailSize is how many bytes of a body are remembered behind where it was read up
// to, in bytes. After a break the registry holds all but what was on its way: what
// kernels and proxies buffered.
const tailSize = 8 << 20

var errBeforeTail = errors.New("these bytes of the body are not kept any more")

// tail reads a body once and remembers the last bytes of it, so that most breaks
// need no second body: a client that counts what it reads, as
// remote.WithProgress does, counts those bytes once. It is safe for concurrent use.
type tail struct {
	src     io.ReadCloser
	reading chan struct{} // held by whoever reads src

	mu    sync.Mutex
	ring  []byte // byte i of the body is at i % tailSize
	first int64  // the first byte that is remembered
	taken int64  // bytes read of the body
	end   error  // how src ended
}

// newTail begins at offset of a body, where src stands.
func newTail(src io.ReadCloser, offset int64) *tail {
	return &tail{src: src, reading: make(chan struct{}, 1), first: offset, taken: offset}
}

// open returns a reader from offset, or nil if that is not remembered.
func (t *tail) open(offset int64) io.ReadCloser {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if offset < t.first || offset > t.taken {
		return nil
	}
	return &tailReader{t: t, at: offset, done: make(chan struct{})}
}

// remember notes what was read.
func (t *tail) remember(p []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if need := min(t.taken-t.first+int64(len(p)), tailSize); int64(len(t.ring)) < need && len(t.ring) < tailSize {
		t.grow(need)
	}
	b := p[max(0, len(p)-tailSize):]
	for at := t.taken + int64(len(p)-len(b)); len(b) > 0; {
		n := copy(t.ring[at%int64(len(t.ring)):], b)
		b, at = b[n:], at+int64(n)
	}
	t.taken += int64(len(p))
	t.first = max(t.first, t.taken-int64(len(t.ring)))
	if err != nil {
		t.end = err
	}
}

// grow makes the ring larger, up to tailSize.
func (t *tail) grow(need int64) {
	larger := make([]byte, min(max(need, 2*int64(len(t.ring)), 64<<10), tailSize))
	for at := t.first; at < t.taken; {
		from := t.ring[at%int64(len(t.ring)):]
		from = from[:min(int64(len(from)), t.taken-at)]
		n := copy(larger[at%int64(len(larger)):], from)
		at += int64(n)
	}
	t.ring = larger
}

// recall copies what is remembered from offset at. ok is false if src has to be
// read.
func (t *tail) recall(p []byte, at int64) (n int, err error, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case at < t.first:
		return 0, errBeforeTail, true
	case at < t.taken:
		from := t.ring[at%int64(len(t.ring)):]
		return copy(p, from[:min(int64(len(from)), t.taken-at)]), nil, true
	case t.end != nil:
		return 0, t.end, true
	}
	return 0, nil, false
}

// tailReader reads a body from one offset. Close ends the reader only: it may be
// one that was given up.
type tailReader struct {
	t    *tail
	at   int64
	once sync.Once
	done chan struct{}
}

func (r *tailReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := r.t
	select {
	case <-r.done:
		return 0, wire.ErrSpent
	case t.reading <- struct{}{}: // a reader that was given up may still be in src
	}
	defer func() { <-t.reading }()
	select {
	case <-r.done:
		return 0, wire.ErrSpent
	default:
	}
	n, err, ok := t.recall(p, r.at)
	if !ok {
		n, err = t.src.Read(p)
		t.remember(p[:n], err)
	}
	r.at += int64(n)
	return n, err
}

func (r *tailReader) Close() error {
	r.once.Do(func() { close(r.done) })
	return nil
}
