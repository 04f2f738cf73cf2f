// SPDX-License-Identifier: Apache-2.0

// Package compress makes the blobs of layers: the same bytes for the same
// layer, setting and version of the libraries, whatever the number of
// processors.
package compress

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
)

// Algorithm is how layers are compressed.
type Algorithm string

// The algorithms, as --compression names them.
const (
	Gzip Algorithm = "gzip"
	Zstd Algorithm = "zstd"
	None Algorithm = "none"
)

// Algorithms are all of them.
var Algorithms = []Algorithm{Gzip, Zstd, None}

const (
	level = 6
	block = 512 << 10
	// maxWorkers bounds what is compressed at once: each costs some 2 MiB.
	maxWorkers = 16

	zstdLevel  = zstd.SpeedDefault
	zstdWindow = 4 << 20
)

// Workers is how many goroutines one Writer compresses with. There is never
// more than one of them at work on an image.
func Workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// Key names all that the bytes depend on.
func (a Algorithm) Key() string {
	switch a {
	case Gzip:
		return fmt.Sprintf("gzip level %d, blocks of %d, pgzip %s, compress %s, %s",
			level, block, version("github.com/klauspost/pgzip"), version("github.com/klauspost/compress"), runtime.GOARCH)
	case Zstd:
		return fmt.Sprintf("zstd %s, window %d, compress %s, %s",
			zstdLevel, zstdWindow, version("github.com/klauspost/compress"), runtime.GOARCH)
	default:
		return string(None)
	}
}

func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	i := slices.IndexFunc(info.Deps, func(m *debug.Module) bool { return m.Path == module })
	if i < 0 {
		return "unknown"
	}
	m := info.Deps[i]
	if m.Replace != nil {
		m = m.Replace
	}
	return m.Version + " " + m.Sum
}

// Writer compresses what is written to it into w. Close ends the stream and
// leaves w open; it must be called also after a failure.
func (a Algorithm) Writer(w io.Writer) (io.WriteCloser, error) {
	switch a {
	case Gzip:
		z, err := pgzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, err
		}
		return z, z.SetConcurrency(block, Workers())
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstdLevel), zstd.WithWindowSize(zstdWindow),
			zstd.WithEncoderConcurrency(min(Workers(), 4)), zstd.WithZeroFrames(true)) // nothing has a frame too
	case None:
		return &plain{w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", a)
}

type plain struct{ io.Writer }

func (*plain) Close() error { return nil }

// LayerType is the media type of a layer in an OCI manifest, or in one of
// docker's schema 2, which has none for zstd.
func (a Algorithm) LayerType(oci bool) types.MediaType {
	switch {
	case oci && a == Zstd:
		return types.OCILayerZStd
	case oci && a == None:
		return types.OCIUncompressedLayer
	case oci:
		return types.OCILayer
	case a == None:
		return types.DockerUncompressedLayer
	default:
		return types.DockerLayer
	}
}

// Of is how a layer of this media type is compressed; ok is false for what is
// no layer that can be fetched from a registry.
func Of(mt types.MediaType) (a Algorithm, ok bool) {
	switch mt {
	case types.OCILayer, types.DockerLayer:
		return Gzip, true
	case types.OCILayerZStd:
		return Zstd, true
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return None, true
	}
	return "", false
}
