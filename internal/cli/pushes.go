// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/source"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// pushes is what the pushes of one call have in common.
type pushes struct {
	a        *app
	o        *options
	x        *connections
	d        *deliveries
	progress *progress
	tel      *telemetry
	store    resume.Store

	before []name.Reference // delivered already
	layers *known.Cache     // of cache
}

// cache is what is known about layers, shared by all pushes of the call. What it
// says is signed with a secret beside the upload records; without the secret it
// says nothing about layers that earlier calls added.
func (p *pushes) cache() *known.Cache {
	if p.layers != nil {
		return p.layers
	}
	p.layers = known.Open(p.o.cache())
	dir, err := p.o.state.directory()
	if err != nil {
		return p.layers // store said it
	}
	key, err := known.ReadKey(filepath.Join(dir, "rpush-known.key"), !p.o.state.none)
	switch {
	case p.o.state.none && errors.Is(err, fs.ErrNotExist):
		return p.layers
	case err != nil:
		p.a.out.note("warning: " + fmt.Errorf("layers that were compressed before are not known: %w", err).Error())
		return p.layers
	}
	p.layers.SignWith(key)
	return p.layers
}

// settings are the library's options for one target. They are made before the
// first connection: a broken file must not look like a registry's fault.
func (p *pushes) settings(t target) (pusher.Options, error) {
	po, err := p.x.options(t.ref.Context(), asTarget)
	if err != nil {
		return po, err
	}
	p.o.image.apply(&po)
	po.MountFrom = slices.Clone(po.MountFrom)
	for _, ref := range p.before {
		po.MountFrom = append(po.MountFrom, ref.Context())
	}
	po.OnEvent, po.Store = p.tel.watching(p.progress.event), p.store
	return po, nil
}

// push delivers what SOURCE names to one target.
func (p *pushes) push(ctx context.Context, t target, src source.Source) error {
	po, err := p.settings(t)
	if err != nil {
		return p.done(t, nil, nil, err)
	}
	if src.Plain != nil {
		for _, flag := range []string{"referrers", "digest-tags"} {
			if p.o.spelled[flag] == "--"+flag {
				return usageError(fmt.Sprintf(notForSaved, p.o.spelled[flag]))
			}
		}
		return p.make(ctx, t, po, stream.Plain{Plain: src.Plain}, src.Name, nil)
	}
	for _, flag := range layerFlags {
		if p.o.spelled[flag] == "--"+flag {
			return usageError(fmt.Sprintf(onlyForPlain, p.o.spelled[flag]))
		}
	}
	p.progress.doing(pushingPhase(src.Name, t.ref))
	report, err := p.a.push(ctx, po, t.ref, tagged(src.Image, t.tags))
	return p.done(t, report, nil, err)
}

// done notes what came of a push.
func (p *pushes) done(t target, r *pusher.Report, stats *stream.Stats, err error) error {
	p.d.add(delivered{t.ref, r, stats}, err)
	if err == nil && !p.o.image.dryRun {
		p.before = append(p.before, t.ref)
	}
	return err
}

// usageError says that the call is wrong, which may be seen only when the
// source is open.
type usageError string

func (e usageError) Error() string { return string(e) }
