// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/internal/source"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// call is what the arguments of a push say.
type call struct {
	source string // empty: the Docker engine
	ref    name.Reference
	tagged bool // ref has a tag, or a digest, that somebody typed
}

func parseCall(args []string) (c call, err error) {
	if err := localWithoutDot(args); err != nil {
		return c, err
	}
	if len(args) == 2 {
		c.source, args = args[0], args[1:]
	} else if source.Spelled(args[0]) {
		return c, fmt.Errorf(onlySource, strings.TrimPrefix(args[0], "archive:"))
	}
	ref := strings.TrimPrefix(args[0], "docker://")
	c.ref, err = name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return c, fmt.Errorf(badReference, args[0])
	}
	// The library drops the tag where there is a digest, and takes a host alone
	// for a name on Docker Hub.
	if before, _, ok := strings.Cut(ref, "@"); ok && strings.Contains(before[strings.LastIndexByte(before, '/')+1:], ":") {
		return c, fmt.Errorf(tagAndDigest, args[0])
	}
	if host, _, ok := strings.Cut(ref, ":"); ok && !strings.Contains(ref, "/") && (host == "localhost" || net.ParseIP(host) != nil) {
		return c, fmt.Errorf(hostAlone, args[0])
	}
	c.tagged = strings.ContainsAny(ref[strings.LastIndexByte(ref, '/')+1:], ":@")
	return c, nil
}

// deadlineError is the cause of a context that --deadline ended.
type deadlineError struct{ after time.Duration }

func (e *deadlineError) Error() string { return fmt.Sprintf("stopped: --deadline %s reached", e.after) }
func (e *deadlineError) Unwrap() error { return resume.ErrInterrupted }

// bound applies --deadline.
func (o *options) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.limit, &deadlineError{o.limit})
}

// pushImage delivers, and says how it went. An error is one of usage, about
// which nothing has been said yet.
func (a *app) pushImage(ctx context.Context, o *options, c call) (int, error) {
	limitMemory()
	a.out.quiet.Store(o.quiet)
	a.out.json.Store(o.jsonLog())
	to, err := o.targets(c)
	if err != nil {
		return exitUsage, err
	}
	ctx, cancel := o.bound(ctx)
	defer cancel()

	began := time.Now()
	x := a.connect(o, c.ref.Context().RegistryStr(), c.sourceRepository())
	d := &deliveries{}
	system := ciOf(a.env)
	sections := system != noCI && o.sections()
	if sections {
		a.out.raw(system.openSection(pushingTitle(c.ref), began))
	}
	p := a.progressOf(o)
	tel := a.telemetryOf(o)
	before, _ := conntrack.Now() // for hostResets; elsewhere than on Linux there is none
	_, err = inTime(ctx, func() (*struct{}, error) { return nil, a.deliver(ctx, o, c, to, x, d, p, tel) })
	p.close() // if it was left behind
	if sections {
		a.out.raw(system.closeSection(err != nil, time.Now()))
	}
	done, last := d.taken(c.ref)
	var wrong usageError
	if len(done) == 0 && (errors.Is(err, source.ErrSpec) || errors.As(err, &wrong)) {
		return exitUsage, err
	}
	counts := p.counted()
	for _, one := range done {
		a.out.note(o.summary(one.report, &counts))
	}
	breaks := max(counts.breaks, last.report.Breaks)
	for _, one := range done {
		breaks = max(breaks, one.report.Breaks)
	}
	resets := hostResets(before, breaks > 0)
	if resets > 0 {
		defer a.out.note(hostResetsLine)
	}
	end := &outcome{began: began, done: done, counts: counts, resets: resets}
	if err == nil {
		doc := o.document(end)
		defer tel.ended(ctx, doc)
		a.inCI(ctx, o, doc)
		code := a.written(a.result(o, end, doc))
		if !a.reported(o, p, doc, before) {
			return exitPermanent, nil
		}
		if o.image.digestFile != "" {
			if err := writeDigests(o.image.digestFile, done); err != nil {
				a.out.line(err.Error())
				return exitPermanent, nil
			}
		}
		return code, nil
	}

	repo, as := x.concerned(err, last.ref.Context())
	e := x.endpoint(repo.RegistryStr(), as)
	end.failed = &last
	end.f = explain(err, scene{
		host:   repo.RegistryStr(),
		prefix: e.prefix,
		other:  e.other,
		report: last.report,
		cause:  context.Cause(ctx),
		from:   func() string { return x.keys(as).From(repo) },
		user:   func() string { return userOf(x.keys(as), repo) },
		engine: o.engine.elsewhere(),
	})
	end.exit = end.f.Exit
	a.out.lines(end.f.lines)
	doc := o.document(end)
	defer tel.ended(ctx, doc)
	a.inCI(ctx, o, doc)
	a.written(a.result(o, end, doc))
	a.reported(o, p, doc, before)
	return end.exit, nil
}

// limitMemory has garbage collected more often when a push comes near 64 MiB of
// memory, the program included: input that others made should not cost more, and
// by default the heap grows to twice what is in use. Compression has more buffers
// the more processors there are.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(36<<20 + 2<<20*int64(compress.Workers()))
	}
}

// inTime is f, but leaves it behind where it goes on after its context has
// ended: a source may have to be read for long, and a credential helper may
// wait for somebody.
func inTime[T any](ctx context.Context, f func() (*T, error)) (*T, error) {
	type outcome struct {
		value    *T
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if o.panicked = recover(); o.panicked != nil {
				o.panicked = fmt.Sprintf("%v\n%s", o.panicked, debug.Stack())
			}
			done <- o
		}()
		o.value, o.err = f()
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		t := time.NewTimer(stopWithin * 3 / 4)
		defer t.Stop()
		select {
		case o = <-done:
		case <-t.C:
			err := context.Cause(ctx)
			if !errors.Is(err, resume.ErrInterrupted) {
				err = fmt.Errorf("%w: %w", resume.ErrInterrupted, err)
			}
			return nil, err
		}
	}
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.value, o.err
}

// deliver pushes to all targets, and notes in d how far that went.
func (a *app) deliver(ctx context.Context, o *options, c call, to []target, x *connections, d *deliveries, show *progress, tel *telemetry) error {
	if fromStdin(c.source) && (o.to.passwordStdin || o.from.passwordStdin) {
		return usageError(oneStdin)
	}
	if err := x.readPasswords(); err != nil {
		return err
	}
	p := &pushes{a: a, o: o, x: x, d: d, progress: show, tel: tel, store: a.store(o)}
	// A broken certificate file must not look like a fault of the source.
	for _, t := range to {
		if _, err := x.transport(t.ref.Context().RegistryStr(), asTarget); err != nil {
			return err
		}
	}
	defer x.closeIdle()
	defer p.progress.start()()
	if image, ok := c.ofEngine(); ok {
		return p.pushEngine(ctx, c, image, to)
	}
	images, err := a.open(ctx, o, c, x)
	if err != nil {
		return err
	}
	defer images.Close()
	if o.image.allTags {
		return p.pushTags(ctx, c, images)
	}
	src, err := images.Image(ctx)
	if err != nil {
		return err
	}
	for _, t := range to {
		if err := p.push(ctx, t, src); err != nil {
			return err
		}
	}
	return nil
}

// open opens SOURCE, and the registry that it may name.
func (a *app) open(ctx context.Context, o *options, c call, x *connections) (*source.Images, error) {
	so := o.source(nil)
	so.Stdin = a.stdin
	if x.source != (name.Repository{}) {
		po, err := x.options(x.source, asSource)
		if err != nil {
			return nil, err
		}
		po.Store = resume.NoStore()
		po.OnEvent = func(e resume.Event) {
			if e.Kind == resume.Broken || e.Kind == resume.Waiting {
				a.out.note(sourceWords(e))
			}
		}
		if so.Registry, err = pusher.New(po); err != nil {
			return nil, err
		}
	}
	return source.Open(ctx, c.source, so)
}

// pushTags pushes what has a tag, one after the other.
func (p *pushes) pushTags(ctx context.Context, c call, images *source.Images) error {
	all, err := images.Tags(ctx)
	if err != nil {
		return err
	}
	for _, tag := range slices.Sorted(maps.Keys(all)) {
		t := target{ref: c.ref.Context().Tag(tag)}
		p.progress.doing(openingPhase)
		src, err := all[tag](ctx)
		if err != nil {
			return p.done(t, nil, nil, err)
		}
		if err := p.push(ctx, t, src); err != nil {
			return err
		}
	}
	return nil
}

// tagged adds further tags to what is pushed.
func tagged(img remote.Taggable, tags []string) remote.Taggable {
	if len(tags) == 0 {
		return img
	}
	b, ok := img.(*pusher.Bundle)
	if !ok {
		return &pusher.Bundle{Image: img, Tags: tags}
	}
	more := *b
	more.Tags = tags
	return &more
}

// userOf is the user whose credentials are used; empty if there are none, or they
// are a token without a user.
func userOf(keys authn.Keychain, repo name.Repository) string {
	auth, err := keys.Resolve(repo)
	if err != nil {
		return ""
	}
	conf, err := auth.Authorization()
	if err != nil {
		return ""
	}
	return conf.Username
}

// reported writes the page of --report, if one is asked for, and reports whether
// that went well.
func (a *app) reported(o *options, p *progress, doc *document, before conntrack.Sample) bool {
	if o.report == "" {
		return true
	}
	if err := p.reported(o.report, doc, counters(before)); err != nil {
		a.out.line(err.Error())
		return false
	}
	return true
}
