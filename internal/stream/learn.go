// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/pusher"
)

const (
	// maxPlatforms bounds the images of an index that are looked at.
	maxPlatforms = 8
	// maxLearnt bounds the layers, diffIDs and manifests that one document may
	// list: container runtimes allow some hundred layers.
	maxLearnt = 2048
	// maxCandidates bounds the blobs that may hold one layer.
	maxCandidates = 4
	// maxDocuments bounds the manifests and configs in memory at once, of up to
	// 4 MiB each.
	maxDocuments = 2
)

// Lessons are what registries say about the layers of an image. None of it is
// verified: anyone who can write to the repository can make it up. The zero
// value is ready and learns nothing. It is safe for concurrent use.
type Lessons struct {
	// ID is that of the image; its config is kept if a registry has it.
	ID digest.Digest
	// DiffIDs are the layers to look for.
	DiffIDs []digest.Digest

	once  sync.Once
	slots chan struct{} // one for each document in memory

	mu     sync.Mutex
	layers map[digest.Digest][]known.Layer
	config []byte
}

// Layers are the blobs that are said to hold a layer, by diffID.
func (l *Lessons) Layers() map[digest.Digest][]known.Layer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.layers
}

// Config is that of the image, empty if no registry had it.
func (l *Lessons) Config() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config
}

// errOther says that a manifest is not of the image it was taken for.
var errOther = errors.New("the manifest is of another image")

// Learn reads the manifest of ref, or those of an index, and their configs. A
// reference that does not exist is no error.
func (l *Lessons) Learn(ctx context.Context, p *pusher.Pusher, ref name.Reference) error {
	return l.LearnAs(ctx, p, ref, ref.Context(), "", nil)
}

// LearnAs is Learn for an image that was pulled from the repository of, whose
// ID and diffIDs are known: its config is not read. ref may be at a mirror.
func (l *Lessons) LearnAs(ctx context.Context, p *pusher.Pusher, ref name.Reference, of name.Repository, id digest.Digest, diffs []digest.Digest) error {
	l.once.Do(func() { l.slots = make(chan struct{}, maxDocuments) })
	s := &lesson{l: l, p: p, of: of, id: id, diffs: diffs}
	children, err := s.learn(ctx, ref)
	s.repo = ref.Context()
	w := manifest.Walker[manifest.Descriptor]{Tree: s}
	for _, child := range children {
		if err == nil {
			err = w.Walk(ctx, child)
		}
	}
	return err
}

// lesson is a walk over the images of an index.
type lesson struct {
	l     *Lessons
	p     *pusher.Pusher
	repo  name.Repository
	of    name.Repository
	id    digest.Digest
	diffs []digest.Digest
}

// Describe implements manifest.Tree.
func (s *lesson) Describe(_ context.Context, d manifest.Descriptor) (v1.Descriptor, bool, error) {
	return d.V1(), true, nil
}

// Enter implements manifest.Tree. An index below the first is not looked at.
func (s *lesson) Enter(ctx context.Context, d manifest.Descriptor, _ int) ([]manifest.Descriptor, error) {
	_, err := s.learn(ctx, s.repo.Digest(d.Digest.String()))
	if errors.Is(err, errOther) {
		err = nil
	}
	return nil, err
}

// Leave implements manifest.Tree.
func (s *lesson) Leave(context.Context, manifest.Descriptor, []manifest.Descriptor) error { return nil }

// learn reads one manifest; that of an index gives the images to read next.
func (s *lesson) learn(ctx context.Context, ref name.Reference) ([]manifest.Descriptor, error) {
	l, diffs := s.l, s.diffs
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	doc, err := s.p.Manifest(ctx, ref)
	if err != nil || doc == nil {
		return nil, err
	}
	m, err := manifest.Parse(doc.Raw, "")
	if err != nil {
		return nil, bad("the manifest of %s: %w", ref.Name(), err)
	}
	if types.MediaType(doc.MediaType).IsIndex() {
		return imagesOf(m), nil
	}
	doc = nil // let it go before the config is read
	switch {
	case len(m.Layers) > maxLearnt:
		return nil, bad("the manifest of %s names more than %d layers", ref.Name(), maxLearnt)
	case m.Config == nil:
		return nil, nil
	}
	config := digest.Digest(m.Config.Digest.String())
	switch {
	case s.id != "" && config != s.id:
		return nil, fmt.Errorf("%s: %w: its config is %s, not %s", ref.Name(), errOther, config, s.id)
	case s.id == "" || config == l.ID:
		c, err := s.p.Config(ctx, ref.Context(), config)
		if err != nil || c == nil {
			return nil, err
		}
		if int64(len(c.Raw)) != m.Config.Size {
			return nil, bad("the config of %s has %d bytes, its manifest says %d", ref.Name(), len(c.Raw), m.Config.Size)
		}
		if diffs, err = diffIDs(c.Raw); err != nil {
			return nil, bad("the config of %s: %w", ref.Name(), err)
		}
		if config == l.ID {
			l.mu.Lock()
			l.config = c.Raw
			l.mu.Unlock()
		}
	}
	if len(diffs) != len(m.Layers) {
		return nil, nil // an artifact, or a config that counts otherwise
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, d := range m.Layers {
		l.add(diffs[i], known.Layer{
			Digest: digest.Digest(d.Digest.String()), Size: d.Size, MediaType: string(d.MediaType),
			Repositories: []string{s.of.Name()},
		})
	}
	return nil, nil
}

// add notes a blob that is said to hold a layer, if it can.
func (l *Lessons) add(diff digest.Digest, layer known.Layer) {
	_, ok := compress.Of(mediaType(layer))
	if !ok || layer.Size < 0 || !slices.Contains(l.DiffIDs, diff) {
		return
	}
	if l.layers == nil {
		l.layers = map[digest.Digest][]known.Layer{}
	}
	said := l.layers[diff]
	for i, o := range said {
		if o.Digest == layer.Digest && o.Size == layer.Size && o.MediaType == layer.MediaType {
			if !slices.Contains(o.Repositories, layer.Repositories[0]) {
				said[i].Repositories = append(said[i].Repositories, layer.Repositories...)
			}
			return
		}
	}
	if len(said) < maxCandidates {
		l.layers[diff] = append(said, layer)
	}
}

// imagesOf are the images of an index, without attestations.
func imagesOf(m *manifest.Manifest) []manifest.Descriptor {
	images := slices.DeleteFunc(m.Manifests, func(d manifest.Descriptor) bool {
		return !d.MediaType.IsImage() || d.Attests() != ""
	})
	return images[:min(len(images), maxPlatforms)]
}

// list is an array of JSON that is refused, before it takes memory, if it has
// more than maxLearnt elements.
type list[T any] []T

func (l *list[T]) UnmarshalJSON(b []byte) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(b))
	switch t, err := dec.Token(); {
	case err != nil:
		return err
	case t == nil: // null
		return nil
	case t != json.Delim('['):
		return fmt.Errorf("%v where a list should be", t)
	}
	for dec.More() {
		if len(*l) == maxLearnt {
			return fmt.Errorf("a list of more than %d elements", maxLearnt)
		}
		var one T
		if err := dec.Decode(&one); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	return nil
}
