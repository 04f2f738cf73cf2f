package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/saved"
)

// maxDepth bounds indexes within indexes.
const maxDepth = 8

// whole makes the image, or index, of an archive that is an OCI layout.
func (j *Job) whole(a *saved.Archive) (remote.Taggable, error) {
	top, err := a.Index()
	switch {
	case err != nil:
		return nil, err
	case top == nil:
		return nil, bad("what was saved is no OCI layout")
	}
	t := &tree{j: j, a: a, nodes: map[key]remote.Taggable{}, here: map[key]bool{}}
	for _, d := range top.Manifests {
		if digest.Digest(d.Digest.String()) == j.ID {
			return t.node(d, 0)
		}
	}
	// The index may have been left out for one of its images.
	if len(top.Manifests) == 1 {
		j.Warn(fmt.Errorf("only %s of %s is here, and is pushed alone", top.Manifests[0].Digest, j.ID))
		return t.node(top.Manifests[0], 0)
	}
	return nil, bad("%w: it has no manifest %s", errChanged, j.ID)
}

// tree makes images and indexes of an archive, each once: an index may name
// another a thousand times.
type tree struct {
	j     *Job
	a     *saved.Archive
	nodes map[key]remote.Taggable
	here  map[key]bool // what complete said
}

// key is what a manifest is known by within a tree.
type key struct {
	digest v1.Hash
	media  types.MediaType
}

func (t *tree) node(d v1.Descriptor, depth int) (n remote.Taggable, err error) {
	at := key{d.Digest, d.MediaType}
	if n, ok := t.nodes[at]; ok {
		return n, nil
	}
	switch {
	case depth > maxDepth:
		return nil, bad("indexes nest deeper than %d", maxDepth)
	case d.MediaType.IsImage():
		n, err = t.image(d)
	case d.MediaType.IsIndex():
		n, err = t.index(d, depth)
	default:
		return nil, bad("%s is neither an image nor an index but %q", d.Digest, d.MediaType)
	}
	t.nodes[at] = n
	return n, err
}

func (t *tree) image(d v1.Descriptor) (v1.Image, error) {
	raw, err := t.a.Blob(digest.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, bad("manifest %s: %w", d.Digest, err)
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
func (t *tree) layerHere(l v1.Descriptor) error {
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

// complete reports whether all that d names is here.
func (t *tree) complete(d v1.Descriptor, depth int) bool {
	at := key{d.Digest, d.MediaType}
	if _, ok := t.here[at]; !ok {
		t.here[at] = t.allHere(d, depth)
	}
	return t.here[at]
}

func (t *tree) allHere(d v1.Descriptor, depth int) bool {
	raw, err := t.a.Blob(digest.Digest(d.Digest.String()))
	if err != nil || depth > maxDepth {
		return false
	}
	if d.MediaType.IsIndex() {
		m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		return err == nil && !slices.ContainsFunc(m.Manifests, func(d v1.Descriptor) bool { return !t.complete(d, depth+1) })
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	return err == nil && !slices.ContainsFunc(append(m.Layers, m.Config), func(d v1.Descriptor) bool {
		_, _, ok := t.a.Resolve(saved.BlobName(digest.Digest(d.Digest.String())))
		return !ok && d.MediaType.IsDistributable()
	})
}

// index makes an index. Where not all of its platforms are here it is one of
// those that are, or the only one of them alone.
func (t *tree) index(d v1.Descriptor, depth int) (remote.Taggable, error) {
	raw, err := t.a.Blob(digest.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, bad("index %s: %w", d.Digest, err)
	}
	here := slices.DeleteFunc(slices.Clone(m.Manifests), func(d v1.Descriptor) bool { return !t.complete(d, depth+1) })
	// What describes an image is of no use without it.
	here = slices.DeleteFunc(here, func(d v1.Descriptor) bool {
		of := d.Annotations[saved.AttestsTo]
		return of != "" && !slices.ContainsFunc(here, func(o v1.Descriptor) bool { return o.Digest.String() == of })
	})
	images := slices.DeleteFunc(slices.Clone(here), func(d v1.Descriptor) bool { return d.Annotations[saved.AttestsTo] != "" })
	if m.MediaType == "" {
		m.MediaType = d.MediaType
	}
	switch {
	case len(here) == len(m.Manifests):
	case len(images) == 0:
		return nil, bad("no platform of %s is complete", d.Digest)
	case len(here) == 1:
		t.j.Warn(fmt.Errorf("not all platforms of %s are here: only %s is pushed, as %s", d.Digest, platform(images[0]), images[0].Digest))
		return t.node(images[0], depth+1)
	default:
		t.j.Warn(fmt.Errorf("not all platforms of %s are here: %d of %d manifests are pushed, as an index of their own", d.Digest, len(here), len(m.Manifests)))
		m.Manifests = here
		raw = nil
	}
	idx := &index{raw: raw, manifest: m}
	for _, d := range m.Manifests {
		child, err := t.node(d, depth+1)
		if err != nil {
			return nil, err
		}
		idx.children = append(idx.children, child)
	}
	changed, err := t.j.Format.index(m, idx.children)
	if err != nil {
		return nil, err
	}
	if changed {
		idx.raw = nil
	}
	if idx.raw == nil {
		if idx.raw, err = json.MarshalIndent(m, "", "   "); err != nil {
			return nil, err
		}
	}
	idx.media = m.MediaType
	return idx, nil
}

func platform(d v1.Descriptor) string {
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
