// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// pick takes what Options.Platforms asks for.
func (o Options) pick(ctx context.Context, s *pusher.Stored) (*pusher.Stored, error) {
	if len(o.Platforms) == 0 {
		return s, nil
	}
	raw, m, err := readManifest(ctx, s)
	if err != nil {
		return nil, err
	}
	if !s.Descriptor.MediaType.IsIndex() {
		config, err := readConfig(ctx, s, m)
		if err != nil {
			return nil, err
		}
		return s, o.fits(config, s.Descriptor.Digest.String())
	}
	picked := map[v1.Hash]bool{}
	var last manifest.Descriptor
	for _, p := range o.Platforms {
		d, err := one(m, p)
		if err != nil {
			return nil, bad("index %s: %w", s.Descriptor.Digest, err)
		}
		picked[d.Digest], last = true, d
	}
	if len(o.Platforms) == 1 {
		return at(s, last), nil
	}
	keep := maps.Clone(picked)
	for _, d := range m.Manifests {
		if of, err := v1.NewHash(d.Attests()); err == nil && picked[of] {
			keep[d.Digest] = true
		}
	}
	return edit(s, raw, keep)
}

// one finds the image for a platform: the one that says exactly the same, or
// the only one that fits.
func one(idx *manifest.Manifest, p v1.Platform) (manifest.Descriptor, error) {
	var fit []manifest.Descriptor
	var have []string
	for _, d := range idx.Manifests {
		if d.Platform == nil || d.Attests() != "" {
			continue
		}
		have = append(have, d.Platform.String())
		if d.Platform.Equals(p) {
			return d, nil
		}
		if d.Platform.Satisfies(p) {
			fit = append(fit, d)
		}
	}
	switch len(fit) {
	case 0:
		return manifest.Descriptor{}, fmt.Errorf("no image for %s; it has: %s", p, oneOf(have))
	case 1:
		return fit[0], nil
	}
	return manifest.Descriptor{}, fmt.Errorf("several images fit %s, say which; it has: %s", p, oneOf(have))
}

// readConfig reads the config that a manifest names.
func readConfig(ctx context.Context, s *pusher.Stored, m *manifest.Manifest) ([]byte, error) {
	if m.Config == nil {
		return nil, bad("manifest %s is no image, and for no platform", s.Descriptor.Digest)
	}
	r, err := s.Content.Open(ctx, m.Config.V1(), 0)
	if err != nil {
		return nil, kept(err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxDocument))
	if err != nil {
		return nil, kept(err)
	}
	return b, nil
}

// fits checks that an image which is no index is for a platform asked for.
func (o Options) fits(config []byte, image string) error {
	if len(o.Platforms) == 0 {
		return nil
	}
	var p v1.Platform
	if err := manifest.Unmarshal(config, &p); err != nil || p.OS == "" {
		return bad("the image %s does not say which platform it is for", image)
	}
	for _, want := range o.Platforms {
		if p.Satisfies(want) {
			return nil
		}
	}
	return bad("the image is for %s, not %s", p, o.Platforms[0])
}

// kept leaves errors that say what they are as they are.
func kept(err error) error {
	var named *resume.Error
	if errors.As(err, &named) || errors.Is(err, resume.ErrSource) {
		return err
	}
	return bad("%w", err)
}

// edited is a store with one manifest more.
type edited struct {
	pusher.Content
	digest v1.Hash
	raw    []byte
}

// Manifest implements pusher.Content.
func (e *edited) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest == e.digest {
		return e.raw, nil
	}
	return e.Content.Manifest(ctx, d)
}

// isEdited reports whether s is a manifest that edit made.
func isEdited(s *pusher.Stored) bool {
	e, ok := s.Content.(*edited)
	return ok && e.digest == s.Descriptor.Digest
}

// edit makes an index of some manifests of another; all else it says stays.
func edit(s *pusher.Stored, raw []byte, keep map[v1.Hash]bool) (*pusher.Stored, error) {
	out, err := manifest.KeepManifests(raw, keep)
	if err != nil {
		return nil, bad("index %s: %w", s.Descriptor.Digest, err)
	}
	d := s.Descriptor
	d.Digest, d.Size = hashOf(out), int64(len(out))
	return &pusher.Stored{Content: &edited{s.Content, d.Digest, out}, Descriptor: d, MountFrom: s.MountFrom}, nil
}

// friends finds what belongs to a manifest.
type friends interface {
	referrers(ctx context.Context, d v1.Hash) ([]*pusher.Stored, error)
	// tagged gives what has a tag that begins with the digest, by tag.
	tagged(ctx context.Context, d v1.Hash) (map[string]*pusher.Stored, error)
}

// maxFriends bounds what belongs to one image.
const maxFriends = 10_000

// digestTag is how cosign and the fallback for referrers name things.
var digestTag = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^sha(256-[a-f0-9]{64}|512-[a-f0-9]{114,128})(\..+)?$`)
})

// accompany adds what Options.Referrers and Options.DigestTags ask for, and
// what belongs to that in turn.
func (o Options) accompany(ctx context.Context, s *pusher.Stored, f friends) (remote.Taggable, error) {
	if !o.Referrers && !o.DigestTags {
		return s, nil
	}
	c := &companions{
		o: o, f: f, b: &pusher.Bundle{Image: s, Tagged: map[string]remote.Taggable{}},
		known: map[v1.Hash]bool{s.Descriptor.Digest: true},
	}
	w := manifest.Walker[*pusher.Stored]{Tree: c}
	switch err := w.Walk(ctx, s); {
	case err == nil:
	case ctx.Err() != nil:
		return nil, err
	default:
		return nil, kept(err)
	}
	if len(c.b.Referrers)+len(c.b.Tagged) == 0 {
		return s, nil
	}
	return c.b, nil
}

// companions is a walk over the manifests of an image and over what accompanies
// each of them.
type companions struct {
	o     Options
	f     friends
	b     *pusher.Bundle
	known map[v1.Hash]bool
}

// Describe implements manifest.Tree.
func (c *companions) Describe(_ context.Context, s *pusher.Stored) (v1.Descriptor, bool, error) {
	return s.Descriptor, true, nil
}

// Enter implements manifest.Tree.
func (c *companions) Enter(ctx context.Context, s *pusher.Stored, _ int) (next []*pusher.Stored, err error) {
	add := func(n *pusher.Stored) bool {
		if c.known[n.Descriptor.Digest] {
			return false
		}
		c.known[n.Descriptor.Digest] = true
		next = append(next, n)
		return true
	}
	if s.Descriptor.MediaType.IsIndex() {
		_, m, err := readManifest(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, d := range m.Manifests {
			if d.MediaType.IsImage() || d.MediaType.IsIndex() {
				add(at(s, d))
			}
		}
	}
	if c.o.Referrers {
		all, err := c.f.referrers(ctx, s.Descriptor.Digest)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if add(r) {
				c.b.Referrers = append(c.b.Referrers, r)
			}
		}
	}
	if c.o.DigestTags {
		all, err := c.f.tagged(ctx, s.Descriptor.Digest)
		if err != nil {
			return nil, err
		}
		for tag, t := range all {
			add(t)
			c.b.Tagged[tag] = t
		}
	}
	if len(c.known) > maxFriends {
		return nil, bad("more than %d manifests belong to %s", maxFriends, c.b.Image.(*pusher.Stored).Descriptor.Digest)
	}
	return next, nil
}

// Leave implements manifest.Tree.
func (c *companions) Leave(context.Context, *pusher.Stored, []*pusher.Stored) error { return nil }

// everything calls f for the image and for what accompanies it.
func everything(t remote.Taggable, f func(*pusher.Stored) error) error {
	all := []remote.Taggable{t}
	if b, ok := t.(*pusher.Bundle); ok {
		all = append([]remote.Taggable{b.Image}, b.Referrers...)
		for _, one := range b.Tagged {
			all = append(all, one)
		}
	}
	for _, one := range all {
		if s, ok := one.(*pusher.Stored); ok {
			if err := f(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// layoutFriends finds them among the manifests that index.json names.
type layoutFriends struct {
	p     place
	top   *v1.IndexManifest
	about map[v1.Hash][]*pusher.Stored // by subject, once read
}

func (l *layoutFriends) referrers(ctx context.Context, h v1.Hash) ([]*pusher.Stored, error) {
	if l.about != nil {
		return l.about[h], nil
	}
	l.about = map[v1.Hash][]*pusher.Stored{}
	// A fallback tag in the layout lists what index.json need not name.
	var all []manifest.Descriptor
	for _, d := range l.top.Manifests {
		all = append(all, manifest.Of(d))
	}
	read := map[v1.Hash]bool{} // each once
	for _, d := range l.top.Manifests {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		tag := d.Annotations[refName]
		if read[d.Digest] || len(all) > maxFriends || !d.MediaType.IsIndex() || !digestTag().MatchString(tag) || strings.Contains(tag, ".") {
			continue
		}
		read[d.Digest] = true
		raw, err := (&pusher.Stored{Content: l.p, Descriptor: d}).Manifest(ctx)
		if err != nil {
			return nil, kept(err)
		}
		if idx, err := manifest.Parse(raw, ""); err == nil {
			all = append(all, idx.Manifests...)
		}
	}
	clear(read)
	for _, d := range all[:min(len(all), maxFriends)] {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if read[d.Digest] || !manifest.Is(d.MediaType) {
			continue
		}
		read[d.Digest] = true
		s := &pusher.Stored{Content: l.p, Descriptor: d.V1()}
		raw, err := s.Manifest(ctx)
		if err != nil {
			return nil, kept(err)
		}
		if m, err := manifest.Parse(raw, ""); err == nil && m.Subject != nil {
			l.about[m.Subject.Digest] = append(l.about[m.Subject.Digest], s)
		}
	}
	return l.about[h], nil
}

func (l *layoutFriends) tagged(_ context.Context, h v1.Hash) (map[string]*pusher.Stored, error) {
	all := map[string]*pusher.Stored{}
	prefix := h.Algorithm + "-" + h.Hex + "."
	for _, d := range l.top.Manifests {
		tag := d.Annotations[refName]
		if strings.HasPrefix(tag, prefix) && digestTag().MatchString(tag) {
			all[tag] = &pusher.Stored{Content: l.p, Descriptor: manifest.Bare(d)}
		}
	}
	return all, nil
}
