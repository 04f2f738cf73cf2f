package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// pick takes what Options.Platforms asks for.
func (o Options) pick(ctx context.Context, s *pusher.Stored) (*pusher.Stored, error) {
	if len(o.Platforms) == 0 {
		return s, nil
	}
	raw, err := s.Manifest(ctx)
	if err != nil {
		return nil, kept(err)
	}
	if !s.Descriptor.MediaType.IsIndex() {
		config, err := readConfig(ctx, s, raw)
		if err != nil {
			return nil, err
		}
		return s, o.fits(config, s.Descriptor.Digest.String())
	}
	idx, err := readIndex(raw)
	if err != nil {
		return nil, bad("index %s: %w", s.Descriptor.Digest, err)
	}
	var picked []v1.Descriptor
	for _, p := range o.Platforms {
		d, err := one(idx, p)
		if err != nil {
			return nil, bad("index %s: %w", s.Descriptor.Digest, err)
		}
		if !slices.ContainsFunc(picked, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			picked = append(picked, d)
		}
	}
	if len(o.Platforms) == 1 {
		return &pusher.Stored{Content: s.Content, Descriptor: picked[0], MountFrom: s.MountFrom}, nil
	}
	is := map[string]bool{}
	for _, d := range picked {
		is[d.Digest.String()] = true
	}
	for _, d := range idx.Manifests {
		if is[d.Annotations[saved.AttestsTo]] {
			picked = append(picked, d)
		}
	}
	return edit(s, raw, picked)
}

// readIndex is strict about nothing but size and shape.
func readIndex(raw []byte) (*v1.IndexManifest, error) {
	var m v1.IndexManifest
	return &m, manifest.Unmarshal(raw, &m)
}

// one finds the image for a platform: the one that says exactly the same, or
// the only one that fits.
func one(idx *v1.IndexManifest, p v1.Platform) (v1.Descriptor, error) {
	var fit []v1.Descriptor
	var have []string
	for _, d := range idx.Manifests {
		if d.Platform == nil || d.Annotations[saved.AttestsTo] != "" {
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
		return v1.Descriptor{}, fmt.Errorf("no image for %s; it has: %s", p, oneOf(have))
	case 1:
		return fit[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("several images fit %s, say which; it has: %s", p, oneOf(have))
}

// readConfig reads the config that a manifest names.
func readConfig(ctx context.Context, s *pusher.Stored, raw []byte) ([]byte, error) {
	var m struct {
		Config *v1.Descriptor `json:"config"`
	}
	if err := manifest.Unmarshal(raw, &m); err != nil || m.Config == nil {
		return nil, bad("manifest %s is no image, and for no platform", s.Descriptor.Digest)
	}
	r, err := s.Content.Open(ctx, *m.Config, 0)
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

// edit makes an index of some manifests of another; all else it says stays.
func edit(s *pusher.Stored, raw []byte, manifests []v1.Descriptor) (*pusher.Stored, error) {
	all := map[string]json.RawMessage{}
	if err := manifest.Unmarshal(raw, &all); err != nil {
		return nil, bad("index %s: %w", s.Descriptor.Digest, err)
	}
	var old []json.RawMessage
	if err := json.Unmarshal(all["manifests"], &old); err != nil {
		return nil, bad("index %s: %w", s.Descriptor.Digest, err)
	}
	is := map[v1.Hash]bool{}
	for _, d := range manifests {
		is[d.Digest] = true
	}
	var left []json.RawMessage
	for _, one := range old {
		var d v1.Descriptor
		if err := json.Unmarshal(one, &d); err == nil && is[d.Digest] {
			left = append(left, one)
		}
	}
	var err error
	if all["manifests"], err = json.Marshal(left); err != nil {
		return nil, err
	}
	out, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	h, err := v1.NewHash(digest.FromBytes(out).String())
	if err != nil {
		return nil, err
	}
	d := s.Descriptor
	d.Digest, d.Size = h, int64(len(out))
	return &pusher.Stored{Content: &edited{s.Content, h, out}, Descriptor: d, MountFrom: s.MountFrom}, nil
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
	b := &pusher.Bundle{Image: s, Tagged: map[string]remote.Taggable{}}
	queue := []*pusher.Stored{s}
	known := map[v1.Hash]bool{s.Descriptor.Digest: true}
	add := func(n *pusher.Stored) bool {
		if known[n.Descriptor.Digest] {
			return false
		}
		known[n.Descriptor.Digest] = true
		queue = append(queue, n)
		return true
	}
	for len(queue) > 0 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if len(known) > maxFriends {
			return nil, bad("more than %d manifests belong to %s", maxFriends, s.Descriptor.Digest)
		}
		m := queue[0]
		queue = queue[1:]
		if m.Descriptor.MediaType.IsIndex() {
			raw, err := m.Manifest(ctx)
			if err != nil {
				return nil, kept(err)
			}
			idx, err := readIndex(raw)
			if err != nil {
				return nil, bad("index %s: %w", m.Descriptor.Digest, err)
			}
			for _, d := range idx.Manifests {
				if d.MediaType.IsImage() || d.MediaType.IsIndex() {
					add(&pusher.Stored{Content: m.Content, Descriptor: manifest.Bare(d), MountFrom: m.MountFrom})
				}
			}
		}
		if o.Referrers {
			all, err := f.referrers(ctx, m.Descriptor.Digest)
			if err != nil {
				return nil, err
			}
			for _, r := range all {
				if add(r) {
					b.Referrers = append(b.Referrers, r)
				}
			}
		}
		if o.DigestTags {
			all, err := f.tagged(ctx, m.Descriptor.Digest)
			if err != nil {
				return nil, err
			}
			for tag, t := range all {
				add(t)
				b.Tagged[tag] = t
			}
		}
	}
	if len(b.Referrers)+len(b.Tagged) == 0 {
		return s, nil
	}
	return b, nil
}

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
	all := slices.Clone(l.top.Manifests)
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
		if idx, err := readIndex(raw); err == nil {
			all = append(all, idx.Manifests...)
		}
	}
	clear(read)
	for _, d := range all[:min(len(all), maxFriends)] {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if read[d.Digest] || !d.MediaType.IsImage() && !d.MediaType.IsIndex() && d.MediaType != artifactManifest {
			continue
		}
		read[d.Digest] = true
		s := &pusher.Stored{Content: l.p, Descriptor: manifest.Bare(d)}
		raw, err := s.Manifest(ctx)
		if err != nil {
			return nil, kept(err)
		}
		var m struct {
			Subject *manifest.Descriptor `json:"subject"`
		}
		if manifest.Unmarshal(raw, &m) == nil && m.Subject != nil {
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
