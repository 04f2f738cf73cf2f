// SPDX-License-Identifier: Apache-2.0

package compress

import (
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// sample is n bytes that can be compressed, but not to nothing.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefgh"[r.IntN(8)]
	}
	return b
}

// A later process, perhaps on another machine, has to make the same bytes, or
// what the registry holds of a layer would be of no use.
func TestSameBytesWhateverTheProcessorsAndTheWrites(t *testing.T) {
	sizes := []int{0, 1, block - 1, block, block + 1, 5*block + 7}
	if testing.Short() {
		sizes = []int{1, block + 1}
	}
	for _, size := range sizes {
		in := sample(size)
		for _, a := range Algorithms {
			var first []byte
			for _, procs := range []int{1, 2, 7} {
				for _, step := range []int{1 + size, 4096, 100_003} {
					old := runtime.GOMAXPROCS(procs)
					got := pack(t, a, in, step)
					runtime.GOMAXPROCS(old)
					if first == nil {
						first = got
					}
					if !bytes.Equal(got, first) {
						t.Errorf("%s of %d bytes differs with %d processors and writes of %d", a, size, procs, step)
					}
				}
			}
			if got := unpack(t, a, first); !bytes.Equal(got, in) {
				t.Errorf("%s of %d bytes comes back as %d others", a, size, len(got))
			}
		}
	}
}

func pack(t *testing.T, a Algorithm, in []byte, step int) []byte {
	t.Helper()
	out := new(bytes.Buffer)
	w, err := a.Writer(out)
	if err != nil {
		t.Fatal(err)
	}
	for len(in) > 0 {
		n, err := w.Write(in[:min(step, len(in))])
		if err != nil {
			t.Fatal(err)
		}
		in = in[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append([]byte{}, out.Bytes()...)
}

// The standard readers, not those that wrote it.
func unpack(t *testing.T, a Algorithm, b []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(b)
	switch a {
	case Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = z
	case Zstd:
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
