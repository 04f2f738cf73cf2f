// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"cmp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
)

// Format is that of manifests. As they are is the zero value.
type Format string

// The formats, as --format names them.
const (
	OCI  Format = "oci"
	V2S2 Format = "v2s2" // docker's schema 2
)

// pairs are the media types that mean the same in both formats.
var pairs = []struct{ oci, docker types.MediaType }{
	{types.OCIManifestSchema1, types.DockerManifestSchema2},
	{types.OCIImageIndex, types.DockerManifestList},
	{types.OCIConfigJSON, types.DockerConfigJSON},
	{types.OCILayer, types.DockerLayer},
	{types.OCIUncompressedLayer, types.DockerUncompressedLayer},
	{types.OCIRestrictedLayer, types.DockerForeignLayer},
}

// translate gives the media type in the format; ok is false where it has none.
func (f Format) translate(mt types.MediaType) (out types.MediaType, ok bool) {
	for _, p := range pairs {
		if mt == p.oci || mt == p.docker {
			if f == OCI {
				return p.oci, true
			}
			return p.docker, true
		}
	}
	return mt, f == OCI // OCI takes any
}

// manifest writes a manifest again, unless it and its parts are in the format
// already: Docker's builder makes OCI manifests of layers that have docker's
// types. What has no type in the format may stay in a manifest of that format.
func (f Format) manifest(raw []byte) ([]byte, error) {
	m, err := manifest.Parse(raw, "")
	if err != nil {
		return nil, bad("manifest %s: %w", digest.FromBytes(raw), err)
	}
	if f == "" {
		return raw, nil
	}
	media := cmp.Or(m.MediaType, types.OCIManifestSchema1)
	to, _ := f.translate(media)
	converts := to != media
	change := manifest.Changes{DropAnnotations: f == V2S2 && converts} // it has none
	if converts {
		change.MediaType = to
	}
	var unknown types.MediaType
	change.Descriptor = func(d *manifest.Descriptor) bool {
		to, ok := f.translate(d.MediaType)
		if ok {
			d.MediaType = to
		} else {
			unknown = cmp.Or(unknown, d.MediaType)
		}
		return true
	}
	out, err := manifest.Edit(raw, change)
	switch {
	case err != nil:
		return nil, bad("manifest %s: %w", digest.FromBytes(raw), err)
	case unknown != "" && converts:
		return nil, bad("%s cannot be written as %s: it has a part of type %q", digest.FromBytes(raw), f, unknown)
	}
	return out, nil
}

// index writes an index again if what its manifests became, by their digests, is
// not what it names, or if it is not in the format.
func (f Format) index(raw []byte, media types.MediaType, became map[v1.Hash]remote.Taggable) ([]byte, types.MediaType, error) {
	if f == "" {
		return raw, media, nil
	}
	now := map[v1.Hash]manifest.Descriptor{}
	digests := map[string]string{}
	for was, t := range became {
		raw, err := t.RawManifest()
		if err != nil {
			return nil, "", err
		}
		h, err := partial.Digest(t)
		if err != nil {
			return nil, "", err
		}
		now[was] = manifest.Descriptor{Size: int64(len(raw)), Digest: h}
		digests[was.String()] = h.String()
	}
	to, _ := f.translate(media)
	change := manifest.Changes{Descriptor: func(d *manifest.Descriptor) bool {
		if n, ok := now[d.Digest]; ok {
			d.Digest, d.Size = n.Digest, n.Size
			d.MediaType, _ = f.translate(d.MediaType)
		}
		if of, ok := digests[d.Annotations.AttestsTo]; ok {
			d.Annotations.AttestsTo = of
		}
		return true
	}}
	if to != media {
		change.MediaType = to
	}
	out, err := manifest.Edit(raw, change)
	if err != nil {
		err = bad("index %s: %w", digest.FromBytes(raw), err)
	}
	return out, to, err
}
