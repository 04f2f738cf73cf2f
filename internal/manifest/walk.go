// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Tree says how a Walker gets from one node to the next. N is a manifest or a
// blob, whatever a package knows of it.
type Tree[N any] interface {
	// Describe returns the descriptor of a node, and whether the node is a
	// manifest.
	Describe(ctx context.Context, n N) (d v1.Descriptor, isManifest bool, err error)
	// Enter is called when the walk comes to a node for the first time. It
	// returns what the node names, of which a blob names nothing. Below the first
	// node depth is 1.
	Enter(ctx context.Context, n N, depth int) ([]N, error)
	// Leave is called for a manifest when the walk has been to all that it names.
	Leave(ctx context.Context, n N, children []N) error
}

// Walker goes over what images lead to: depth first, in the order of the
// manifests, each manifest and each blob once in all its walks. A digest that is
// named both as a manifest and as a blob is visited as each of them.
//
// A walk ends with the first error, and with the cause of a done context. It
// fails for a descriptor without a digest or with a negative size, for a digest
// that is named with two sizes, for a manifest of more than MaxSize bytes, and
// at the bounds MaxDepth, MaxVisits and MaxTotal.
//
// The zero value with a Tree is ready. It is not safe for concurrent use.
type Walker[N any] struct {
	Tree   Tree[N]
	visits visits
}

// Walk goes to a node and to all that it leads to. A node that an earlier walk
// came to is skipped.
func (w *Walker[N]) Walk(ctx context.Context, n N) error { return w.walk(ctx, n, 0) }

func (w *Walker[N]) walk(ctx context.Context, n N, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d, isManifest, err := w.Tree.Describe(ctx, n)
	if err != nil {
		return err
	}
	first, err := w.visits.first(d, isManifest)
	switch {
	case err != nil || !first:
		return err
	case isManifest && depth > MaxDepth:
		return fmt.Errorf("manifest %s: indexes are nested deeper than %d", d.Digest, MaxDepth)
	}
	children, err := w.Tree.Enter(ctx, n, depth)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := w.walk(ctx, child, depth+1); err != nil {
			return err
		}
	}
	if !isManifest {
		return nil
	}
	return w.Tree.Leave(ctx, n, children)
}

// visits notes where a walk has been. The zero value has been nowhere.
type visits struct {
	sizes map[v1.Hash]int64
	seen  map[visit]bool
	total int64 // bytes of manifests
}

type visit struct {
	digest   v1.Hash
	manifest bool
}

// first reports whether the walk comes to d for the first time, see Walker.
func (v *visits) first(d v1.Descriptor, isManifest bool) (bool, error) {
	if v.sizes == nil {
		v.sizes, v.seen = map[v1.Hash]int64{}, map[visit]bool{}
	}
	switch {
	case d.Digest == (v1.Hash{}):
		return false, fmt.Errorf("a descriptor of type %q has no digest", d.MediaType)
	case d.Size < 0:
		return false, fmt.Errorf("%s has the size %d in its descriptor", d.Digest, d.Size)
	}
	if size, ok := v.sizes[d.Digest]; ok && size != d.Size {
		return false, fmt.Errorf("%s is said to have %d bytes and %d bytes", d.Digest, size, d.Size)
	}
	at := visit{d.Digest, isManifest}
	if v.seen[at] {
		return false, nil
	}
	if len(v.seen) == MaxVisits {
		return false, fmt.Errorf("the image names more than %d manifests and blobs", MaxVisits)
	}
	if isManifest {
		if d.Size > MaxSize {
			return false, fmt.Errorf("manifest %s has %d bytes, more than %d", d.Digest, d.Size, MaxSize)
		}
		if v.total += d.Size; v.total > MaxTotal {
			return false, fmt.Errorf("the manifests of the image have more than %d bytes together", MaxTotal)
		}
	}
	v.sizes[d.Digest], v.seen[at] = d.Size, true
	return true, nil
}
