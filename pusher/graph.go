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
	"github.com/rpush-go/rpush/resume"
)

// maxDepth bounds how deep indexes may nest.
const maxDepth = 16

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

	ctx              context.Context // of newGraph
	nondistributable bool
	visits           manifest.Visits
	seenManifests    map[digest.Digest]*node
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

func newGraph(ctx context.Context, t remote.Taggable, nondistributable bool) (*graph, error) {
	g := &graph{
		ctx: ctx, nondistributable: nondistributable,
		seenManifests: map[digest.Digest]*node{},
	}
	if err := g.build(t); err != nil {
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
	if _, err := g.add(b.Image, 0); err != nil {
		return err
	}
	g.root, g.tags = g.levels[len(g.levels)-1][0], b.Tags

	image := g.levels
	g.levels = nil
	defer func() { g.levels, g.more = image, g.levels }()
	for _, r := range b.Referrers {
		if _, err := g.add(r, 0); err != nil {
			return err
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(b.Tagged)) {
		m, err := g.addNamed(b.Tagged[tag], 0)
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

// add takes in t and what it names, and returns its height.
func (g *graph) add(t remote.Taggable, depth int) (int, error) {
	m, err := g.addNamed(t, depth)
	if err != nil {
		return 0, err
	}
	return m.height, nil
}

func (g *graph) addNamed(t remote.Taggable, depth int) (*node, error) {
	if err := context.Cause(g.ctx); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("indexes nest deeper than %d", maxDepth)
	}
	if d, ok := t.(*remote.Descriptor); ok {
		var err error
		switch {
		case d.MediaType.IsIndex():
			t, err = d.ImageIndex()
		case d.MediaType.IsImage():
			t, err = d.Image()
		}
		if err != nil {
			return nil, err
		}
	}
	raw, d, err := g.read(t)
	if err != nil {
		return nil, err
	}
	dgst := digest.Digest(d.Digest.String())
	if m, ok := g.seenManifests[dgst]; ok {
		return m, nil
	}
	height := 0
	doc, err := manifest.Parse(raw, d.MediaType)
	switch t := t.(type) {
	case *Stored:
		if !isManifest(d.MediaType) {
			err = fmt.Errorf("manifests of type %q are not supported", d.MediaType)
		}
		if err == nil {
			height, err = g.addStored(t, doc, depth)
		}
	case v1.Image:
		if err = manifest.Check(raw); err == nil {
			err = g.addImage(t)
		}
	case v1.ImageIndex:
		if err = manifest.Check(raw); err == nil {
			height, err = g.addIndex(t, depth)
		}
	default: // one that names nothing
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", dgst, err)
	}
	m := &node{raw: raw, digest: dgst, height: height}
	if doc != nil {
		m.base = doc.Annotations[baseName]
		m.blobs = map[digest.Digest]bool{}
		for _, d := range slices.Concat(doc.Layers, doc.Blobs) {
			m.blobs[digest.Digest(d.Digest.String())] = true
		}
		if doc.Config != nil {
			m.blobs[digest.Digest(doc.Config.Digest.String())] = true
		}
		if doc.Subject != nil {
			m.subject = digest.Digest(doc.Subject.Digest.String())
		}
	}
	m.report = ManifestReport{Digest: dgst, MediaType: string(d.MediaType), Size: d.Size}
	for len(g.levels) <= height {
		g.levels = append(g.levels, nil)
	}
	g.levels[height] = append(g.levels[height], m)
	g.seenManifests[dgst] = m
	return m, nil
}

// read gives the bytes of a manifest and what names it. The bytes are nil for
// one that is in seenManifests already.
func (g *graph) read(t remote.Taggable) ([]byte, v1.Descriptor, error) {
	if s, ok := t.(*Stored); ok {
		// One that is named several times is read once.
		first, err := g.visits.First(s.Descriptor, true)
		if err != nil || !first {
			return nil, s.Descriptor, err
		}
		raw, err := s.Manifest(g.ctx)
		if err != nil {
			err = fmt.Errorf("reading a manifest: %w", err)
		}
		return raw, s.Descriptor, err
	}
	raw, err := t.RawManifest()
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("reading a manifest: %w", err)
	}
	dgst := digest.FromBytes(raw)
	d := v1.Descriptor{
		MediaType: mediaType(t), Size: int64(len(raw)),
		Digest: v1.Hash{Algorithm: dgst.Algorithm().String(), Hex: dgst.Encoded()},
	}
	_, err = g.visits.First(d, true)
	return raw, d, err
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

func (g *graph) addImage(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := context.Cause(g.ctx); err != nil { // a digest may have to be computed
			return err
		}
		if err := g.addLayer(l); err != nil {
			return err
		}
	}
	if m.Config.Digest == (v1.Hash{}) {
		return nil // schema 1
	}
	return g.addBlob(m.Config.Digest, m.Config.Size, m.Config.MediaType, opener(func() (io.ReadCloser, error) {
		b, err := img.RawConfigFile()
		if err != nil {
			return nil, err
		}
		return &memory{bytes.NewReader(b)}, nil
	}), "")
}

func (g *graph) addLayer(l v1.Layer) error {
	mt, err := l.MediaType()
	if err != nil {
		return err
	}
	if !mt.IsDistributable() && !g.nondistributable {
		return nil // fetched from its own URLs by whoever pulls
	}
	h, err := l.Digest()
	if err != nil {
		return err
	}
	size, err := l.Size()
	if err != nil {
		return err
	}
	from := ""
	if ml, ok := l.(*remote.MountableLayer); ok {
		from = ml.Reference.Context().Name()
	}
	open := opener(l.Compressed)
	if at, ok := l.(OffsetOpener); ok {
		open = at.Open
	}
	return g.addBlob(h, size, mt, open, from)
}

// OffsetOpener is what a v1.Layer may be besides: Push then opens its
// compressed bytes from an offset, as resume.Blob.Open has it, rather than
// reading up to there.
type OffsetOpener interface {
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
}

func (g *graph) addBlob(h v1.Hash, size int64, mt types.MediaType, open func(context.Context, int64) (io.ReadCloser, error), from string) error {
	if first, err := g.visits.First(v1.Descriptor{Digest: h, Size: size}, false); err != nil || !first {
		return err
	}
	d := digest.Digest(h.String())
	b := &blob{
		Blob:   resume.Blob{Digest: d, Size: size, Open: open, MountFrom: from},
		report: BlobReport{Digest: d, MediaType: string(mt), Size: size, State: BlobPending},
	}
	g.blobs = append(g.blobs, b)
	return nil
}

func (g *graph) addIndex(idx v1.ImageIndex, depth int) (int, error) {
	children, err := partial.Manifests(idx)
	if err != nil {
		return 0, err
	}
	height := 0
	for _, child := range children {
		switch child := child.(type) {
		case remote.Taggable:
			h, err := g.add(child, depth+1)
			if err != nil {
				return 0, err
			}
			height = max(height, h+1)
		case v1.Layer:
			if err := g.addLayer(child); err != nil {
				return 0, err
			}
		default:
			d, err := child.Digest()
			if err != nil {
				return 0, err
			}
			return 0, fmt.Errorf("it names %s, which is neither an image nor an index: not supported", d)
		}
	}
	return height, nil
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
