// SPDX-License-Identifier: Apache-2.0

// Package stream delivers an image while it is still being read. What an
// engine saves comes once and in an order of its own, and goes out layer by
// layer, compressed on the way, before the manifest has been seen; so do the
// layers of a docker archive. Nothing that the registry has is compressed or
// sent.
package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// Job is one image to be delivered. Run may be called once.
type Job struct {
	// Delivery takes the blobs; Finish is the caller's.
	Delivery *pusher.Delivery
	// Input is the image.
	Input Input

	// Algorithm is how layers are compressed that are not as they are to be
	// published.
	Algorithm compress.Algorithm
	// Format is that of the manifests. Empty is docker's schema 2, or of a Whole
	// the one they have.
	Format Format

	// Learnt are blobs that may hold a layer, by diffID, beside those of Cache.
	// Only those are used that are on the registry of Repository and, once Reader
	// has downloaded them, turn out to hold the layer.
	Learnt map[digest.Digest][]known.Layer
	// Reader reads the blobs of Learnt; if it is nil, none is used.
	Reader *pusher.Pusher
	// Config is the config if it is known already, else empty.
	Config []byte

	// DryRun uploads nothing; a Spool would only fill up.
	DryRun bool

	// Spool is where layers wait for the registry; nil is none: each try makes
	// the layer again.
	Spool *spool.Dir
	// Cache is what is known of layers and images, without doubt; nil is nothing.
	Cache *known.Cache
	// Repository is where to, registry included.
	Repository string
	// MountFrom are repositories that may have any of the blobs. The user names
	// them: a blob is mounted from them whether or not its bytes are here.
	MountFrom []string
	// Warn gets what a user should know; it may not be nil.
	Warn func(error)
	// Doing is told what goes on, for those who wait; it may not be nil.
	Doing func(phase string)

	stats      Stats
	unkept     sync.Once
	verifyOnce sync.Once
	verifying  chan struct{} // one for each blob that is being verified

	mu      sync.Mutex
	at      map[digest.Digest]known.Layer // by diffID: at the registry, or about to be
	spooled map[digest.Digest]*spool.Blob
	files   map[string]known.Layer // by name in the archive; of a Whole, the blobs
	diffs   map[string]digest.Digest
	unfit   []unfit
	doubted map[string]bool           // repositories whose manifests name wrong blobs
	foreign map[v1.Hash]v1.Descriptor // as Input.foreign has it

	uploads   *errgroup.Group
	uploading context.Context // of uploads
}

// Stats say how much work it was.
type Stats struct {
	// Exports counts how often the image was read.
	Exports int `json:"exports"`
	// Read is how many bytes of layers were read and not skipped.
	Read int64 `json:"read"`
	// Compressed counts the layers that were compressed.
	Compressed int `json:"compressed"`
	// Spooled is how many bytes went into the spool, Reused how many of them
	// came from an earlier process.
	Spooled int64 `json:"spooled"`
	Reused  int64 `json:"reused"`
	// Verified is how many bytes of blobs were downloaded to learn whether they
	// hold the layers that a manifest said.
	Verified int64 `json:"verified"`
}

// Stats are final once Run returned.
func (j *Job) Stats() Stats { return j.stats }

// Run delivers the layers and returns the image for Delivery.Finish, which
// sends what is left: configs, and small blobs. The errors are those of package
// resume.
func (j *Job) Run(ctx context.Context) (remote.Taggable, error) {
	j.at, j.spooled = map[digest.Digest]known.Layer{}, map[digest.Digest]*spool.Blob{}
	j.files, j.diffs = map[string]known.Layer{}, map[string]digest.Digest{}
	j.foreign = j.Input.foreign()
	if config := j.Input.config(); len(config) > 0 {
		j.Config = config
	}
	defer func() {
		for _, b := range j.spooled {
			b.Keep() // for the next process; delivered ones are gone
		}
	}()
	if err := j.look(ctx); err != nil {
		return nil, err
	}
	j.uploads, j.uploading = errgroup.WithContext(ctx)
	img, err := j.deliver(j.uploading)
	if err != nil {
		// The cause may be an upload; its error is the one that Wait returns.
		stop := errStopped{err}
		j.uploads.Go(func() error { return stop })
	}
	werr := j.uploads.Wait()
	var stop errStopped
	switch {
	case errors.As(werr, &stop):
		return nil, stop.err
	case werr != nil:
		return nil, werr
	}
	return img, nil
}

// errStopped ends the uploads because reading has failed.
type errStopped struct{ err error }

func (e errStopped) Error() string { return e.err.Error() }

// look finds the layers that need not be read: those the registry has, and
// those that an earlier process left in the spool.
func (j *Job) look(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(pusher.DefaultChecks)
	seen := map[digest.Digest]bool{}
	for _, diff := range j.Input.DiffIDs() {
		if seen[diff] || j.elsewhere(diff) {
			continue
		}
		seen[diff] = true
		eg.Go(func() error { return j.lookFor(ctx, diff) })
	}
	return eg.Wait()
}

func (j *Job) lookFor(ctx context.Context, diff digest.Digest) error {
	var own *known.Layer
	var asked []digest.Digest
	for _, l := range j.Cache.Layers(diff) {
		if !j.fits(l) {
			continue
		}
		held, err := j.held(ctx, l)
		if err != nil {
			return err
		}
		if held {
			j.drop(l.Digest)
			j.has(diff, l)
			return nil
		}
		asked = append(asked, l.Digest)
		if own == nil && l.Key == j.Algorithm.Key() {
			own = &l
		}
	}
	for _, l := range j.Learnt[diff] {
		if !j.fits(l) || slices.Contains(asked, l.Digest) {
			continue
		}
		if held, err := j.verifiedAndHeld(ctx, diff, l); held || err != nil {
			return err
		}
	}
	if own != nil && j.DryRun {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.at[diff] = *own
		return nil
	}
	if own == nil || j.Spool == nil {
		return nil
	}
	if b, ok := j.Spool.GetLayer(ctx, diff, own.Digest, own.Size); ok {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.at[diff] = *own
		if _, ok := j.spooled[own.Digest]; ok {
			b.Keep() // two layers may be one blob
			return nil
		}
		j.spooled[own.Digest] = b
		j.stats.Reused += b.Size
	}
	return nil
}

// fits reports whether a blob is compressed as asked for.
func (j *Job) fits(l known.Layer) bool {
	a, ok := compress.Of(mediaType(l))
	return ok && a == j.Algorithm
}

// drop clears the spool of a blob that the registry has.
func (j *Job) drop(blob digest.Digest) {
	if j.Spool != nil {
		j.Spool.Drop(blob)
	}
}

// held asks for a blob, and for a mount from wherever it may be.
func (j *Job) held(ctx context.Context, l known.Layer) (bool, error) {
	from := slices.Clone(l.Repositories)
	for _, repo := range j.MountFrom {
		if !slices.Contains(from, repo) {
			from = append(from, repo)
		}
	}
	return j.Delivery.Held(ctx, l.Digest, l.Size, l.MediaType, from...)
}

// has notes that the repository has a blob that is known to hold the layer.
func (j *Job) has(diff digest.Digest, l known.Layer) {
	j.mu.Lock()
	j.at[diff] = l
	j.mu.Unlock()
	if !j.DryRun { // of a dry run it is only about to be here
		others := slices.DeleteFunc(slices.Clone(l.Repositories), func(r string) bool { return r == j.Repository })
		l.Repositories = append([]string{j.Repository}, others...)
		j.keep(j.Cache.AddLayer(diff, l))
	}
}

// keep says once what could not be remembered. The push goes on.
func (j *Job) keep(err error) {
	if err != nil {
		j.unkept.Do(func() { j.Warn(fmt.Errorf("what was learnt about layers is not kept: %w", err)) })
	}
}

func (j *Job) deliver(ctx context.Context) (remote.Taggable, error) {
	for diff, l := range maps.Clone(j.at) { // uploads write to it
		if b, ok := j.spooled[l.Digest]; ok {
			j.send(diff, l, b)
		}
	}
	if j.complete() {
		return j.assemble(j.Config, j.foreign)
	}
	finish, err := j.Input.read(ctx, j)
	if err != nil {
		return nil, err
	}
	if err := j.again(ctx); err != nil {
		return nil, err
	}
	return finish(ctx)
}

// complete reports whether the image can be made without reading any of it.
func (j *Job) complete() bool {
	diffs, err := diffIDs(j.Config) // those that count, whatever Input.DiffIDs says
	return len(j.Config) > 0 && err == nil && !slices.ContainsFunc(diffs, func(d digest.Digest) bool {
		_, ok := j.known(d)
		return !ok && !j.elsewhere(d)
	})
}

// elsewhere holds for a layer that nobody is sent.
func (j *Job) elsewhere(diff digest.Digest) bool {
	_, ok := j.foreign[toHash(diff)]
	return ok
}

func (j *Job) known(diff digest.Digest) (known.Layer, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, ok := j.at[diff]
	return l, ok
}

func (j *Job) note(file string, diff digest.Digest, l known.Layer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.files[file], j.diffs[file] = l, diff
}

// bad returns a resume.ErrSource.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", resume.ErrSource, fmt.Errorf(format, args...))
}

func short(d digest.Digest) string { return string(d[:min(len(d), len("sha256:")+12)]) }
