// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/pusher"
)

const (
	manifestFile = "manifest.json"

	// maxLayers is more than any engine runs.
	maxLayers = 10_000
)

// openDockerArchive opens what docker save and podman save write.
func openDockerArchive(ctx context.Context, file string, o Options) (*Images, error) {
	a, err := openArchive(ctx, file, o)
	if err != nil {
		return nil, err
	}
	return a.images("docker-archive:", o)
}

// dockerImages are those that manifest.json names.
func dockerImages(named string, a *archive, o Options) (*Images, error) {
	if _, ok := a.find(manifestFile); !ok {
		if _, ok := a.find(layoutFile); ok {
			return nil, bad("%s is an OCI archive: name it as oci-archive:", a.name)
		}
		return nil, bad("%s is no docker archive: it has no manifest.json that names an image", a.name)
	}
	raw, err := a.document(manifestFile)
	if err != nil {
		return nil, bad("%w", err)
	}
	d := &dockerArchive{archive: a}
	if err := manifest.Unmarshal(raw, &d.manifest); err != nil {
		return nil, bad("%s: manifest.json: %w", a.name, err)
	}
	if len(d.manifest) == 0 {
		return nil, bad("%s is no docker archive: it has no manifest.json that names an image", a.name)
	}
	return &Images{
		name: named,
		open: func(ctx context.Context, sel selector) (Source, error) { return d.pick(ctx, sel, o) },
		all: func(context.Context) (map[string]selector, error) {
			all := map[string]selector{}
			for i, desc := range d.manifest {
				for _, t := range desc.RepoTags {
					if tag := tagOf(t); tag != "" {
						if other, ok := all[tag]; ok && other.index != strconv.Itoa(i) {
							return nil, bad("%s holds several images with the tag %q", a.name, tag)
						}
						all[tag] = selector{index: strconv.Itoa(i)}
					}
				}
			}
			return all, nil
		},
	}, nil
}

// dockerArchive is an archive with a manifest.json.
type dockerArchive struct {
	*archive
	manifest tarball.Manifest
}

// pick opens one image of it.
func (d *dockerArchive) pick(ctx context.Context, sel selector, o Options) (Source, error) {
	desc, err := d.choose(sel)
	if err != nil {
		return Source{}, err
	}
	s, err := d.original(ctx, desc.Config)
	if err != nil {
		return Source{}, err
	}
	if s == nil && o.PreserveDigests {
		return Source{}, bad("%s has no manifest whose digest could be preserved: its layers are not stored as registries have them", d.name)
	}
	if s != nil {
		err = newChecker(tarred{d.archive}, o).check(ctx, s)
	} else {
		var plain *saved.Plain
		if plain, s, err = d.image(ctx, desc); plain != nil {
			return Source{Plain: plain}, o.fits(plain.Config, d.name)
		}
	}
	if err != nil {
		return Source{}, err
	}
	s, err = o.pick(ctx, s)
	return Source{Image: s}, err
}

// choose picks the image that sel asks for, or the only one.
func (d *dockerArchive) choose(sel selector) (*tarball.Descriptor, error) {
	if sel.index != "" {
		n, err := strconv.Atoi(sel.index)
		if err != nil || n >= len(d.manifest) {
			return nil, bad("%s holds %d images, there is none at @%s", d.name, len(d.manifest), sel.index)
		}
		return &d.manifest[n], nil
	}
	if sel.tag == "" {
		if len(d.manifest) == 1 {
			return &d.manifest[0], nil
		}
		return nil, bad("%s holds several images, choose one with #REF or @INDEX: %s", d.name, oneOf(d.names()))
	}
	tag, err := name.NewTag(sel.tag)
	if err != nil {
		return nil, bad("%q is no name of an image: %w", sel.tag, err)
	}
	for i, one := range d.manifest {
		if slices.ContainsFunc(one.RepoTags, func(s string) bool {
			t, err := name.NewTag(s)
			return err == nil && t.Name() == tag.Name()
		}) {
			return &d.manifest[i], nil
		}
	}
	return nil, bad("%s holds no image %q; it holds: %s", d.name, sel.tag, oneOf(d.names()))
}

func (d *dockerArchive) names() []string {
	var all []string
	for _, one := range d.manifest {
		if len(one.RepoTags) == 0 {
			all = append(all, "an image without a name, with the config "+one.Config)
		}
		all = append(all, one.RepoTags...)
	}
	return all
}

// original finds the manifest that the image with this config was pulled or built with, in an
// OCI layout in the same archive. nil is none, or one with layers that a
// registry is not sent as they are.
func (d *dockerArchive) original(ctx context.Context, config string) (*pusher.Stored, error) {
	top, err := readTop(tarred{d.archive})
	if err != nil {
		return nil, nil //nolint:nilerr // it has no OCI layout
	}
	return d.search(ctx, top.Manifests, func(desc v1.Descriptor, m *manifest.Manifest) bool {
		return desc.MediaType.IsImage() && m.Config != nil && blobName(m.Config.Digest) == path.Clean(config) &&
			!slices.ContainsFunc(m.Layers, isPlain)
	})
}

// image makes an image that has no manifest ready: with one, where its layers
// are compressed, else as it is.
func (d *dockerArchive) image(ctx context.Context, desc *tarball.Descriptor) (*saved.Plain, *pusher.Stored, error) {
	if _, ok := d.find(desc.Config); !ok {
		return nil, nil, bad("%s: the config %q is missing", d.name, desc.Config)
	}
	config, err := d.document(desc.Config)
	if err != nil {
		return nil, nil, bad("the config: %w", err)
	}
	var cfg v1.ConfigFile
	if err := manifest.Unmarshal(config, &cfg); err != nil {
		return nil, nil, bad("%s: the config %q: %w", d.name, desc.Config, err)
	}
	diffIDs := cfg.RootFS.DiffIDs
	if got, want := len(desc.Layers), len(diffIDs); got != want || got > maxLayers {
		return nil, nil, bad("%s has %d layers, its config %q names %d", d.name, got, desc.Config, want)
	}
	plain := false
	layers := make([]layer, len(diffIDs))
	for i, file := range desc.Layers {
		if layers[i], err = d.layer(desc, file, diffIDs[i]); err != nil {
			return nil, nil, bad("%s: layer %d of %d, %q: %w", d.name, i+1, len(desc.Layers), file, err)
		}
		plain = plain || layers[i].here && layers[i].kind == ""
	}
	if plain {
		return d.plain(config, layers), nil, nil
	}
	s, err := d.manifestOf(ctx, config, layers)
	return nil, s, err
}

// layer is one of an image that has no manifest.
type layer struct {
	entry
	file   string
	diffID v1.Hash
	kind   string // of compression, empty for none
	here   bool
	// foreign says where to get it, if it is not here.
	foreign v1.Descriptor
}

// layer looks at the beginning of a layer.
func (d *dockerArchive) layer(desc *tarball.Descriptor, file string, diffID v1.Hash) (l layer, err error) {
	l = layer{file: file, diffID: diffID}
	if diffID.Algorithm != "sha256" {
		return l, fmt.Errorf("the config has the diffID %s", diffID)
	}
	if l.entry, l.here = d.find(file); !l.here {
		if foreign, ok := desc.LayerSources[diffID]; ok && !foreign.MediaType.IsDistributable() {
			l.foreign = foreign
			return l, nil
		}
		return l, errors.New("it is missing")
	}
	magic := make([]byte, min(l.size, 6))
	if _, err := d.f.ReadAt(magic, l.offset); err != nil && !errors.Is(err, io.EOF) {
		return l, err
	}
	l.kind = saved.Compression(magic)
	if l.kind != "" && l.kind != saved.Gzip && l.kind != saved.Zstd {
		return l, fmt.Errorf("it is compressed with %s, which is not supported", l.kind)
	}
	return l, nil
}

// plain leaves it to others to make blobs of the layers.
func (d *dockerArchive) plain(config []byte, layers []layer) *saved.Plain {
	p := &saved.Plain{Config: config}
	for _, l := range layers {
		one := saved.PlainLayer{DiffID: digest.Digest(l.diffID.String()), Name: l.file, Foreign: l.foreign}
		if l.here {
			one.Open = func() (io.ReadCloser, error) {
				r, err := d.open(l.entry, 0)
				if err != nil {
					return nil, bad("%s: %q: %w", d.name, l.file, err)
				}
				return &read{r, fmt.Sprintf("%s: %q", d.name, l.file)}, nil
			}
		}
		p.Layers = append(p.Layers, one)
	}
	return p
}

// read says of its errors that they are the source's.
type read struct {
	io.ReadCloser
	what string
}

func (r *read) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = bad("%s: %w", r.what, err)
	}
	return n, err
}

// manifestOf makes a manifest of layers that are compressed as registries have
// them.
func (d *dockerArchive) manifestOf(ctx context.Context, config []byte, layers []layer) (*pusher.Stored, error) {
	store := &made{archive: d.archive, config: config, parts: map[v1.Hash]entry{}}
	mt := types.DockerManifestSchema2
	configDesc := v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config)), Digest: hashOf(config)}
	zstd := slices.ContainsFunc(layers, func(l layer) bool { return l.kind == saved.Zstd })
	if zstd { // docker's own format has no such layers
		mt, configDesc.MediaType = types.OCIManifestSchema1, types.OCIConfigJSON
	}
	var descs []v1.Descriptor
	done := map[v1.Hash]v1.Descriptor{}
	for i, l := range layers {
		desc, ok := done[l.diffID]
		switch {
		case ok:
		case !l.here:
			desc = l.foreign
		default:
			var err error
			if desc, err = d.blob(ctx, l, zstd); err != nil {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				return nil, bad("%s: layer %d of %d, %q: %w", d.name, i+1, len(layers), l.file, err)
			}
			store.parts[desc.Digest] = l.entry
		}
		done[l.diffID] = desc
		descs = append(descs, desc)
	}
	raw, err := manifest.Image(mt, configDesc, descs)
	if err != nil {
		return nil, bad("%s: %w", d.name, err)
	}
	store.raw, store.configDigest = raw, configDesc.Digest
	return &pusher.Stored{Content: store, Descriptor: v1.Descriptor{MediaType: mt, Digest: hashOf(raw), Size: int64(len(raw))}}, nil
}

// blob finds out the digest of a compressed layer. The archive gives none, only
// the diffID of what is in it: nobody else can notice damage.
func (d *dockerArchive) blob(ctx context.Context, l layer, oci bool) (v1.Descriptor, error) {
	desc := v1.Descriptor{MediaType: types.DockerLayer, Size: l.size}
	switch {
	case l.kind == saved.Zstd:
		desc.MediaType = types.OCILayerZStd
	case oci:
		desc.MediaType = types.OCILayer
	}
	r, err := d.open(l.entry, 0)
	if err != nil {
		return desc, err
	}
	defer r.Close()
	h := sha256.New()
	if err := verify(ctx, io.TeeReader(r, h), l.diffID); err != nil {
		return desc, err
	}
	_, err = io.Copy(h, saved.Cancellable(ctx, r)) // behind the compressed stream
	desc.Digest = sum(h)
	return desc, err
}

func hashOf(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: digest.FromBytes(b).Encoded()}
}

// verify compares the digest of what r unpacks to. It need not read r to its
// end.
func verify(ctx context.Context, r io.Reader, want v1.Hash) error {
	plain, err := saved.Decompress(saved.Cancellable(ctx, r))
	if err != nil {
		return err
	}
	defer plain.Close()
	h := sha256.New()
	switch n, err := io.Copy(h, io.LimitReader(plain, saved.MaxLayer)); {
	case err != nil:
		return err
	case n == saved.MaxLayer:
		return fmt.Errorf("it unpacks to more than %d bytes", int64(saved.MaxLayer))
	}
	if got := sum(h); got != want {
		return fmt.Errorf("it is damaged: its digest is %s, the config says %s", got, want)
	}
	return nil
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}

// made is an image whose manifest was made here.
type made struct {
	archive      *archive
	raw, config  []byte
	configDigest v1.Hash
	parts        map[v1.Hash]entry
}

// Manifest implements pusher.Content: there is one.
func (m *made) Manifest(context.Context, v1.Descriptor) ([]byte, error) { return m.raw, nil }

// Open implements pusher.Content.
func (m *made) Open(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if d.Digest == m.configDigest {
		return io.NopCloser(strings.NewReader(string(m.config[min(offset, int64(len(m.config))):]))), nil
	}
	p, ok := m.parts[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", d.Digest, fs.ErrNotExist)
	}
	return m.archive.open(p, offset)
}
