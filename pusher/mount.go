package pusher

import (
	"context"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/resume"
)

// baseName names the image that an image was built on (image-spec v1.1,
// annotations.md).
const baseName = "org.opencontainers.image.base.name"

// mounts are repositories of the registry pushed to that may hold blobs.
type mounts struct {
	p       *Pusher
	g       *graph
	general []name.Repository          // for any blob
	own     map[*blob]*name.Repository // of one blob, first
}

// candidates gathers where blobs may be mounted from. A mount works within one
// registry only.
func (p *Pusher) candidates(repo name.Repository, g *graph) *mounts {
	m := &mounts{p: p, g: g, own: map[*blob]*name.Repository{}}
	usable := func(r name.Repository) bool { return mountable(r, repo) }
	add := func(r name.Repository) {
		if usable(r) && !slices.ContainsFunc(m.general, func(o name.Repository) bool { return o.Name() == r.Name() }) {
			m.general = append(m.general, r)
		}
	}
	for _, r := range onRegistry(p.o.MountFrom, repo) {
		add(r)
	}
	for _, level := range slices.Concat(g.levels, g.more) {
		for _, mf := range level {
			if ref, err := name.ParseReference(mf.names.Annotations[baseName], name.WeakValidation); err == nil {
				add(ref.Context())
			}
		}
	}
	const most = 8 // base names are foreign input, and each is a scope
	m.general = m.general[:min(len(m.general), most)]
	for _, b := range g.blobs {
		if r, err := name.NewRepository(b.MountFrom, name.WeakValidation); err == nil && usable(r) {
			m.own[b] = &r
		}
		b.MountFrom = ""
	}
	return m
}

// mountable reports whether a registry can take blobs of r over to repo: both
// are on it.
func mountable(r, repo name.Repository) bool {
	return r.RegistryStr() == repo.RegistryStr() && r.RepositoryStr() != repo.RepositoryStr()
}

// onRegistry are those that blobs for repo can be mounted from.
func onRegistry(from []name.Repository, repo name.Repository) []name.Repository {
	return slices.DeleteFunc(slices.Clone(from), func(r name.Repository) bool { return !mountable(r, repo) })
}

// all lists each repository once.
func (m *mounts) all() []name.Repository {
	all := slices.Clone(m.general)
	for _, b := range m.g.blobs {
		if r := m.own[b]; r != nil && !slices.ContainsFunc(all, func(o name.Repository) bool { return o.Name() == r.Name() }) {
			all = append(all, *r)
		}
	}
	return all
}

// choose decides for each missing blob which repository to name when opening
// its upload. One candidate is simply tried; of several, those are asked that
// can be. A repository that cannot be asked is no failure.
func (m *mounts) choose(ctx context.Context) error {
	var open []*blob
	for _, b := range m.g.blobs {
		switch r := m.own[b]; {
		case !b.Missing:
		case r != nil:
			b.MountFrom = r.RepositoryStr()
		case len(m.general) == 1:
			b.MountFrom = m.general[0].RepositoryStr()
		default:
			open = append(open, b)
		}
	}
	if len(open) > 0 {
		for _, r := range m.general {
			if err := m.ask(ctx, r, open); err != nil {
				return err
			}
		}
	}
	for _, b := range m.g.blobs {
		if b.Missing && b.MountFrom != "" {
			b.report.MountFrom = b.MountFrom
		}
	}
	return nil
}

// quietly connects to a repository that may hold blobs. What is asked there is
// asked once.
func (p *Pusher) quietly(ctx context.Context, repo name.Repository) (*resume.Client, error) {
	quiet := *p
	quiet.o.RetryFor, quiet.o.OnEvent, quiet.o.Logger = -1, nil, nil
	return quiet.connect(ctx, repo, "", repo.Scope(transport.PullScope))
}

// ask looks for blobs in one candidate.
func (m *mounts) ask(ctx context.Context, repo name.Repository, blobs []*blob) error {
	c, err := m.p.quietly(ctx, repo)
	if err != nil {
		return ctx.Err()
	}
	var mu sync.Mutex
	failed := false
	return each(ctx, m.p.o.Checks, blobs, func(ctx context.Context, b *blob) error {
		mu.Lock()
		skip := failed || b.MountFrom != ""
		mu.Unlock()
		if skip {
			return nil
		}
		there, err := c.Exists(ctx, b.Digest, b.Size)
		mu.Lock()
		defer mu.Unlock()
		failed = failed || err != nil
		if there {
			b.MountFrom = repo.RepositoryStr()
		}
		return ctx.Err()
	})
}
