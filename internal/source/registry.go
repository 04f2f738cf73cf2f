// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/pusher"
)

// maxAllTags bounds the images of one push: each takes some
// hundred bytes.
const maxAllTags = 1 << 16

// openRegistry opens a repository. Nothing is read before an image is asked
// for.
func openRegistry(ctx context.Context, spec string, o Options) (*Images, error) {
	ref, err := name.ParseReference(spec, name.WeakValidation)
	if err != nil {
		return nil, specError("docker://%s: %w", spec, err)
	}
	if o.Registry == nil {
		return nil, bad("docker://%s: there is nothing to read registries with", spec)
	}
	r, err := o.Registry.Repository(ctx, ref.Context())
	if err != nil {
		return nil, err
	}
	find := func(ctx context.Context, sel selector) (Source, error) {
		ref := ref
		if sel.tag != "" {
			ref = ref.Context().Tag(sel.tag)
		}
		s, err := r.Find(ctx, ref)
		if err != nil {
			return Source{}, err
		}
		if s, err = o.pick(ctx, s); err != nil {
			return Source{}, err
		}
		img, err := o.accompany(ctx, s, &registryFriends{r: r})
		return Source{Image: img}, err
	}
	return &Images{
		o: o, name: "docker://" + ref.Name(), open: find, close: o.Registry.CloseIdleConnections,
		all: func(ctx context.Context) (map[string]selector, error) {
			if ref.Context().Name() != ref.Name() && !strings.HasSuffix(ref.Name(), ":"+name.DefaultTag) {
				return nil, specError("docker://%s: all tags are asked for, and one image is picked", spec)
			}
			tags, err := r.Tags(ctx)
			if err != nil {
				return nil, err
			}
			if len(tags) > maxAllTags {
				return nil, bad("%s has %d tags, more than the %d that one push takes", ref.Context().Name(), len(tags), maxAllTags)
			}
			all := map[string]selector{}
			for _, t := range tags {
				if _, err := name.NewTag(ref.Context().Name()+":"+t, name.StrictValidation); err != nil {
					return nil, bad("%s lists %q, which is no tag", ref.Context().Name(), t)
				}
				all[t] = selector{tag: t}
			}
			return all, nil
		},
	}, nil
}

// registryFriends asks the registry.
type registryFriends struct {
	r    *pusher.Repository
	tags []string
	read bool
}

func (f *registryFriends) referrers(ctx context.Context, h v1.Hash) ([]*pusher.Stored, error) {
	all, err := f.r.Referrers(ctx, digest.Digest(h.String()))
	if err != nil {
		return nil, err
	}
	out := make([]*pusher.Stored, len(all))
	for i, d := range all {
		out[i] = f.r.At(d)
	}
	return out, nil
}

func (f *registryFriends) tagged(ctx context.Context, h v1.Hash) (map[string]*pusher.Stored, error) {
	if !f.read {
		var err error
		if f.tags, err = f.r.Tags(ctx); err != nil {
			return nil, err
		}
		f.read = true
	}
	all := map[string]*pusher.Stored{}
	prefix := h.Algorithm + "-" + h.Hex + "."
	for _, tag := range f.tags {
		if !strings.HasPrefix(tag, prefix) || !digestTag().MatchString(tag) {
			continue
		}
		s, err := f.r.Find(ctx, f.r.Tag(tag))
		if err != nil {
			return nil, err
		}
		all[tag] = s
	}
	return all, nil
}
