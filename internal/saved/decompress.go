// SPDX-License-Identifier: Apache-2.0

package saved

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the most that a zstd frame may ask to be kept in memory: 8 MiB is
// what every decoder must support (RFC 8878, section 3.1.1.1.2), and what the
// levels up to 19 use. The decoder holds several windows at once if the frames
// of a file have different ones, more than 500 MiB with a limit of 128 MiB.
const maxWindow = 8 << 20

// The formats that Compression knows.
const (
	Gzip  = "gzip"
	Zstd  = "zstd"
	Xz    = "xz"
	Bzip2 = "bzip2"
)

// Compression names the format that the first 6 bytes of a file belong to,
// empty for none.
func Compression(magic []byte) string {
	for _, f := range []struct{ name, magic string }{
		{Gzip, "\x1f\x8b"},
		{Zstd, "\x28\xb5\x2f\xfd"},
		{Xz, "\xfd7zXZ\x00"},
		{Bzip2, "BZh"},
	} {
		if bytes.HasPrefix(magic, []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}

// Decompress gives the plain bytes of r, which may be compressed with gzip or
// zstd. Nothing at all is a layer too, of no files. It does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch kind := Compression(magic); kind {
	case "":
		return io.NopCloser(br), nil
	case Gzip:
		return gzip.NewReader(br)
	case Zstd:
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return &windowed{d.IOReadCloser()}, nil
	default:
		return nil, bad("it is compressed with %s, which is not supported: decompress it first", kind)
	}
}

// windowed says what to do about a window that is too large.
type windowed struct{ io.ReadCloser }

func (w *windowed) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = bad("it is compressed with a zstd window of more than %d MiB: decompress it first (%w)", maxWindow>>20, err)
	}
	return n, err
}
