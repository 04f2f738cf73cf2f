// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/pusher"
)

// Published returns the manifest or index with a digest if the repository has it,
// with all that it names: a clean-up may have left nothing but the manifest. It
// is nil if the repository has not.
func Published(ctx context.Context, p *pusher.Pusher, d *pusher.Delivery, repo name.Repository, id digest.Digest) (remote.Taggable, error) {
	doc, err := p.Manifest(ctx, repo.Digest(id.String()))
	if err != nil || doc == nil {
		return nil, err
	}
	root := manifest.Descriptor{MediaType: types.MediaType(doc.MediaType), Size: int64(len(doc.Raw)), Digest: toHash(digest.FromBytes(doc.Raw))}
	w := manifest.Walker[manifest.Descriptor]{Tree: &presence{p: p, d: d, repo: repo, root: doc}}
	err = w.Walk(ctx, root)
	var failed errRegistry
	switch {
	case err == nil:
		return &rawManifest{doc.Raw, types.MediaType(doc.MediaType)}, nil
	case errors.As(err, &failed):
		return nil, failed.err
	case ctx.Err() != nil:
		return nil, err
	}
	return nil, nil // not all is there, or cannot be
}

// errRegistry is an error of asking, apart from those that mean that something
// is absent.
type errRegistry struct{ err error }

func (e errRegistry) Error() string { return e.err.Error() }

var errAbsent = errors.New("the repository does not have all of it")

// presence is a walk that ends at the first thing a repository does not have.
type presence struct {
	p    *pusher.Pusher
	d    *pusher.Delivery
	repo name.Repository
	root *pusher.Document
}

// Describe implements manifest.Tree.
func (s *presence) Describe(_ context.Context, d manifest.Descriptor) (v1.Descriptor, bool, error) {
	return d.V1(), manifest.Is(d.MediaType), nil
}

// Enter implements manifest.Tree.
func (s *presence) Enter(ctx context.Context, d manifest.Descriptor, depth int) ([]manifest.Descriptor, error) {
	dgst := digest.Digest(d.Digest.String())
	if !manifest.Is(d.MediaType) {
		if !d.MediaType.IsDistributable() {
			return nil, nil
		}
		held, err := s.d.Held(ctx, dgst, d.Size, string(d.MediaType))
		switch {
		case err != nil:
			return nil, errRegistry{err}
		case !held:
			return nil, errAbsent
		}
		return nil, nil
	}
	doc := s.root
	if depth > 0 {
		var err error
		if doc, err = s.p.Manifest(ctx, s.repo.Digest(string(dgst))); err != nil {
			return nil, errRegistry{err}
		}
	}
	if doc == nil {
		return nil, errAbsent
	}
	m, err := manifest.Parse(doc.Raw, d.MediaType)
	if err != nil {
		return nil, errAbsent
	}
	return m.Children(d.MediaType), nil
}

// Leave implements manifest.Tree.
func (s *presence) Leave(context.Context, manifest.Descriptor, []manifest.Descriptor) error {
	return nil
}

// rawManifest is one whose blobs are at the registry.
type rawManifest struct {
	raw   []byte
	media types.MediaType
}

func (m *rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m *rawManifest) MediaType() (types.MediaType, error) { return m.media, nil }
