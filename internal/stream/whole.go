// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/resume"
)

// whole makes the image, or index, of an archive that is an OCI layout.
func (j *Job) whole(ctx context.Context, a *saved.Archive) (remote.Taggable, error) {
	top, err := a.Index()
	switch {
	case err != nil:
		return nil, err
	case top == nil:
		return nil, bad("what was saved is no OCI layout")
	}
	for _, d := range top.Manifests {
		if digest.Digest(d.Digest.String()) == j.Input.ID() {
			return j.tree(ctx, a, manifest.Of(d))
		}
	}
	// The index may have been left out for one of its images.
	if len(top.Manifests) == 1 {
		j.Warn(fmt.Errorf("only %s of %s is here, and is pushed alone", top.Manifests[0].Digest, j.Input.ID()))
		return j.tree(ctx, a, manifest.Of(top.Manifests[0]))
	}
	return nil, bad("%w: it has no manifest %s", errChanged, j.Input.ID())
}

// tree makes the image or index that a descriptor names.
func (j *Job) tree(ctx context.Context, a *saved.Archive, d manifest.Descriptor) (remote.Taggable, error) {
	inv := &inventory{a: a, has: map[visit]bool{}}
	walk := manifest.Walker[manifest.Descriptor]{Tree: inv}
	err := walk.Walk(ctx, d)
	t := &tree{j: j, a: a, inv: inv, nodes: map[v1.Hash]remote.Taggable{}}
	if err == nil {
		build := manifest.Walker[*branch]{Tree: t}
		err = build.Walk(ctx, &branch{d: d})
	}
	switch {
	case err == nil:
		return t.nodes[d.Digest], nil
	case ctx.Err() != nil, errors.Is(err, resume.ErrSource):
		return nil, err
	}
	return nil, bad("%w", err)
}

// inventory is a walk that finds out what of an index is in the archive.
type inventory struct {
	a   *saved.Archive
	has map[visit]bool
}

// visit is a manifest or a blob of a walk.
type visit struct {
	digest     v1.Hash
	isManifest bool
}

func visitOf(d manifest.Descriptor) visit { return visit{d.Digest, manifest.Is(d.MediaType)} }

// Describe implements manifest.Tree.
func (i *inventory) Describe(_ context.Context, d manifest.Descriptor) (v1.Descriptor, bool, error) {
	return d.V1(), manifest.Is(d.MediaType), nil
}

// Enter implements manifest.Tree. What is not here, or cannot be read, leads to
// nothing.
func (i *inventory) Enter(_ context.Context, d manifest.Descriptor, depth int) ([]manifest.Descriptor, error) {
	dgst := digest.Digest(d.Digest.String())
	if !manifest.Is(d.MediaType) {
		_, _, ok := i.a.Resolve(saved.BlobName(dgst))
		i.has[visitOf(d)] = ok || !d.MediaType.IsDistributable()
		return nil, nil
	}
	if raw, err := i.a.Blob(dgst); err == nil && depth < manifest.MaxDepth {
		if m, err := manifest.Parse(raw, d.MediaType); err == nil {
			i.has[visitOf(d)] = true
			return m.Children(d.MediaType), nil
		}
	}
	return nil, nil
}

// Leave implements manifest.Tree.
func (i *inventory) Leave(_ context.Context, d manifest.Descriptor, children []manifest.Descriptor) error {
	if slices.ContainsFunc(children, func(c manifest.Descriptor) bool { return !i.has[visitOf(c)] }) {
		i.has[visitOf(d)] = false
	}
	return nil
}

// tree is a walk that makes images and indexes of an archive, each once: an
// index may name another a thousand times.
type tree struct {
	j     *Job
	a     *saved.Archive
	inv   *inventory
	nodes map[v1.Hash]remote.Taggable
}

// branch is a manifest of a tree.
type branch struct {
	d   manifest.Descriptor
	raw []byte // of an index, with the manifests that are here; nil if an image stands for it
}

// Describe implements manifest.Tree.
func (t *tree) Describe(_ context.Context, b *branch) (v1.Descriptor, bool, error) {
	return b.d.V1(), true, nil
}

// Enter implements manifest.Tree.
func (t *tree) Enter(_ context.Context, b *branch, _ int) ([]*branch, error) {
	raw, err := t.a.Blob(digest.Digest(b.d.Digest.String()))
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(raw, b.d.MediaType)
	switch {
	case err != nil:
		return nil, bad("manifest %s: %w", b.d.Digest, err)
	case b.d.MediaType.IsImage():
		t.nodes[b.d.Digest], err = t.image(b.d, raw, m)
		return nil, err
	case b.d.MediaType.IsIndex():
		return t.enterIndex(b, raw, m)
	}
	return nil, bad("%s is neither an image nor an index but %q", b.d.Digest, b.d.MediaType)
}

// Leave implements manifest.Tree.
func (t *tree) Leave(_ context.Context, b *branch, children []*branch) (err error) {
	switch {
	case b.d.MediaType.IsImage():
	case b.raw == nil:
		t.nodes[b.d.Digest] = t.nodes[children[0].d.Digest]
	default:
		t.nodes[b.d.Digest], err = t.index(b, children)
	}
	return err
}

func (t *tree) image(d manifest.Descriptor, raw []byte, m *manifest.Manifest) (v1.Image, error) {
	if m.Config == nil {
		return nil, bad("manifest %s names no config", d.Digest)
	}
	config, err := t.a.Blob(digest.Digest(m.Config.Digest.String()))
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		if err := t.layerHere(l); err != nil && l.MediaType.IsDistributable() {
			return nil, err
		}
	}
	if raw, err = t.j.Format.manifest(raw); err != nil {
		return nil, err
	}
	return NewImage(raw, config, func(d digest.Digest) func() (io.ReadCloser, error) {
		b, err := t.a.Blob(d)
		if err != nil {
			return nil // delivered, or not to be
		}
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	})
}

// layerHere fails unless the archive has a layer under its own digest. That the
// registry has such a blob is not enough: it would then be published by nothing
// but a manifest that names it.
func (t *tree) layerHere(l manifest.Descriptor) error {
	d := digest.Digest(l.Digest.String())
	name := saved.BlobName(d)
	if _, isDocument := t.a.Document(name); isDocument {
		_, err := t.a.Blob(d)
		return err
	}
	if at, ok := t.j.files[name]; !ok || at.Digest != d {
		return bad("%s is not in what was saved", d)
	}
	return nil
}

// enterIndex picks the manifests of an index that are here with all they name. If
// some are not, the index becomes one of those that are, or the only image alone.
func (t *tree) enterIndex(b *branch, raw []byte, m *manifest.Manifest) (children []*branch, err error) {
	here := slices.DeleteFunc(slices.Clone(m.Manifests), func(d manifest.Descriptor) bool { return !t.inv.has[visitOf(d)] })
	// What describes an image is of no use without it.
	here = slices.DeleteFunc(here, func(d manifest.Descriptor) bool {
		of := d.Attests()
		return of != "" && !slices.ContainsFunc(here, func(o manifest.Descriptor) bool { return o.Digest.String() == of })
	})
	images := slices.DeleteFunc(slices.Clone(here), func(d manifest.Descriptor) bool { return d.Attests() != "" })
	b.raw = raw
	switch {
	case len(here) == len(m.Manifests):
	case len(images) == 0:
		return nil, bad("no platform of %s is complete", b.d.Digest)
	case len(here) == 1:
		t.j.Warn(fmt.Errorf("not all platforms of %s are here: only %s is pushed, as %s", b.d.Digest, platform(images[0]), images[0].Digest))
		b.raw = nil
	default:
		t.j.Warn(fmt.Errorf("not all platforms of %s are here: %d of %d manifests are pushed, as an index of their own", b.d.Digest, len(here), len(m.Manifests)))
		keep := map[v1.Hash]bool{}
		for _, d := range here {
			keep[d.Digest] = true
		}
		if b.raw, err = manifest.KeepManifests(raw, keep); err != nil {
			return nil, bad("index %s: %w", b.d.Digest, err)
		}
	}
	for _, d := range here {
		children = append(children, &branch{d: d})
	}
	return children, nil
}

// index makes an index of what its manifests became.
func (t *tree) index(b *branch, children []*branch) (v1.ImageIndex, error) {
	idx := &index{raw: b.raw, media: b.d.MediaType}
	became := map[v1.Hash]remote.Taggable{}
	for _, c := range children {
		idx.children = append(idx.children, t.nodes[c.d.Digest])
		became[c.d.Digest] = t.nodes[c.d.Digest]
	}
	var err error
	if idx.raw, idx.media, err = t.j.Format.index(idx.raw, idx.media, became); err != nil {
		return nil, err
	}
	idx.manifest = &v1.IndexManifest{}
	if err := manifest.Unmarshal(idx.raw, idx.manifest); err != nil {
		return nil, bad("index %s: %w", b.d.Digest, err)
	}
	return idx, nil
}

func platform(d manifest.Descriptor) string {
	if d.Platform == nil {
		return "one"
	}
	return d.Platform.String()
}

// index is one whose children are at hand.
type index struct {
	raw      []byte
	media    types.MediaType
	manifest *v1.IndexManifest
	children []remote.Taggable // in the order of the manifest
}

func (i *index) MediaType() (types.MediaType, error)       { return i.media, nil }
func (i *index) Digest() (v1.Hash, error)                  { return partial.Digest(i) }
func (i *index) Size() (int64, error)                      { return int64(len(i.raw)), nil }
func (i *index) IndexManifest() (*v1.IndexManifest, error) { return i.manifest, nil }
func (i *index) RawManifest() ([]byte, error)              { return i.raw, nil }

func (i *index) Image(h v1.Hash) (v1.Image, error) {
	if img, ok := i.child(h).(v1.Image); ok {
		return img, nil
	}
	return nil, fmt.Errorf("the index has no image %s", h)
}

func (i *index) ImageIndex(h v1.Hash) (v1.ImageIndex, error) {
	if idx, ok := i.child(h).(v1.ImageIndex); ok {
		return idx, nil
	}
	return nil, fmt.Errorf("the index has no index %s", h)
}

func (i *index) child(h v1.Hash) remote.Taggable {
	for n, d := range i.manifest.Manifests {
		if d.Digest == h {
			return i.children[n]
		}
	}
	return nil
}
