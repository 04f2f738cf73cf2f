// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/manifest"
)

// opener is that of resume.Blob, at offset 0.
type opener func() (io.ReadCloser, error)

// core is an image whose manifest and config are in memory and whose layers
// can be opened, or are at the registry already.
type core struct {
	manifest []byte
	media    types.MediaType
	config   []byte
	descs    []manifest.Descriptor
	open     func(d digest.Digest) opener
}

func (c *core) RawManifest() ([]byte, error)        { return c.manifest, nil }
func (c *core) RawConfigFile() ([]byte, error)      { return c.config, nil }
func (c *core) MediaType() (types.MediaType, error) { return c.media, nil }
func (c *core) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range c.descs {
		if d.Digest == h {
			return &coreLayer{d, c.open(digest.Digest(h.String()))}, nil
		}
	}
	return nil, fmt.Errorf("the manifest names no layer %s", h)
}

type coreLayer struct {
	desc manifest.Descriptor
	open opener
}

func (l *coreLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *coreLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *coreLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *coreLayer) Compressed() (io.ReadCloser, error) {
	if l.open == nil {
		return nil, errGone
	}
	return l.open()
}

// errGone is for a layer that is not here because the registry had it, and has
// not any more: the same command again makes it.
var errGone = errors.New("the registry had this layer a moment ago, and has it no more")

// NewImage makes an image of a manifest, whatever its kind, and its config.
// open says how to read a layer, nil for one that the registry has.
func NewImage(raw, config []byte, open func(digest.Digest) func() (io.ReadCloser, error)) (v1.Image, error) {
	m, err := manifest.Parse(raw, "")
	if err != nil {
		return nil, bad("manifest %s: %w", digest.FromBytes(raw), err)
	}
	c := &core{manifest: raw, media: cmp.Or(m.MediaType, types.OCIManifestSchema1), config: config, descs: m.Layers}
	c.open = func(d digest.Digest) opener {
		if open == nil {
			return nil
		}
		return open(d)
	}
	img, err := partial.CompressedToImage(c)
	if err != nil {
		return nil, bad("manifest %s: %w", digest.FromBytes(raw), err)
	}
	return img, nil
}

// NewManifest writes the manifest of an image as docker writes it, which has
// its digest for its name: in docker's schema 2 or, as OCI.
func NewManifest(config []byte, layers []v1.Descriptor, oci bool) ([]byte, error) {
	mt, c := types.DockerManifestSchema2, v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config))}
	if oci {
		mt, c.MediaType = types.OCIManifestSchema1, types.OCIConfigJSON
	}
	var err error
	if c.Digest, err = v1.NewHash(digest.FromBytes(config).String()); err != nil {
		return nil, err
	}
	raw, err := manifest.Image(mt, c, layers)
	if err != nil {
		return nil, bad("%w", err)
	}
	return raw, nil
}

// descriptor is what a manifest says of a layer.
func descriptor(l known.Layer, mt types.MediaType) (v1.Descriptor, error) {
	h, err := v1.NewHash(l.Digest.String())
	return v1.Descriptor{MediaType: mt, Size: l.Size, Digest: h}, err
}

// diffIDs reads those of a config.
func diffIDs(config []byte) ([]digest.Digest, error) {
	var c struct {
		RootFS struct {
			DiffIDs list[digest.Digest] `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("diffID %q: %w", d, err)
		}
	}
	return c.RootFS.DiffIDs, nil
}
