// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/saved"
)

var errChanged = errors.New("what was saved is not the image that was asked for")

// docker makes the image of an archive with a manifest.json.
func (j *Job) docker(a *saved.Archive) (remote.Taggable, error) {
	images, err := a.Docker()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		config, ok := a.Document(img.Config)
		if !ok || j.Input.ID().Algorithm().FromBytes(config) != j.Input.ID() {
			continue
		}
		diffs, err := diffIDs(config)
		if err != nil {
			return nil, bad("the config %s: %w", j.Input.ID(), err)
		}
		if len(diffs) != len(img.Layers) {
			return nil, bad("the image has %d layers, its config names %d", len(img.Layers), len(diffs))
		}
		for i, name := range img.Layers {
			if foreign, ok := img.LayerSources[toHash(diffs[i])]; ok && !foreign.MediaType.IsDistributable() {
				continue
			}
			file, _, ok := a.Resolve(name)
			if !ok {
				return nil, bad("layer %d of %d, %q, is missing", i+1, len(diffs), name)
			}
			if got := j.diffs[file]; got != diffs[i] {
				return nil, bad("layer %d of %d, %q, is damaged: its digest is %s, the config says %s", i+1, len(diffs), name, got, diffs[i])
			}
		}
		return j.assemble(config, img.LayerSources)
	}
	return nil, bad("%w: it has no config %s", errChanged, j.Input.ID())
}

func toHash(d digest.Digest) v1.Hash {
	return v1.Hash{Algorithm: d.Algorithm().String(), Hex: d.Encoded()}
}

// assemble makes the image of layers that are at the registry or on their way.
// Which ones they are only the config says.
func (j *Job) assemble(config []byte, foreign map[v1.Hash]v1.Descriptor) (remote.Taggable, error) {
	if got := j.Input.ID().Algorithm().FromBytes(config); got != j.Input.ID() {
		return nil, bad("%w: its config is %s, not %s", errChanged, got, j.Input.ID())
	}
	diffs, err := diffIDs(config)
	if err != nil {
		return nil, bad("the config %s: %w", j.Input.ID(), err)
	}
	var descs []v1.Descriptor
	for i, diff := range diffs {
		if f, ok := foreign[toHash(diff)]; ok && !f.MediaType.IsDistributable() {
			descs = append(descs, f)
			continue
		}
		l, ok := j.known(diff)
		if !ok {
			return nil, bad("layer %d of %d, %s, is missing", i+1, len(diffs), diff)
		}
		a, ok := compress.Of(mediaType(l))
		if !ok {
			return nil, bad("layer %d of %d has the media type %q", i+1, len(diffs), l.MediaType)
		}
		d, err := descriptor(l, a.LayerType(j.Format == OCI))
		if err != nil {
			return nil, bad("layer %d of %d: %w", i+1, len(diffs), err)
		}
		descs = append(descs, d)
	}
	raw, err := NewManifest(config, descs, j.Format == OCI)
	if err != nil {
		return nil, err
	}
	j.keep(j.Cache.AddConfig(j.Input.ID(), config))
	return NewImage(raw, config, nil)
}
