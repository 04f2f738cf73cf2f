// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// LearnFor is how long what is only a help may take to be found out.
const LearnFor = 10 * time.Second

// maxClaimed bounds from how many repositories a mount of a blob is tried.
const maxClaimed = 8

// Push is an image that becomes blobs and a manifest on its way to one repository.
// Run may be called once.
type Push struct {
	// Job says what to deliver and how. Run sets its Delivery, Repository,
	// MountFrom, Spool, Learnt, Reader and Config, and a Whole's MountIfHere.
	Job Job
	// Options are those of the pusher.
	Options pusher.Options
	// Reference is where the image goes, Tags are further tags.
	Reference name.Reference
	Tags      []string
	// NoClobber refuses early what Finish would refuse in the end: to take a tag
	// from an image with another ID.
	NoClobber bool
	// Spools are places for layers that wait. The first that can be used is.
	Spools []string
	// CacheFrom are references to images whose layers are not compressed again.
	CacheFrom []name.Reference
	// Readers returns the pusher that reads manifests of a repository which only
	// help.
	Readers func(name.Repository) (*pusher.Pusher, error)
	// Related lists images of an engine that may share layers with this one. It
	// may be nil.
	Related func(context.Context) []Related
	// Phase is what goes on meanwhile, for Job.Doing.
	Phase string
}

// Related is an image of an engine, and where it was pulled from or pushed to.
type Related struct {
	References []name.Digest
	// ID is the digest of its config, DiffIDs are its layers.
	ID      digest.Digest
	DiffIDs []digest.Digest
	// Mirrors are registries, as HOST[:PORT], that are asked before those of the
	// references, as the engine does.
	Mirrors func(registry string) []string
}

// Run delivers the image and publishes it. The report may be nil if there is an
// error; the errors are those of package resume.
func (p *Push) Run(ctx context.Context) (*pusher.Report, error) {
	to, err := pusher.New(p.Options)
	if err != nil {
		return nil, err
	}
	defer to.CloseIdleConnections()
	d, err := to.Open(ctx, p.Reference)
	if err != nil {
		return nil, err
	}
	p.Job.Doing(p.Phase)
	img, err := p.make(ctx, to, d)
	if err != nil {
		return d.Report(), err
	}
	p.Job.Doing(p.Phase)
	if len(p.Tags) > 0 {
		img = &pusher.Bundle{Image: img, Tags: p.Tags}
	}
	return d.Finish(ctx, img)
}

// make delivers the layers, and returns what is to be published.
func (p *Push) make(ctx context.Context, to *pusher.Pusher, d *pusher.Delivery) (remote.Taggable, error) {
	j := &p.Job
	j.Delivery, j.Repository = d, p.repository().Name()
	if !j.DryRun {
		j.Spool = p.spool()
	}
	for _, repo := range p.Options.MountFrom {
		j.MountFrom = append(j.MountFrom, repo.Name())
	}
	if whole, ok := j.Input.(*Whole); ok {
		whole.MountIfHere = p.claimed(ctx)
		if j.Format == "" {
			if there, err := Published(ctx, to, d, p.repository(), whole.Digest); there != nil || err != nil {
				return there, err
			}
		}
		return j.Run(ctx)
	}
	if err := p.unclobbered(ctx, to); err != nil {
		return nil, err
	}
	lessons, reader := p.learn(ctx)
	j.Learnt, j.Config, j.Reader = lessons.Layers(), lessons.Config(), reader
	if config, ok := j.Cache.Config(j.Input.ID()); ok {
		j.Config = config
	}
	d.Plan(ctx, p.total())
	return j.Run(ctx)
}

// total is what there is to deliver of an image whose layers are made into blobs:
// each layer once, a config and a manifest. The sizes come with the blobs.
func (p *Push) total() resume.Total {
	layers := map[digest.Digest]bool{}
	for _, d := range p.Job.Input.DiffIDs() {
		layers[d] = true
	}
	for h := range p.Job.Input.foreign() {
		delete(layers, digest.Digest(h.String()))
	}
	return resume.Total{Blobs: len(layers) + 1, Manifests: 1}
}

func (p *Push) repository() name.Repository { return p.Reference.Context() }

// unclobbered fails as NoClobber says.
func (p *Push) unclobbered(ctx context.Context, to *pusher.Pusher) error {
	if !p.NoClobber {
		return nil
	}
	tags := p.Tags
	if t, ok := p.Reference.(name.Tag); ok {
		tags = append([]string{t.TagStr()}, tags...)
	}
	for _, tag := range tags {
		ref := p.repository().Tag(tag)
		doc, err := to.Manifest(ctx, ref)
		if err != nil {
			return err
		}
		if doc == nil {
			continue
		}
		is, err := manifest.Parse(doc.Raw, "")
		if err != nil || is.Config == nil || is.Config.Digest.String() != p.Job.Input.ID().String() {
			return &pusher.ExistsError{Reference: ref.Name(), Digest: digest.FromBytes(doc.Raw)}
		}
	}
	return nil
}

// spool opens the first place that can be used, or none.
func (p *Push) spool() *spool.Dir {
	var first error
	for _, place := range p.Spools {
		d, err := spool.Open(place, 0)
		if err == nil {
			return d
		}
		first = cmp.Or(first, err)
	}
	p.Job.Warn(fmt.Errorf("there is no place for compressed layers, each try makes them again: %w", first))
	return nil
}

// related are the images of the engine, if there is one.
func (p *Push) related(ctx context.Context) []Related {
	if p.Related == nil {
		return nil
	}
	return p.Related(ctx)
}

// claimed are the repositories of the registry that may have blobs of an image
// that containerd keeps: those of CacheFrom, and those that the engine noted for
// images that begin with the same layer.
func (p *Push) claimed(ctx context.Context) (repos []string) {
	add := func(repo name.Repository) {
		to := p.repository()
		if repo.RegistryStr() == to.RegistryStr() && repo.Name() != to.Name() && !slices.Contains(repos, repo.Name()) && len(repos) < maxClaimed {
			repos = append(repos, repo.Name())
		}
	}
	for _, ref := range p.CacheFrom {
		add(ref.Context())
	}
	for _, other := range p.related(ctx) {
		for _, ref := range other.References {
			add(ref.Context())
		}
	}
	return repos
}

// learn asks the registry what it knows of the image's layers, and returns the
// pusher to verify that with. All of it is a help: what fails is left out.
func (p *Push) learn(ctx context.Context) (*Lessons, *pusher.Pusher) {
	lessons := &Lessons{ID: p.Job.Input.ID(), DiffIDs: p.Job.Input.DiffIDs()}
	reader, err := p.Readers(p.repository())
	if err != nil {
		return lessons, nil
	}
	ctx, cancel := context.WithTimeout(ctx, LearnFor)
	defer cancel()
	var eg errgroup.Group
	eg.SetLimit(pusher.DefaultParallel)
	registry := p.repository().RegistryStr()
	if _, ok := p.Reference.(name.Tag); ok {
		eg.Go(func() error {
			_ = lessons.Learn(ctx, reader, p.Reference) // the push itself will tell
			return nil
		})
	}
	for _, ref := range p.CacheFrom {
		if ref.Context().RegistryStr() != registry {
			p.Job.Warn(fmt.Errorf("%s is on another registry than %s: no layer can be taken from there", ref.Name(), p.repository().Name()))
			continue
		}
		eg.Go(func() error {
			if err := lessons.Learn(ctx, reader, ref); err != nil && ctx.Err() == nil {
				p.Job.Warn(fmt.Errorf("nothing is learnt from %s: %w", ref.Name(), err))
			}
			return nil
		})
	}
	for _, other := range p.related(ctx) {
		i := slices.IndexFunc(other.References, func(r name.Digest) bool { return r.Context().RegistryStr() == registry })
		if i >= 0 {
			eg.Go(func() error { p.learnFrom(ctx, lessons, other.References[i], other); return nil })
		}
	}
	_ = eg.Wait() // none of them fails
	return lessons, reader
}

// learnFrom asks the engine's mirrors first, as the engine does.
func (p *Push) learnFrom(ctx context.Context, l *Lessons, ref name.Digest, of Related) {
	for _, mirror := range of.Mirrors(ref.Context().RegistryStr()) {
		repo, err := name.NewRepository(mirror+"/"+ref.Context().RepositoryStr(), name.WeakValidation)
		if err != nil {
			continue
		}
		reader, err := p.Readers(repo)
		if err == nil && l.LearnAs(ctx, reader, repo.Digest(ref.DigestStr()), ref.Context(), of.ID, of.DiffIDs) == nil {
			return
		}
	}
	if reader, err := p.Readers(ref.Context()); err == nil {
		_ = l.LearnAs(ctx, reader, ref, ref.Context(), of.ID, of.DiffIDs) // a help only
	}
}
