// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/tempfile"
	"github.com/rpush-go/rpush/resume"
)

// graph is all that a push has to deliver, each digest once.
type graph struct {
	blobs []*blob
	// levels are the manifests by height: those of a level name only blobs and
	// manifests of lower levels.
	levels [][]*node
	// more are the levels of what accompanies the image. They may name what is
	// in levels.
	more [][]*node
	// root is the manifest that goes under the reference and tags.
	root *node
	tags []string

	ctx       context.Context // of newGraph
	o         graphOptions
	walker    manifest.Walker[*item]
	manifests map[v1.Hash]*node
	spooled   map[v1.Hash]*tempfile.File // layers that can be read once
	files     []*tempfile.File
}

type graphOptions struct {
	nondistributable bool
	spools           tempfile.Options
}

// total is what there is to deliver.
func (g *graph) total() resume.Total {
	t := resume.Total{Blobs: len(g.blobs), Manifests: len(g.manifests)}
	for _, b := range g.blobs {
		t.Bytes += b.Size
	}
	return t
}

type blob struct {
	resume.Blob
	checked time.Time // when the registry said that it does not have it
	report  BlobReport

	again sync.Mutex // held while it is sent although the registry claimed to have it
	sent  bool       // again, so that it is not sent once more
}

// node is a manifest.
type node struct {
	raw     []byte
	digest  digest.Digest
	height  int
	tags    []string      // of its own
	subject digest.Digest // empty for none
	base    string        // the annotation baseName
	blobs   map[digest.Digest]bool

	mu     sync.Mutex // while it is published under several names
	report ManifestReport
}

// stored takes note that the registry has m under one more name.
func (m *node) stored(existed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report.Existed = existed && (m.report.Existed || !m.report.Pushed)
	m.report.Pushed = true
}

// newGraph reads all manifests. The graph has to be closed, unless there is an error.
func newGraph(ctx context.Context, t remote.Taggable, o graphOptions) (*graph, error) {
	g := &graph{ctx: ctx, o: o, manifests: map[v1.Hash]*node{}, spooled: map[v1.Hash]*tempfile.File{}}
	g.walker.Tree = g
	if err := g.build(t); err != nil {
		g.close()
		if err := ended(ctx); err != nil {
			return nil, err
		}
		return nil, protocol.Kind(protocol.ErrSource, err)
	}
	return g, nil
}

func (g *graph) build(t remote.Taggable) error {
	b, ok := t.(*Bundle)
	if !ok {
		b = &Bundle{Image: t}
	}
	if b.Image == nil {
		return errors.New("the bundle has no image")
	}
	root, err := g.add(b.Image)
	if err != nil {
		return err
	}
	g.root, g.tags = root, b.Tags

	image := g.levels
	g.levels = nil
	defer func() { g.levels, g.more = image, g.levels }()
	for _, r := range b.Referrers {
		if _, err := g.add(r); err != nil {
			return err
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(b.Tagged)) {
		m, err := g.add(b.Tagged[tag])
		if err != nil {
			return err
		}
		if m == g.root {
			g.tags = append(slices.Clone(g.tags), tag)
			continue
		}
		m.tags = append(m.tags, tag)
	}
	return nil
}

// item is a manifest or a blob that the walk over an image comes to.
type item struct {
	t    remote.Taggable // nil for a blob
	raw  []byte          // of a manifest; nil until it is read
	desc v1.Descriptor
	doc  *manifest.Manifest // nil for a manifest of a kind that is not known
	blob *blob
}

// add takes in a manifest and all that it names.
func (g *graph) add(t remote.Taggable) (*node, error) {
	it := &item{t: t}
	if err := g.walker.Walk(g.ctx, it); err != nil {
		return nil, err
	}
	return g.manifests[it.desc.Digest], nil
}

// Describe implements manifest.Tree.
func (g *graph) Describe(_ context.Context, it *item) (v1.Descriptor, bool, error) {
	if it.blob != nil {
		return it.desc, false, nil
	}
	if d, ok := it.t.(*remote.Descriptor); ok {
		var err error
		switch {
		case d.MediaType.IsIndex():
			it.t, err = d.ImageIndex()
		case d.MediaType.IsImage():
			it.t, err = d.Image()
		}
		if err != nil {
			return v1.Descriptor{}, true, err
		}
	}
	if s, ok := it.t.(*Stored); ok { // read when it is entered: once
		it.desc = s.Descriptor
		return it.desc, true, nil
	}
	raw, err := g.rawManifest(it.t)
	if err != nil {
		return v1.Descriptor{}, true, fmt.Errorf("reading a manifest: %w", err)
	}
	dgst := digest.FromBytes(raw)
	it.raw, it.desc = raw, v1.Descriptor{
		MediaType: mediaType(it.t), Size: int64(len(raw)),
		Digest: v1.Hash{Algorithm: dgst.Algorithm().String(), Hex: dgst.Encoded()},
	}
	return it.desc, true, nil
}

// Enter implements manifest.Tree.
func (g *graph) Enter(ctx context.Context, it *item, _ int) ([]*item, error) {
	if it.blob != nil {
		g.blobs = append(g.blobs, it.blob)
		return nil, nil
	}
	if s, ok := it.t.(*Stored); ok {
		var err error
		if it.raw, err = s.Manifest(ctx); err != nil {
			return nil, fmt.Errorf("reading a manifest: %w", err)
		}
	}
	children, err := g.children(ctx, it)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", it.desc.Digest, err)
	}
	return children, nil
}

// children are what a manifest names.
func (g *graph) children(ctx context.Context, it *item) (children []*item, err error) {
	it.doc, err = manifest.Parse(it.raw, it.desc.MediaType)
	switch t := it.t.(type) {
	case *Stored:
		if !manifest.Is(it.desc.MediaType) {
			err = fmt.Errorf("manifests of type %q are not supported", it.desc.MediaType)
		}
		if err == nil {
			children = g.stored(t, it.doc)
		}
	case v1.Image:
		if err = manifest.Check(it.raw); err == nil {
			children, err = g.image(ctx, t)
		}
	case v1.ImageIndex:
		if err = manifest.Check(it.raw); err == nil {
			children, err = g.index(t)
		}
	default: // one that names nothing
		err = nil
	}
	return children, err
}

// Leave implements manifest.Tree.
func (g *graph) Leave(_ context.Context, it *item, children []*item) error {
	m := &node{raw: it.raw, digest: digest.Digest(it.desc.Digest.String())}
	for _, child := range children {
		if child.blob == nil {
			m.height = max(m.height, g.manifests[child.desc.Digest].height+1)
		}
	}
	if it.doc != nil {
		m.base = it.doc.Annotations[baseName]
		m.blobs = map[digest.Digest]bool{}
		for _, d := range it.doc.Children(types.OCIManifestSchema1) {
			m.blobs[digest.Digest(d.Digest.String())] = true
		}
		if it.doc.Subject != nil {
			m.subject = digest.Digest(it.doc.Subject.Digest.String())
		}
	}
	m.report = ManifestReport{Digest: m.digest, MediaType: string(it.desc.MediaType), Size: it.desc.Size}
	for len(g.levels) <= m.height {
		g.levels = append(g.levels, nil)
	}
	g.levels[m.height] = append(g.levels[m.height], m)
	g.manifests[it.desc.Digest] = m
	return nil
}

func mediaType(t remote.Taggable) types.MediaType {
	if m, ok := t.(interface {
		MediaType() (types.MediaType, error)
	}); ok {
		if mt, err := m.MediaType(); err == nil && mt != "" {
			return mt
		}
	}
	return types.DockerManifestSchema2
}

// image lists the blobs of an image, its config last.
func (g *graph) image(ctx context.Context, img v1.Image) (all []*item, err error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if err := context.Cause(ctx); err != nil { // a digest may have to be computed
			return nil, err
		}
		if all, err = g.layer(all, l); err != nil {
			return nil, err
		}
	}
	if m.Config.Digest == (v1.Hash{}) {
		return all, nil // schema 1
	}
	return append(all, newItem(m.Config, opener(func() (io.ReadCloser, error) {
		b, err := img.RawConfigFile()
		if err != nil {
			return nil, err
		}
		return &memory{bytes.NewReader(b)}, nil
	}), "")), nil
}

// layer adds a layer to a list, unless whoever pulls fetches it elsewhere.
func (g *graph) layer(all []*item, l v1.Layer) ([]*item, error) {
	mt, err := l.MediaType()
	if err != nil {
		return nil, err
	}
	if !mt.IsDistributable() && !g.o.nondistributable {
		return all, nil
	}
	h, err := l.Digest()
	if err != nil {
		return nil, err
	}
	size, err := l.Size()
	if err != nil {
		return nil, err
	}
	from := ""
	if ml, ok := l.(*remote.MountableLayer); ok {
		from = ml.Reference.Context().Name()
	}
	open := opener(l.Compressed)
	if at, ok := l.(OffsetOpener); ok {
		open = at.Open
	}
	if f := g.spooled[h]; f != nil {
		open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return f.Open(context.Background(), offset), nil // all of it is there
		}
	}
	return append(all, newItem(v1.Descriptor{MediaType: mt, Size: size, Digest: h}, open, from)), nil
}

// OffsetOpener is what a v1.Layer may be besides: Push then opens its
// compressed bytes from an offset, as resume.Blob.Open has it, rather than
// reading up to there.
type OffsetOpener interface {
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
}

// newItem is a blob.
func newItem(desc v1.Descriptor, open func(context.Context, int64) (io.ReadCloser, error), from string) *item {
	d := digest.Digest(desc.Digest.String())
	return &item{desc: desc, blob: &blob{
		Blob:   resume.Blob{Digest: d, Size: desc.Size, Open: open, MountFrom: from},
		report: BlobReport{Digest: d, MediaType: string(desc.MediaType), Size: desc.Size, State: BlobPending},
	}}
}

// index lists what an index names.
func (g *graph) index(idx v1.ImageIndex) (all []*item, err error) {
	children, err := partial.Manifests(idx)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		switch child := child.(type) {
		case remote.Taggable:
			all = append(all, &item{t: child})
		case v1.Layer:
			if all, err = g.layer(all, child); err != nil {
				return nil, err
			}
		default:
			d, err := child.Digest()
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("it names %s, which is neither an image nor an index: not supported", d)
		}
	}
	return all, nil
}

// opener makes every call a reader of its own at an offset: by seeking where
// the source can, else by reading up to there.
func opener(open func() (io.ReadCloser, error)) func(context.Context, int64) (io.ReadCloser, error) {
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := open()
		if err != nil || offset == 0 {
			return r, err
		}
		if s, ok := r.(io.Seeker); ok {
			_, err = s.Seek(offset, io.SeekStart)
		} else {
			err = skip(ctx, r, offset)
		}
		if err != nil {
			r.Close()
			return nil, err
		}
		return r, nil
	}
}

// skip reads up to offset.
func skip(ctx context.Context, r io.Reader, offset int64) error {
	const step = 1 << 20
	for offset > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(io.Discard, r, min(offset, step))
		if offset -= n; err != nil {
			return err
		}
	}
	return nil
}

// memory is a small blob, such as a config.
type memory struct{ *bytes.Reader }

func (*memory) Close() error { return nil }
