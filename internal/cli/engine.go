// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/engine"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// updateFor is how long the engine may take to note what was pushed.
const updateFor = time.Minute

// engineOptions are the flags about images of the Docker engine, and what a
// run found out.
type engineOptions struct {
	host, context string
	noUpdate      bool

	from atomic.Pointer[engine.Engine]
}

// engineFlags are theirs, by name.
var engineFlags = []string{"docker-host", "docker-context", "no-engine-update"}

func (e *engineOptions) flags() flagGroup {
	g := newGroup("Docker engine")
	g.StringVar(&e.host, "docker-host", "", "read from the engine at `HOST`")
	g.StringVar(&e.context, "docker-context", "", "read from that of the docker context `NAME`")
	g.BoolVar(&e.noUpdate, "no-engine-update", false, "do not tell the engine the digest")
	return g
}

// elsewhere is the address of the engine if it is on another host.
func (e *engineOptions) elsewhere() string {
	if eng := e.from.Load(); eng != nil && eng.Remote() {
		return eng.Address
	}
	return ""
}

// ofEngine is the image of the engine to be read, if that is the source.
func (c call) ofEngine() (image string, ok bool) {
	if c.source == "" {
		return engine.Familiar(c.ref), true
	}
	return strings.CutPrefix(c.source, "docker-daemon:")
}

// engineImage is an image of the engine.
type engineImage struct {
	*engine.Engine
	engine.Image
}

// pushEngine pushes images of the engine: one to all targets, or all tags.
func (p *pushes) pushEngine(ctx context.Context, c call, image string, to []target) error {
	eng, err := engine.Open(ctx, engine.Options{Host: p.o.engine.host, Context: p.o.engine.context})
	if err != nil {
		return err
	}
	defer eng.Close() //nolint:errcheck // idle connections
	p.o.engine.from.Store(eng)
	all := make([]engineJob, 0, len(to))
	for _, t := range to {
		all = append(all, engineJob{image, t})
	}
	if p.o.image.allTags {
		if all, err = engineTags(ctx, eng, c); err != nil {
			return err
		}
	}
	for _, one := range all {
		if err := p.pushOfEngine(ctx, eng, one.image, one.target); err != nil {
			return err
		}
	}
	return nil
}

// engineJob is an image of the engine, by its name, and where it is to go.
type engineJob struct {
	image string
	target
}

// engineTags has a job for each tag that the engine has of a repository, which
// is that of REFERENCE unless SOURCE names another.
func engineTags(ctx context.Context, eng *engine.Engine, c call) ([]engineJob, error) {
	repo := c.ref.Context()
	if c.source != "" {
		from := strings.TrimPrefix(c.source, "docker-daemon:")
		var err error
		if repo, err = name.NewRepository(from, name.WeakValidation); err != nil {
			return nil, usageError(fmt.Sprintf(badRepository, from))
		}
	}
	tags, err := eng.Tags(ctx, repo)
	if err != nil {
		return nil, err
	}
	var all []engineJob
	for _, tag := range tags {
		all = append(all, engineJob{engine.Familiar(repo.Tag(tag)), target{ref: c.ref.Context().Tag(tag)}})
	}
	return all, nil
}

// pushOfEngine pushes one image of the engine to one target.
func (p *pushes) pushOfEngine(ctx context.Context, eng *engine.Engine, image string, t target) error {
	img, err := eng.Image(ctx, image)
	if picks := p.o.image.picks; err == nil && len(picks) > 0 {
		img, err = eng.Pick(ctx, image, img, picks[0])
	}
	if err == nil && p.o.image.preserveDigests && !img.Whole {
		err = fmt.Errorf(noDigestToKeep, resume.ErrSource, image)
	}
	if flag := p.o.spelled["compression"]; err == nil && flag != "" && img.Whole {
		err = fmt.Errorf(keptCompressed, resume.ErrSource, flag, image)
	}
	if err != nil {
		return p.done(t, nil, nil, err)
	}
	po, err := p.settings(t)
	if err != nil {
		return p.done(t, nil, nil, err)
	}
	save := func(ctx context.Context) (io.ReadCloser, error) { return eng.Export(ctx, img) }
	var in stream.Input = &stream.Saved{Save: save, Config: img.ID, Layers: img.DiffIDs}
	if img.Whole {
		in = &stream.Whole{Save: save, Digest: img.ID}
	}
	return p.make(ctx, t, po, in, image, &engineImage{eng, img})
}

// related are the image itself and others that begin with the same layer, with
// what the engine noted of where they came from.
func (e *engineImage) related(ctx context.Context, registry string) (all []stream.Related) {
	for _, img := range append([]engine.Image{e.Image}, e.Relatives(ctx, e.Image, registry)...) {
		all = append(all, stream.Related{References: img.RepoDigests, ID: img.ID, DiffIDs: img.DiffIDs, Mirrors: e.Mirrors})
	}
	return all
}

// update has the engine note the digest of what was pushed.
func (p *pushes) update(ctx context.Context, eng *engineImage, po pusher.Options, repo name.Repository, r *pusher.Report) {
	ref := repo.Digest(r.Digest.String())
	noted := slices.ContainsFunc(eng.RepoDigests, func(d name.Digest) bool { return d.Name() == ref.Name() })
	if p.o.engine.noUpdate || noted || eng.Whole {
		return
	}
	p.progress.doing("telling the engine the digest")
	ctx, cancel := context.WithTimeout(ctx, updateFor)
	defer cancel()
	auth, err := po.Keychain.Resolve(repo)
	if err == nil {
		conf, cerr := auth.Authorization()
		if err = cerr; err == nil {
			err = eng.Learn(ctx, ref, conf)
		}
	}
	if err != nil {
		p.warn(fmt.Errorf("the image is pushed, but the engine did not note its digest: %w", err))
	}
}
