package stream

import (
	"bytes"
	"encoding/json"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/saved"
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

// manifest writes a manifest anew, unless it and its parts are in the format
// already: Docker's builder makes OCI manifests of layers that have docker's
// types. What has no type in the format may stay in a manifest of that format.
func (f Format) manifest(raw []byte) ([]byte, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, bad("manifest %s: %w", digest.FromBytes(raw), err)
	}
	if m.MediaType == "" {
		m.MediaType = types.OCIManifestSchema1
	}
	if f == "" {
		return raw, nil
	}
	to, _ := f.translate(m.MediaType)
	converts := to != m.MediaType
	changed := converts
	all := []*types.MediaType{&m.MediaType, &m.Config.MediaType}
	for i := range m.Layers {
		all = append(all, &m.Layers[i].MediaType)
	}
	for _, mt := range all {
		to, ok := f.translate(*mt)
		if !ok && converts {
			return nil, bad("%s cannot be written as %s: it has a part of type %q", digest.FromBytes(raw), f, *mt)
		}
		if ok && to != *mt {
			*mt, changed = to, true
		}
	}
	if !changed {
		return raw, nil
	}
	if f == V2S2 && converts {
		m.Annotations = nil // it has none
	}
	return json.MarshalIndent(m, "", "   ")
}

// index takes the children, as they have become, into an index, and reports
// whether that changed it.
func (f Format) index(m *v1.IndexManifest, children []remote.Taggable) (changed bool, err error) {
	if f == "" {
		return false, nil
	}
	became := map[string]string{}
	for i, c := range children {
		raw, err := c.RawManifest()
		if err != nil {
			return false, err
		}
		d := &m.Manifests[i]
		before := *d
		if d.Digest, err = partial.Digest(c); err != nil {
			return false, err
		}
		d.Size = int64(len(raw))
		d.MediaType, _ = f.translate(d.MediaType)
		changed = changed || d.Digest != before.Digest || d.MediaType != before.MediaType
		became[before.Digest.String()] = d.Digest.String()
	}
	for _, d := range m.Manifests {
		if now, ok := became[d.Annotations[saved.AttestsTo]]; ok {
			d.Annotations[saved.AttestsTo] = now
		}
	}
	to, _ := f.translate(m.MediaType)
	changed = changed || to != m.MediaType
	m.MediaType = to
	return changed, nil
}
