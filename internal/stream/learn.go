package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/pusher"
)

// maxPlatforms bounds the images of an index that are looked at.
const maxPlatforms = 8

// Lessons are what registries know of the layers of an image. The zero value is
// ready. It is safe for concurrent use.
type Lessons struct {
	// ID is that of the image they are for; its config is kept where it is met.
	ID digest.Digest

	mu     sync.Mutex
	layers map[digest.Digest][]known.Layer
	config []byte
}

// Layers are the blobs that hold a layer, by diffID.
func (l *Lessons) Layers() map[digest.Digest][]known.Layer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.layers
}

// Config is that of the image, empty where it was not met.
func (l *Lessons) Config() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config
}

// errOther says that a manifest is not of the image it was taken for.
var errOther = errors.New("the manifest is of another image")

// Learn reads the manifest of ref, or those of an index, and what layers they
// are of. A reference that leads to nothing teaches nothing.
func (l *Lessons) Learn(ctx context.Context, p *pusher.Pusher, ref name.Reference) error {
	return l.LearnAs(ctx, p, ref, ref.Context(), "", nil)
}

// LearnAs is Learn for an image that was pulled from the repository of, whose
// ID and diffIDs are known: its config is not read. ref may be at a mirror.
func (l *Lessons) LearnAs(ctx context.Context, p *pusher.Pusher, ref name.Reference, of name.Repository, id digest.Digest, diffs []digest.Digest) error {
	doc, err := p.Manifest(ctx, ref)
	if err != nil || doc == nil {
		return err
	}
	if types.MediaType(doc.MediaType).IsIndex() {
		return l.index(ctx, p, ref, of, doc.Raw, id, diffs)
	}
	m, err := v1.ParseManifest(bytes.NewReader(doc.Raw))
	if err != nil {
		return bad("the manifest of %s: %w", ref.Name(), err)
	}
	config := digest.Digest(m.Config.Digest.String())
	switch {
	case id != "" && config != id:
		return fmt.Errorf("%s: %w: its config is %s, not %s", ref.Name(), errOther, config, id)
	case id == "" || config == l.ID:
		c, err := p.Config(ctx, ref.Context(), config)
		if err != nil || c == nil {
			return err
		}
		if diffs, err = diffIDs(c.Raw); err != nil {
			return bad("the config of %s: %w", ref.Name(), err)
		}
		if config == l.ID {
			l.mu.Lock()
			l.config = c.Raw
			l.mu.Unlock()
		}
	}
	if len(diffs) != len(m.Layers) {
		return nil // an artifact, or a config that counts otherwise
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.layers == nil {
		l.layers = map[digest.Digest][]known.Layer{}
	}
	for i, d := range m.Layers {
		if _, ok := compress.Of(d.MediaType); !ok || d.Size < 0 { // no size is asked for as any
			continue
		}
		l.layers[diffs[i]] = append(l.layers[diffs[i]], known.Layer{
			Digest: digest.Digest(d.Digest.String()), Size: d.Size, MediaType: string(d.MediaType),
			Repositories: []string{of.Name()},
		})
	}
	return nil
}

// index learns from each image of an index; only the one of the ID where that
// is given.
func (l *Lessons) index(ctx context.Context, p *pusher.Pusher, ref name.Reference, of name.Repository, raw []byte, id digest.Digest, diffs []digest.Digest) error {
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return bad("the index of %s: %w", ref.Name(), err)
	}
	seen := 0
	for _, d := range m.Manifests {
		attests := d.Annotations[saved.AttestsTo] != ""
		if !d.MediaType.IsImage() || attests {
			continue
		}
		if seen++; seen > maxPlatforms {
			break
		}
		err := l.LearnAs(ctx, p, ref.Context().Digest(d.Digest.String()), of, id, diffs)
		if err != nil && !errors.Is(err, errOther) {
			return err
		}
	}
	return nil
}
