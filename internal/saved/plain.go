// SPDX-License-Identifier: Apache-2.0

package saved

import (
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// MaxLayer is the most bytes that a layer may unpack to: more is a bomb.
const MaxLayer = 1 << 40

// Plain is an image of which an archive holds the config and the layers, but no
// manifest that could be pushed, since the layers are not compressed.
type Plain struct {
	// Config has the image ID for its digest, and names the diffIDs.
	Config []byte
	// Layers has one for each diffID, the base first.
	Layers []PlainLayer
}

// PlainLayer is one layer of a Plain.
type PlainLayer struct {
	DiffID digest.Digest
	// Name is its file in the archive.
	Name string
	// Open reads it from its beginning. Nobody has compared it with DiffID. It is
	// nil for a layer that is not here.
	Open func() (io.ReadCloser, error)
	// Foreign says where a layer that is not here is fetched from.
	Foreign v1.Descriptor
}

// Cancellable is a reader of r that ends with ctx, and then gives its cause.
func Cancellable(ctx context.Context, r io.Reader) io.Reader { return &cancellable{ctx, r} }

type cancellable struct {
	ctx context.Context // of one call
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
