// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
)

// Content is where manifests and blobs lie under their digests: a directory, an
// archive, a repository. Its methods are called by several goroutines.
type Content interface {
	// Manifest returns the bytes of a manifest. What does not have the digest
	// and size of d is refused by the caller.
	Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// Open returns a reader of the blob from offset, as resume.Blob has it. Push
	// gives the type, digest and size of d only.
	Open(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)
}

// Stored is a manifest in a Content, with all that it names. Push delivers it as
// it is, byte by byte: images, indexes of any depth, artifacts.
type Stored struct {
	Content    Content
	Descriptor v1.Descriptor
	// MountFrom, unless zero, is the repository the store is, whose blobs a
	// registry may take over by itself.
	MountFrom name.Repository
}

var _ remote.Taggable = (*Stored)(nil)

// RawManifest is Manifest without a context.
func (s *Stored) RawManifest() ([]byte, error) { return s.Manifest(context.Background()) }

// MediaType is that of the descriptor.
func (s *Stored) MediaType() (types.MediaType, error) { return s.Descriptor.MediaType, nil }

// Digest is that of the descriptor.
func (s *Stored) Digest() (v1.Hash, error) { return s.Descriptor.Digest, nil }

// Manifest reads the manifest and verifies it.
func (s *Stored) Manifest(ctx context.Context) ([]byte, error) {
	d := s.Descriptor
	if d.Size < 0 || d.Size > manifest.MaxSize {
		return nil, fmt.Errorf("manifest %s has %d bytes, more than %d", d.Digest, d.Size, manifest.MaxSize)
	}
	raw, err := s.Content.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	v := digest.Digest(d.Digest.String())
	if err := v.Validate(); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if got := v.Algorithm().FromBytes(raw); got != v || int64(len(raw)) != d.Size {
		return nil, fmt.Errorf("manifest %s of %d bytes is damaged: it is %s of %d bytes", v, d.Size, got, len(raw))
	}
	return raw, nil
}

// child is another manifest of the same store.
func (s *Stored) child(d manifest.Descriptor) *Stored {
	return &Stored{Content: s.Content, Descriptor: d.V1(), MountFrom: s.MountFrom}
}

// stored lists what a manifest of a Content names.
func (g *graph) stored(s *Stored, m *manifest.Manifest) (all []*item) {
	for _, d := range m.Children(s.Descriptor.MediaType) {
		switch {
		case s.Descriptor.MediaType.IsIndex() && (manifest.Is(d.MediaType) || d.MediaType.IsSchema1()):
			all = append(all, &item{t: s.child(d)})
		case d.MediaType.IsDistributable() || g.o.nondistributable: // whoever pulls fetches the others elsewhere
			all = append(all, s.blob(d))
		}
	}
	return all
}

func (s *Stored) blob(d manifest.Descriptor) *item {
	from := ""
	if s.MountFrom != (name.Repository{}) {
		from = s.MountFrom.Name()
	}
	content := s.Content
	return newItem(d.V1(), func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return content.Open(ctx, d.V1(), offset)
	}, from)
}

// Bundle is an image and what is to arrive together with it.
type Bundle struct {
	// Image goes under the reference of the push, last.
	Image remote.Taggable
	// Tags are further tags of the same repository for the image.
	Tags []string
	// Referrers are manifests about the image, such as signatures. They arrive
	// under their digests, after the image did under its own and before any tag
	// shows it.
	Referrers []remote.Taggable
	// Tagged are manifests that arrive under tags of their own, as those of
	// cosign do, before the image's.
	Tagged map[string]remote.Taggable
}

// RawManifest is that of the image.
func (b *Bundle) RawManifest() ([]byte, error) { return b.Image.RawManifest() }

// MediaType is that of the image.
func (b *Bundle) MediaType() (types.MediaType, error) { return mediaType(b.Image), nil }
