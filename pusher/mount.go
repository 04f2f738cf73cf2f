// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"errors"
	"io"
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
//
// A mount publishes bytes that the pusher need not have: whoever may read the
// repository mounted from can be made to copy a blob that only they may read.
// So only the user chooses such repositories, by Options.MountFrom or by reading
// the image from one. What an image says of its base counts for those blobs
// whose bytes are here.
type mounts struct {
	p       *Pusher
	g       *graph
	general []name.Repository          // for any blob, as the user says
	claimed []name.Repository          // for blobs whose bytes are here, as images say
	own     map[*blob]*name.Repository // of one blob, first: where it is read from
}

// candidates gathers where blobs may be mounted from. A mount works within one
// registry only.
func (p *Pusher) candidates(repo name.Repository, g *graph) *mounts {
	m := &mounts{p: p, g: g, own: map[*blob]*name.Repository{}}
	usable := func(r name.Repository) bool { return mountable(r, repo) }
	for _, r := range onRegistry(p.o.MountFrom, repo) {
		if !contains(m.general, r) {
			m.general = append(m.general, r)
		}
	}
	for _, level := range slices.Concat(g.levels, g.more) {
		for _, mf := range level {
			ref, err := name.ParseReference(mf.base, name.WeakValidation)
			if err == nil && usable(ref.Context()) && !contains(m.general, ref.Context()) && !contains(m.claimed, ref.Context()) {
				m.claimed = append(m.claimed, ref.Context())
			}
		}
	}
	const most = 8 // base names are foreign input, and each is a scope
	m.claimed = m.claimed[:min(len(m.claimed), most)]
	for _, b := range g.blobs {
		if r, err := name.NewRepository(b.MountFrom, name.WeakValidation); err == nil && usable(r) {
			m.own[b] = &r
		}
		b.MountFrom = ""
	}
	return m
}

func contains(all []name.Repository, r name.Repository) bool {
	return slices.ContainsFunc(all, func(o name.Repository) bool { return o.Name() == r.Name() })
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
	all := slices.Concat(m.general, m.claimed)
	for _, b := range m.g.blobs {
		if r := m.own[b]; r != nil && !contains(all, *r) {
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
			if err := m.ask(ctx, r, open, false); err != nil {
				return err
			}
		}
		for _, r := range m.claimed {
			if err := m.ask(ctx, r, open, true); err != nil {
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
	return quiet.connect(ctx, repo, nil, repo.Scope(transport.PullScope))
}

// ask looks for blobs in one candidate. With prove it takes only those whose
// bytes are here.
func (m *mounts) ask(ctx context.Context, repo name.Repository, blobs []*blob, prove bool) error {
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
		here := !prove || there && b.isHere(ctx)
		mu.Lock()
		defer mu.Unlock()
		failed = failed || err != nil
		if there && here {
			b.MountFrom = repo.RepositoryStr()
		}
		return ctx.Err()
	})
}

// isHere reports whether the source has the bytes of the blob. It reads them
// all; what is wrong with them is an error when they are sent.
func (b *blob) isHere(ctx context.Context) bool {
	if b.Digest.Validate() != nil {
		return false
	}
	r, err := b.Open(ctx, 0)
	if err != nil {
		return false
	}
	defer r.Close()
	v := b.Digest.Verifier()
	for left := b.Size + 1; left > 0 && ctx.Err() == nil; {
		n, err := io.CopyN(v, r, min(left, 1<<20))
		if left -= n; err != nil {
			return errors.Is(err, io.EOF) && left == 1 && v.Verified()
		}
	}
	return false
}
