// SPDX-License-Identifier: Apache-2.0

package tempfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
)

func write(t *testing.T, f *File, b []byte) {
	t.Helper()
	if err := f.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestReadAtAnyOffset(t *testing.T) {
	in := bytes.Repeat([]byte("0123456789"), 1000)
	for _, memory := range []int64{0, 1, 99, 100, 101, 1 << 20} {
		q := NewQuota(1 << 20)
		f := New(Options{Dir: t.TempDir(), Quota: q, Memory: memory})
		for i := 0; i < len(in); i += 100 {
			write(t, f, in[i:i+100])
		}
		f.End(nil)
		for _, at := range []int64{0, 1, 99, 100, 101, 9999, 10000, 10001} {
			r := f.Open(t.Context(), at)
			got, err := io.ReadAll(r)
			if want := in[min(at, int64(len(in))):]; err != nil || !bytes.Equal(got, want) {
				t.Errorf("memory %d, from %d: got %d bytes, %v, want %d", memory, at, len(got), err, len(want))
			}
			r.Close()
			p := make([]byte, 10)
			if n, err := f.ReadAt(p, at); n != int(max(0, min(10, int64(len(in))-at))) || (n < 10) != errors.Is(err, io.EOF) {
				t.Errorf("memory %d: ReadAt(%d) = %d, %v", memory, at, n, err)
			}
		}
		if f.Size() != int64(len(in)) || q.used != int64(len(in)) {
			t.Errorf("memory %d: size %d, used %d", memory, f.Size(), q.used)
		}
		f.Close()
		if q.used != 0 || q.free != 0 {
			t.Errorf("memory %d: after Close %d are used", memory, q.used)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	f := New(Options{Dir: dir, Quota: NewQuota(100), Memory: 10})
	write(t, f, make([]byte, 10))
	if f.f != nil {
		t.Error("there is a file for what fits in memory")
	}
	write(t, f, []byte{0})
	if f.f == nil {
		t.Error("there is no file")
	}
	r := f.Open(t.Context(), 0)
	f.Close()
	f.Close()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
	if err := f.Write(t.Context(), []byte{0}); !errors.Is(err, ErrClosed) {
		t.Errorf("writing after Close: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestQuotaIsShared(t *testing.T) {
	q := NewQuota(100)
	a, b := New(Options{Dir: t.TempDir(), Quota: q}), New(Options{Quota: q, Memory: 1000})
	write(t, a, make([]byte, 60))
	write(t, b, make([]byte, 40))
	for _, f := range []*File{a, b} {
		if err := f.Write(t.Context(), []byte{0}); !IsFull(err) {
			t.Errorf("over the quota: %v", err)
		}
	}
	if n, err := a.ReadAt(make([]byte, 60), 0); n != 60 || err != nil {
		t.Errorf("what was written is gone: %d, %v", n, err)
	}
	a.Close()
	write(t, b, make([]byte, 60))
	b.Close()
	if q := NewQuota(-1); q.Limit() != 0 {
		t.Errorf("a negative quota is %d", q.Limit())
	}
}

// A quota is at most half of the disk, for as long as there are files.
func TestQuotaOfAFullDisk(t *testing.T) {
	q := NewQuota(1 << 62)
	f := New(Options{Dir: t.TempDir(), Quota: q})
	if _, err := f.OnDisk(); err != nil {
		t.Fatal(err)
	}
	if _, ok := FreeAt(t.TempDir()); ok && q.Limit() == 1<<62 {
		t.Error("the disk does not count")
	}
	q.free = 10
	if err := f.Write(t.Context(), make([]byte, 11)); !IsFull(err) {
		t.Errorf("got %v", err)
	}
	f.Close()
}

func TestWithoutADirectory(t *testing.T) {
	q := NewQuota(100)
	f := New(Options{Dir: "/nowhere/at/all", Quota: q})
	if err := f.Write(t.Context(), []byte{0}); !errors.Is(err, os.ErrNotExist) || q.used != 0 {
		t.Errorf("got %v, %d used", err, q.used)
	}
}

// A reader waits for what is still to come, and gets the end that the writer got.
func TestReaderFollowsTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Dir: t.TempDir(), Quota: NewQuota(100), Memory: 2})
		broken := errors.New("broken")
		var got bytes.Buffer
		var end error
		go func() { _, end = io.Copy(&got, f.Open(t.Context(), 1)) }()
		for i, b := range []byte("abcd") {
			write(t, f, []byte{b})
			synctest.Wait()
			if got.String() != "bcd"[:i] {
				t.Errorf("after %d bytes: %q", i+1, got.String())
			}
		}
		f.End(broken)
		f.End(nil)
		synctest.Wait()
		if !errors.Is(end, broken) {
			t.Errorf("the end is %v", end)
		}
		f.Close()
	})
}

// Waiting ends with the context, with Close of the reader, and of the file.
func TestWaitingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		f := New(Options{Quota: NewQuota(100), Memory: 10, Ahead: 2})
		readers := []io.ReadCloser{f.Open(ctx, 0), f.Open(t.Context(), 0), f.Open(t.Context(), 0)}
		ends := make([]error, len(readers))
		for i, r := range readers {
			go func() { _, ends[i] = r.Read(make([]byte, 1)) }()
		}
		synctest.Wait()
		cancel(enough)
		readers[1].Close()
		synctest.Wait()
		f.Close()
		synctest.Wait()
		for i, want := range []error{enough, ErrClosed, ErrClosed} {
			if !errors.Is(ends[i], want) {
				t.Errorf("reader %d: %v, want %v", i, ends[i], want)
			}
		}
	})
}

// A writer that is too far ahead waits for a reader.
func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Quota: NewQuota(1000), Memory: 1000, Ahead: 10})
		write(t, f, make([]byte, 30)) // more than that at once, as there is nobody to wait for
		written := 0
		go func() {
			for range 3 {
				write(t, f, make([]byte, 5))
				written++
			}
			f.End(nil)
		}()
		r := f.Open(t.Context(), 0)
		for _, step := range []struct{ read, written int }{{0, 0}, {24, 0}, {1, 1}, {4, 1}, {1, 2}, {10, 3}} {
			if _, err := io.ReadFull(r, make([]byte, step.read)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if written != step.written {
				t.Errorf("after %d more bytes were read %d were written, want %d", step.read, written, step.written)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		g := New(Options{Quota: NewQuota(1000), Memory: 1000, Ahead: 1})
		write(t, g, []byte{0})
		cancel()
		if err := g.Write(ctx, []byte{0}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		f.Close()
		g.Close()
	})
}
