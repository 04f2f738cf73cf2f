// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// What is remembered of a body is what was read, at every offset.
func TestTail(t *testing.T) {
	const size = 2*tailSize + 1000
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	random := rand.New(rand.NewPCG(1, 2))
	for _, start := range []int64{0, 1000} {
		tl := newTail(io.NopCloser(bytes.NewReader(data[start:])), start)
		r := tl.open(start)
		buf := make([]byte, 100<<10)
		for at := start; ; {
			n, err := r.Read(buf[:1+random.IntN(len(buf))])
			if !bytes.Equal(buf[:n], data[at:at+int64(n)]) {
				t.Fatalf("wrong bytes at %d", at)
			}
			if at += int64(n); errors.Is(err, io.EOF) {
				break
			}
			if random.IntN(20) > 0 {
				continue
			}
			// It goes on from an earlier offset.
			back := max(start, tl.taken-random.Int64N(tailSize))
			r.Close()
			if r = tl.open(back); r == nil {
				t.Fatalf("at %d, %d is not remembered", at, back)
			}
			at = back
		}
		for _, gone := range []int64{size - tailSize - 1, size + 1} {
			if tl.open(gone) != nil {
				t.Errorf("opened at %d of %d", gone, size)
			}
		}
		rest, err := io.ReadAll(tl.open(size - tailSize))
		if err != nil || !bytes.Equal(rest, data[size-tailSize:]) {
			t.Errorf("the last %d bytes are %d, %v", tailSize, len(rest), err)
		}
	}
}

// A small body takes little memory.
func TestTailOfASmallBody(t *testing.T) {
	tl := newTail(io.NopCloser(bytes.NewReader(make([]byte, 1000))), 0)
	if _, err := io.Copy(io.Discard, tl.open(0)); err != nil {
		t.Fatal(err)
	}
	if len(tl.ring) > 64<<10 {
		t.Errorf("it takes %d bytes", len(tl.ring))
	}
}
