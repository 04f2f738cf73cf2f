// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/tempfile"
)

// spoolMemory is how much of a layer that can be read once is kept in memory
// before there is a file.
const spoolMemory = 256 << 10

// rawManifest reads the manifest of t. An image with layers whose digests are not
// known before they have been read (package stream of go-containerregistry) has
// none at first. These layers are read into temporary files then, since an upload
// that breaks has to read them again.
func (g *graph) rawManifest(t remote.Taggable) ([]byte, error) {
	raw, err := t.RawManifest()
	img, ok := t.(v1.Image)
	if !ok || !errors.Is(err, stream.ErrNotComputed) {
		return raw, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		switch _, err := l.Digest(); {
		case errors.Is(err, stream.ErrNotComputed):
			if err := g.spool(l); err != nil {
				return nil, fmt.Errorf("reading a streamed layer: %w", err)
			}
		case err != nil:
			return nil, err
		}
	}
	return t.RawManifest()
}

// spool reads a layer, which makes its digest known.
func (g *graph) spool(l v1.Layer) error {
	f := tempfile.New(g.o.spools)
	g.files = append(g.files, f)
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(g.ctx, func() { r.Close() }) // ends a Read that waits
	hash := digest.SHA256.Digester()
	_, err = io.Copy(io.MultiWriter(fileWriter{g.ctx, f}, hash.Hash()), r)
	stop()
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	switch {
	case g.ctx.Err() != nil:
		return context.Cause(g.ctx)
	case errors.Is(err, tempfile.ErrFull):
		return fmt.Errorf("it is kept in a temporary file (see Options.SpoolDir and SpoolLimit): %w", err)
	case err != nil:
		return err
	}
	f.End(io.EOF)
	h, err := l.Digest()
	if err != nil {
		return err
	}
	if got := hash.Digest(); got.String() != h.String() {
		return fmt.Errorf("its bytes are %s, and it says %s", got, h)
	}
	g.spooled[h] = f
	return nil
}

// fileWriter makes an io.Writer of a temporary file.
type fileWriter struct {
	ctx context.Context // of one copy
	f   *tempfile.File
}

func (w fileWriter) Write(p []byte) (int, error) {
	if err := w.f.Write(w.ctx, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// close removes the temporary files.
func (g *graph) close() {
	for _, f := range g.files {
		_ = f.Close()
	}
}
