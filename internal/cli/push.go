package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/source"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// call is what the arguments of a push say.
type call struct {
	source string // empty: the Docker engine
	ref    name.Reference
}

func parseCall(args []string) (c call, err error) {
	if len(args) == 2 {
		c.source, args = args[0], args[1:]
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
	return c, nil
}

// errDeadline is the cause of a context that --deadline ended.
var errDeadline = fmt.Errorf("%w: the deadline is over", resume.ErrInterrupted)

// bound applies --deadline.
func (o *options) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.limit, errDeadline)
}

// pushImage delivers, and says how it went. An error is one of usage, about
// which nothing has been said yet.
func (a *app) pushImage(ctx context.Context, o *options, c call) (int, error) {
	a.out.quiet = o.quiet
	ctx, cancel := o.bound(ctx)
	defer cancel()

	var keys credentials.Keychain
	before, _ := conntrack.Now() // for hostResets; elsewhere than on Linux there is none
	report, err := inTime(ctx, func() (*pusher.Report, error) { return a.deliver(ctx, o, c, &keys) })
	if errors.Is(err, source.ErrSpec) {
		return exitUsage, err
	}
	if report == nil {
		report = &pusher.Report{Reference: c.ref.Name()}
	}
	resets := hostResets(before, report.Breaks > 0)
	if resets > 0 {
		defer a.out.note(hostResetsLine)
	}
	if err == nil {
		a.out.note(summaryWords(report))
		return a.written(a.result(o, c.ref, document{report, o.engine.stats.Load(), nil, resets})), nil
	}

	f := explain(err, scene{
		host:   c.ref.Context().RegistryStr(),
		report: report,
		cause:  context.Cause(ctx),
		from:   func() string { return keys.From(c.ref.Context()) },
		engine: o.engine.elsewhere(),
	})
	a.out.lines(f.lines)
	a.written(a.result(o, c.ref, document{report, o.engine.stats.Load(), f, resets}))
	return f.Exit, nil
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
			return nil, fmt.Errorf("%w: %w", resume.ErrInterrupted, context.Cause(ctx))
		}
	}
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.value, o.err
}

func (a *app) deliver(ctx context.Context, o *options, c call, keys *credentials.Keychain) (*pusher.Report, error) {
	if image, ok := c.engineImage(); ok {
		return a.deliverEngine(ctx, o, c, image, keys)
	}
	po, err := o.pusher()
	if err != nil {
		return nil, err
	}
	progress := newProgress(a.out, a.terminal)
	defer progress.start()()

	src, err := source.Open(ctx, c.source)
	if err != nil {
		return nil, err
	}
	if err := a.signIn(&po, o, c.ref.Context(), keys); err != nil {
		return nil, err
	}
	po.OnEvent, po.Store = progress.event, a.store(o)
	progress.doing(pushingPhase(src.Name, c.ref))
	return a.push(ctx, po, c.ref, src.Image)
}

// signIn adds credentials and logger to the library's options. Credentials are
// read before the first connection: a broken config file must not look like a
// registry's fault.
func (a *app) signIn(po *pusher.Options, o *options, repo name.Repository, keys *credentials.Keychain) error {
	if _, err := keys.Resolve(repo); err != nil {
		return err
	}
	po.Keychain = keys
	if o.verbose {
		log := logrus.New()
		log.SetOutput(a.out)
		log.SetLevel(logrus.DebugLevel)
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true}) // the coloured form does not escape
		po.Logger = log
	}
	return nil
}

// document is what --output json prints: the report and, after a failure, why.
type document struct {
	*pusher.Report
	Engine *stream.Stats `json:"engine,omitempty"` // what reading from it took
	Error  *failure      `json:"error,omitempty"`
	// HostResets is how many RSTs this very host sent during a push that broke,
	// where they have the marks of what rpush doctor looks for.
	HostResets uint64 `json:"hostResets,omitempty"`
}

// result prints what stdout is for.
func (a *app) result(o *options, ref name.Reference, d document) error {
	if o.output == "json" {
		all := *d.Report
		if all.Blobs == nil {
			all.Blobs = []pusher.BlobReport{} // a list, also where it is empty
		}
		if all.Manifests == nil {
			all.Manifests = []pusher.ManifestReport{}
		}
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		d.Report = &all
		return enc.Encode(d)
	}
	if d.Error != nil {
		return nil
	}
	line := ref.Name()
	if _, ok := ref.(name.Digest); !ok {
		line += "@" + d.Digest.String()
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}
