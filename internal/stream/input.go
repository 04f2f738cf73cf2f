// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/saved"
)

// Input is an image to be delivered: a Saved, a Whole or a Plain.
type Input interface {
	// ID is the digest of the image's config or, of a Whole, of its manifest or
	// index.
	ID() digest.Digest
	// DiffIDs are those of the layers that blobs are made of. A Whole has none.
	DiffIDs() []digest.Digest

	// config is the image's config if it is at hand, else empty.
	config() []byte
	// foreign are the layers that are not here and that nobody is sent, by diffID.
	foreign() map[v1.Hash]v1.Descriptor
	// keepsBlobs reports whether files are published as they are.
	keepsBlobs() bool
	// read takes in all files that the registry does not have. When they have been
	// delivered, finish makes the image.
	read(ctx context.Context, j *Job) (finish func(context.Context) (remote.Taggable, error), err error)
	// reread reads one file once more.
	reread(ctx context.Context, file string, read func(io.Reader) error) error
	// exportsToReread is how often the engine saves the image for that: once or
	// not at all.
	exportsToReread() int
}

// Save gives a saved image, from its first byte to its last. It is called again
// for files that did not fit into the spool, once for each try.
type Save func(context.Context) (io.ReadCloser, error)

// Saved is an image as docker save and podman save write it: layers that are to be
// compressed, and a manifest.json.
type Saved struct {
	Save Save
	// Config is the digest of the image's config.
	Config digest.Digest
	// Layers are the diffIDs of the layers.
	Layers []digest.Digest
}

// ID implements Input.
func (s *Saved) ID() digest.Digest { return s.Config }

// DiffIDs implements Input.
func (s *Saved) DiffIDs() []digest.Digest { return s.Layers }

func (s *Saved) config() []byte                     { return nil }
func (s *Saved) foreign() map[v1.Hash]v1.Descriptor { return nil }
func (s *Saved) keepsBlobs() bool                   { return false }
func (s *Saved) exportsToReread() int               { return 1 }

func (s *Saved) read(ctx context.Context, j *Job) (func(context.Context) (remote.Taggable, error), error) {
	chain := saved.ChainIDs(s.Layers)
	a, err := s.Save.walk(ctx, j, func(a *saved.Archive, e saved.Entry, r io.Reader) error {
		return j.layer(ctx, e.Name, s.claimed(a, e, chain), r)
	})
	return func(context.Context) (remote.Taggable, error) { return j.docker(a) }, err
}

func (s *Saved) reread(ctx context.Context, file string, read func(io.Reader) error) error {
	return s.Save.reread(ctx, file, read)
}

// claimed is the diffID that a file is said to have, before it is read; empty
// if nothing says so.
func (s *Saved) claimed(a *saved.Archive, e saved.Entry, chain []digest.Digest) digest.Digest {
	if i := a.Position(e, chain); i >= 0 {
		return s.Layers[i]
	}
	// Docker from 25 on names files by it, podman too.
	d := e.Digest
	if hex, ok := strings.CutSuffix(e.Name, ".tar"); ok {
		d = digest.NewDigestFromEncoded(digest.SHA256, hex)
	}
	if slices.Contains(s.Layers, d) {
		return d
	}
	return ""
}

// Whole is a saved image with manifests and blobs as they are to be published, as
// containerd keeps them: an OCI layout.
type Whole struct {
	Save Save
	// Digest is that of the manifest or index.
	Digest digest.Digest
	// MountIfHere are repositories that something else says may have blobs of the
	// image. A blob is mounted from one of them only after its bytes were read
	// here and have its digest: an image may name a blob that its author cannot
	// read.
	MountIfHere []string
}

// ID implements Input.
func (w *Whole) ID() digest.Digest { return w.Digest }

// DiffIDs implements Input.
func (w *Whole) DiffIDs() []digest.Digest { return nil }

func (w *Whole) config() []byte                     { return nil }
func (w *Whole) foreign() map[v1.Hash]v1.Descriptor { return nil }
func (w *Whole) keepsBlobs() bool                   { return true }
func (w *Whole) exportsToReread() int               { return 1 }

func (w *Whole) read(ctx context.Context, j *Job) (func(context.Context) (remote.Taggable, error), error) {
	a, err := w.Save.walk(ctx, j, func(_ *saved.Archive, e saved.Entry, r io.Reader) error {
		if e.Digest == "" {
			return nil
		}
		return j.blob(ctx, e, r, w.MountIfHere)
	})
	return func(ctx context.Context) (remote.Taggable, error) { return j.whole(ctx, a) }, err
}

func (w *Whole) reread(ctx context.Context, file string, read func(io.Reader) error) error {
	return w.Save.reread(ctx, file, read)
}

// Plain is an image in a file, of which each layer can be read by itself and is to
// be compressed.
type Plain struct{ *saved.Plain }

// ID implements Input.
func (p Plain) ID() digest.Digest { return digest.FromBytes(p.Config) }

// DiffIDs implements Input.
func (p Plain) DiffIDs() []digest.Digest {
	all := make([]digest.Digest, len(p.Layers))
	for i, l := range p.Layers {
		all[i] = l.DiffID
	}
	return all
}

func (p Plain) config() []byte       { return p.Config }
func (p Plain) keepsBlobs() bool     { return false }
func (p Plain) exportsToReread() int { return 0 }

func (p Plain) foreign() map[v1.Hash]v1.Descriptor {
	all := map[v1.Hash]v1.Descriptor{}
	for _, l := range p.Layers {
		if l.Open == nil {
			all[toHash(l.DiffID)] = l.Foreign
		}
	}
	return all
}

func (p Plain) read(ctx context.Context, j *Job) (func(context.Context) (remote.Taggable, error), error) {
	for i, l := range p.Layers {
		if _, ok := j.known(l.DiffID); ok || l.Open == nil {
			continue
		}
		err := open(l, func(r io.Reader) error { return j.layer(ctx, l.Name, l.DiffID, saved.Cancellable(ctx, r)) })
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(p.Layers), err)
		}
	}
	return func(context.Context) (remote.Taggable, error) { return j.assemble(p.Config, j.foreign) }, nil
}

func (p Plain) reread(_ context.Context, file string, read func(io.Reader) error) error {
	for _, l := range p.Layers {
		if l.Name == file {
			return open(l, read)
		}
	}
	return bad("there is no layer %s", file)
}

func open(l saved.PlainLayer, read func(io.Reader) error) error {
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return read(r)
}

// walk reads a saved image once.
func (s Save) walk(ctx context.Context, j *Job, visit saved.Visitor) (*saved.Archive, error) {
	j.Doing(fmt.Sprintf("waiting for the engine to save %s", short(j.Input.ID())))
	r, err := s(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	j.stats.Exports++
	return saved.Walk(ctx, r, func(a *saved.Archive, e saved.Entry, r io.Reader) error {
		if path.Base(e.Name) == "VERSION" {
			return nil
		}
		return visit(a, e, r)
	})
}

// reread reads a saved image once more, up to one file.
func (s Save) reread(ctx context.Context, file string, read func(io.Reader) error) error {
	r, err := s(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = saved.Walk(ctx, r, func(_ *saved.Archive, e saved.Entry, r io.Reader) error {
		if e.Name != file {
			return nil
		}
		if err := read(r); err != nil {
			return err
		}
		return errDone
	})
	switch {
	case err == nil:
		return bad("%s is no longer in what is saved", file)
	case errors.Is(err, errDone):
		return nil
	}
	return err
}

// errDone ends a walk that has found what it looked for.
var errDone = errors.New("done")
