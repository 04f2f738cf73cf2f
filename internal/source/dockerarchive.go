package source

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/pusher"
)

const (
	manifestFile = "manifest.json"

	// maxPlain is the most that a layer may unpack to: more is a bomb.
	maxPlain = 1 << 40
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
	d := &dockerArchive{archive: a, spool: o.Spool}
	if err := json.Unmarshal(raw, &d.manifest); err != nil {
		return nil, bad("%s: manifest.json: %w", a.name, err)
	}
	if len(d.manifest) == 0 {
		return nil, bad("%s is no docker archive: it has no manifest.json that names an image", a.name)
	}
	return &Images{
		name: named,
		open: func(ctx context.Context, sel selector) (remote.Taggable, error) {
			desc, err := d.choose(sel)
			if err != nil {
				return nil, err
			}
			s := d.original(desc)
			if s == nil && o.PreserveDigests {
				return nil, bad("%s has no manifest whose digest could be preserved: its layers are not stored as registries have them", a.name)
			}
			if s != nil {
				c := checker{ctx: ctx, p: tarred{a}, nondistributable: o.Nondistributable, seen: map[visit]bool{}}
				if err := c.checkStored(s); err != nil {
					return nil, err
				}
			} else if s, err = d.image(ctx, desc); err != nil {
				return nil, err
			}
			return o.pick(ctx, s)
		},
		all: func(context.Context) (map[string]selector, error) {
			all := map[string]selector{}
			for i, desc := range d.manifest {
				for _, t := range desc.RepoTags {
					if tag := tagOf(t); tag != "" {
						if _, ok := all[tag]; ok {
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
	spool    string
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

// original finds the manifest that the image was pulled or built with, in an
// OCI layout in the same archive. nil is none, or one with layers that a
// registry is not sent as they are.
func (d *dockerArchive) original(desc *tarball.Descriptor) *pusher.Stored {
	t := tarred{d.archive}
	top, err := readTop(t)
	if err != nil {
		return nil
	}
	var search func(ds []v1.Descriptor, depth int) *pusher.Stored
	search = func(ds []v1.Descriptor, depth int) *pusher.Stored {
		for _, m := range ds {
			if depth > maxDepth || !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
				continue
			}
			s := &pusher.Stored{Content: t, Descriptor: m}
			raw, err := s.RawManifest()
			if err != nil {
				continue
			}
			below, err := readManifest(raw, m)
			if err != nil {
				continue
			}
			if m.MediaType.IsIndex() {
				if found := search(below, depth+1); found != nil {
					return found
				}
				continue
			}
			config := func(b v1.Descriptor) bool { return blobName(b.Digest) == path.Clean(desc.Config) }
			if slices.ContainsFunc(below, config) && d.compressed([]v1.Descriptor{m}, 0) {
				return s
			}
		}
		return nil
	}
	return search(top.Manifests, 0)
}

// image makes a manifest for an image that has none.
func (d *dockerArchive) image(ctx context.Context, desc *tarball.Descriptor) (*pusher.Stored, error) {
	if _, ok := d.find(desc.Config); !ok {
		return nil, bad("%s: the config %q is missing", d.name, desc.Config)
	}
	config, err := d.document(desc.Config)
	if err != nil {
		return nil, bad("the config: %w", err)
	}
	var cfg v1.ConfigFile
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, bad("%s: the config %q: %w", d.name, desc.Config, err)
	}
	diffIDs := cfg.RootFS.DiffIDs
	if got, want := len(desc.Layers), len(diffIDs); got != want || got > maxLayers {
		return nil, bad("%s has %d layers, its config %q names %d", d.name, got, desc.Config, want)
	}
	store := &made{archive: d.archive, parts: map[v1.Hash]part{}}
	layers, done := make([]v1.Descriptor, len(diffIDs)), map[v1.Hash]v1.Descriptor{}
	zstd := false
	for i, file := range desc.Layers {
		l, ok := done[diffIDs[i]]
		if !ok {
			if l, err = d.layer(ctx, store, desc, file, diffIDs[i]); err != nil {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				return nil, bad("%s: layer %d of %d, %q: %w", d.name, i+1, len(desc.Layers), file, err)
			}
			done[diffIDs[i]] = l
		}
		zstd = zstd || l.MediaType == types.OCILayerZStd
		layers[i] = l
	}

	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Layers: layers}
	m.Config = v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config)), Digest: hashOf(config)}
	if zstd { // docker's own format has no such layers
		m.MediaType, m.Config.MediaType = types.OCIManifestSchema1, types.OCIConfigJSON
		for i, l := range layers {
			if l.MediaType == types.DockerLayer {
				layers[i].MediaType = types.OCILayer
			}
		}
	}
	raw, err := json.MarshalIndent(m, "", "   ")
	if err != nil {
		return nil, err
	}
	store.config, store.raw = config, raw
	store.configDigest = m.Config.Digest
	return &pusher.Stored{Content: store, Descriptor: v1.Descriptor{MediaType: m.MediaType, Digest: hashOf(raw), Size: int64(len(raw))}}, nil
}

func hashOf(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: digest.FromBytes(b).Encoded()}
}

// layer finds out what a layer is as registries have it: as it is where it is
// compressed, and compressed into the spool where it is not. The archive gives
// no digest of what will be sent, only the diffID of what is in it: nobody else
// can notice damage.
func (d *dockerArchive) layer(ctx context.Context, store *made, desc *tarball.Descriptor, file string, diffID v1.Hash) (v1.Descriptor, error) {
	e, ok := d.find(file)
	if !ok {
		if foreign, ok := desc.LayerSources[diffID]; ok && !foreign.MediaType.IsDistributable() {
			return foreign, nil
		}
		return v1.Descriptor{}, errors.New("it is missing")
	}
	if diffID.Algorithm != "sha256" {
		return v1.Descriptor{}, fmt.Errorf("the config has the diffID %s", diffID)
	}
	magic := make([]byte, min(e.size, 6))
	if _, err := d.f.ReadAt(magic, e.offset); err != nil && !errors.Is(err, io.EOF) {
		return v1.Descriptor{}, err
	}
	r, err := d.open(e, 0)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer r.Close()
	l := v1.Descriptor{MediaType: types.DockerLayer}
	var p part
	switch kind := saved.Compression(magic); kind {
	case "":
		if p, l.Digest, err = d.compress(ctx, r, diffID); err != nil {
			return l, err
		}
	case saved.Gzip, saved.Zstd:
		if kind == saved.Zstd {
			l.MediaType = types.OCILayerZStd
		}
		h := sha256.New()
		if err := verify(ctx, io.TeeReader(r, h), diffID); err != nil {
			return l, err
		}
		if _, err := io.Copy(h, &cancellable{ctx, r}); err != nil { // behind the compressed stream
			return l, err
		}
		p, l.Digest = part{d.f, e.offset, e.size}, sum(h)
	default:
		return l, fmt.Errorf("it is compressed with %s, which is not supported", kind)
	}
	l.Size = p.size
	store.add(l.Digest, p)
	return l, nil
}

// verify compares the digest of what r unpacks to. It need not read r to its
// end.
func verify(ctx context.Context, r io.Reader, want v1.Hash) error {
	plain, err := saved.Decompress(&cancellable{ctx, r})
	if err != nil {
		return err
	}
	defer plain.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(plain, maxPlain))
	if err != nil {
		return err
	}
	return damaged(n, h, want)
}

func damaged(n int64, h hash.Hash, want v1.Hash) error {
	if n == maxPlain {
		return fmt.Errorf("it unpacks to more than %d bytes", int64(maxPlain))
	}
	if got := sum(h); got != want {
		return fmt.Errorf("it is damaged: its digest is %s, the config says %s", got, want)
	}
	return nil
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}

// compress writes a layer to a file of its own, so that every try sends the
// same bytes.
func (d *dockerArchive) compress(ctx context.Context, r io.Reader, diffID v1.Hash) (p part, got v1.Hash, err error) {
	f, err := newSpool(d.spool)
	if err != nil {
		return p, got, err
	}
	d.copies = append(d.copies, f)
	plain, sent := sha256.New(), sha256.New()
	gz, err := compress.Gzip.Writer(io.MultiWriter(f, sent)) // as from the engine: the digest is the same
	if err != nil {
		return p, got, err
	}
	n, err := io.Copy(io.MultiWriter(plain, gz), &cancellable{ctx, r})
	if cerr := gz.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return p, got, err
	}
	if err := damaged(n, plain, diffID); err != nil {
		return p, got, err
	}
	fi, err := f.Stat()
	if err != nil {
		return p, got, err
	}
	return part{f, 0, fi.Size()}, sum(sent), nil
}

// part is where a blob lies.
type part struct {
	f            *os.File
	offset, size int64
}

// made is the store of an image whose manifest was made here.
type made struct {
	archive      *archive
	raw, config  []byte
	configDigest v1.Hash

	mu    sync.Mutex
	parts map[v1.Hash]part
}

func (m *made) add(h v1.Hash, p part) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parts[h] = p
}

// Manifest implements pusher.Content: there is one.
func (m *made) Manifest(context.Context, v1.Descriptor) ([]byte, error) { return m.raw, nil }

// Open implements pusher.Content.
func (m *made) Open(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if d.Digest == m.configDigest {
		return io.NopCloser(strings.NewReader(string(m.config[min(offset, int64(len(m.config))):]))), nil
	}
	m.mu.Lock()
	p, ok := m.parts[d.Digest]
	m.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s: %w", d.Digest, fs.ErrNotExist)
	}
	return openSection(p.f, p.offset+offset, p.size-offset)
}
