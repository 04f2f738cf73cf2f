// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/tempfile"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// Scheme says over which protocol a registry is spoken to.
type Scheme int

const (
	// SchemeAuto is https. Only a registry on a loopback address may also
	// answer in plain HTTP, as in docker.
	SchemeAuto Scheme = iota
	// SchemeHTTP is plain HTTP and nothing else.
	SchemeHTTP
	// SchemeEither is https, and plain HTTP where the server turns out not to
	// speak TLS. Credentials may then travel in the clear.
	SchemeEither
)

// The defaults and the bounds of Options.
const (
	DefaultParallel = 4
	DefaultChecks   = 16
	maxParallel     = 64
)

// Options of a Pusher. The zero value works.
type Options struct {
	// Keychain gives the credentials for a registry; nil is
	// authn.DefaultKeychain: docker's config.json and credential helpers.
	Keychain authn.Keychain
	// TLSClientConfig is used for the registry, its token server and its
	// storage; nil is Go's default. It is cloned.
	TLSClientConfig *tls.Config
	// Proxy says which proxy carries a request, as of http.Transport; nil is
	// what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say.
	Proxy func(*http.Request) (*url.URL, error)
	// Scheme is https or plain HTTP. It decides alone: a reference made with
	// name.Insecure, or a private address, does not allow plain HTTP.
	Scheme Scheme
	// Transport, if not nil, makes all connections, and TLSClientConfig, Proxy
	// and Wrap must be nil. It must not retry, and must pass the request's context
	// on. sendfile and the refusal to follow a public registry to a private
	// address need the built-in transport; so does a connection of its own for
	// each request, unless Transport is an *http.Transport.
	Transport http.RoundTripper
	// Wrap, if not nil, puts a RoundTripper around the built-in transport: for
	// tracing, say. It is called once for the registry and its token server, and
	// once for the storage of each registry. What it returns must not retry, and
	// must pass the request's context and body on. It must add credentials to
	// requests for the hosts they are for only.
	Wrap func(http.RoundTripper) http.RoundTripper
	// UserAgent of every request; empty is "rpush".
	UserAgent string

	// Parallel is how many blobs are uploaded at once, 1 to 64; 0 is
	// DefaultParallel.
	Parallel int
	// Checks is how many existence checks run at once, 1 to 64; 0 is
	// DefaultChecks.
	Checks int

	// RetryFor, StallTimeout and AnswerTimeout are those of resume.Options.
	RetryFor, StallTimeout, AnswerTimeout time.Duration

	// Tries is that of resume.Options.
	Tries int
	// Limit bounds what all connections together send, in bytes per second; 0
	// does not. A Transport of your own is not bounded.
	Limit int64

	// MountFrom names repositories that may hold blobs already. Those on the
	// registry pushed to are asked, besides the repository that the image is read
	// from and, for blobs whose bytes the source has, that of the image's base
	// (the annotation org.opencontainers.image.base.name).
	MountFrom []name.Repository
	// NoClobber refuses to push where a tag exists with another digest: see
	// ExistsError.
	NoClobber bool
	// Nondistributable delivers layers too that are said to be fetched from
	// elsewhere.
	Nondistributable bool
	// DryRun asks what is there and sends nothing. The report says what is
	// missing.
	DryRun bool

	// Dialects keeps what is learnt about registries; nil is for this Pusher
	// alone.
	Dialects resume.Dialects
	// Store keeps the records of open upload sessions, so that the next push of
	// the same image continues them. nil keeps them in memory, for this Pusher
	// alone; resume.NewFileStore(dir) keeps them for the next process.
	Store resume.Store

	// SpoolDir is the directory for layers that can be read only once and whose
	// digest is known only then: those of package stream of go-containerregistry.
	// Each is read before it is uploaded. The files have no names and end with the
	// push. Empty is a directory for temporary files on disk: /var/tmp if it exists
	// and TMPDIR is not set.
	SpoolDir string
	// SpoolLimit is how many bytes these files may hold together, for all pushes. 0
	// is resume.DefaultSpoolLimit; negative refuses such layers. A layer that does
	// not fit is an error of the kind resume.ErrSource.
	SpoolLimit int64

	// Logger gets what resume.Options.Logger gets; nil is silent.
	Logger logrus.FieldLogger
	// OnEvent is called for every event of a Push, of its blobs and manifests, never
	// by two goroutines at once in the same Push. It must not block. Event.Reference
	// and Event.Context tell which push an event is of. The context of an event is
	// the one given to Push, or one derived from it.
	OnEvent func(resume.Event)
}

// Pusher delivers images and indexes. It is safe for concurrent use. Pushes of
// one Pusher share connections and sign-ins, so a program that pushes often
// makes one Pusher and keeps it.
type Pusher struct {
	o      Options
	own    *wire.Transport   // nil if Options.Transport makes the connections
	base   http.RoundTripper // Options.Transport or own, wrapped
	shared *connections
	graphs graphOptions
}

// New checks the options. It does not touch the network.
func New(o Options) (*Pusher, error) {
	if o.Parallel == 0 {
		o.Parallel = DefaultParallel
	}
	if o.Checks == 0 {
		o.Checks = DefaultChecks
	}
	switch {
	case o.Parallel < 1 || o.Parallel > maxParallel:
		return nil, fmt.Errorf("pusher: Parallel is %d, not 1 to %d", o.Parallel, maxParallel)
	case o.Checks < 1 || o.Checks > maxParallel:
		return nil, fmt.Errorf("pusher: Checks is %d, not 1 to %d", o.Checks, maxParallel)
	case o.Transport != nil && o.TLSClientConfig != nil:
		return nil, errors.New("pusher: TLSClientConfig has no effect on a Transport of your own; set it there")
	case o.Transport != nil && o.Proxy != nil:
		return nil, errors.New("pusher: Proxy has no effect on a Transport of your own; set it there")
	case o.Transport != nil && o.Wrap != nil:
		return nil, errors.New("pusher: Wrap has no effect on a Transport of your own; wrap it there")
	case o.Scheme < SchemeAuto || o.Scheme > SchemeEither:
		return nil, fmt.Errorf("pusher: unknown Scheme %d", o.Scheme)
	case o.StallTimeout < 0 || o.AnswerTimeout < 0:
		return nil, errors.New("pusher: a timeout is negative")
	case o.Tries < 0 || o.Limit < 0:
		return nil, errors.New("pusher: Tries or Limit is negative")
	case o.Transport != nil && o.Limit > 0:
		return nil, errors.New("pusher: Limit has no effect on a Transport of your own")
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = resume.DefaultStallTimeout
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.UserAgent == "" {
		o.UserAgent = "rpush"
	}
	if o.Dialects == nil {
		o.Dialects = resume.MemoryDialects()
	}
	if o.Store == nil {
		o.Store = resume.MemoryStore()
	}
	if o.SpoolLimit == 0 {
		o.SpoolLimit = resume.DefaultSpoolLimit
	}
	p := &Pusher{o: o, shared: newConnections(), graphs: graphOptions{
		nondistributable: o.Nondistributable,
		spools:           tempfile.Options{Dir: o.SpoolDir, Quota: tempfile.NewQuota(o.SpoolLimit), Memory: spoolMemory},
	}}
	if o.Transport != nil {
		p.base = wire.Tracked(o.Transport)
	} else {
		wo := wire.Options{TLS: o.TLSClientConfig, Proxy: o.Proxy, UserAgent: o.UserAgent, Stall: o.StallTimeout}
		if o.Limit > 0 {
			wo.Limit = wire.NewLimiter(o.Limit)
		}
		p.own = wire.New(wo)
		p.base = p.wrap(p.own)
	}
	return p, nil
}

func (p *Pusher) wrap(rt http.RoundTripper) http.RoundTripper {
	if p.o.Wrap == nil {
		return rt
	}
	return p.o.Wrap(rt)
}

// Push delivers img and all it names to the repository of ref, and its
// manifest, last, under ref. img is what remote.Push of go-containerregistry
// takes: a v1.Image, a v1.ImageIndex, or anything with a manifest; a *Stored,
// which is delivered byte by byte; or a *Bundle of any of them. A layer that can
// be read only once, such as a stream.Layer, is kept in a temporary file until
// Push returns; another Push of the same layer needs a registry that has it.
//
// Every blob is checked for first; what is missing is uploaded; manifests
// follow strictly after everything they name. On failure nothing is published
// under ref, blobs that arrived stay at the registry, and the same call again,
// also in another process, sends the rest. The errors are those of package resume. The report is never
// nil and valid also after a failure.
//
// The context ends the push as soon as bytes can be stopped.
func (p *Pusher) Push(ctx context.Context, ref name.Reference, img remote.Taggable) (*Report, error) {
	began := time.Now()
	report := &Report{}
	if ref == nil || img == nil {
		return report, errors.New("pusher: a reference and an image are needed")
	}
	report.Reference = ref.Name()
	g, err := newGraph(ctx, img, p.graphs)
	if err == nil {
		defer g.close()
		err = p.push(ctx, ref, g)
		g.fill(report)
	}
	report.Seconds = seconds(time.Since(began))
	return report, named(ctx, ref, err)
}

// Probe breaks a small upload to repo on purpose and says what the registry kept
// of it: see resume.Client.Probe.
func (p *Pusher) Probe(ctx context.Context, repo name.Repository) (*resume.Probe, error) {
	c, err := p.connect(ctx, repo, nil, repo.Scope(transport.PushScope))
	if err != nil {
		return &resume.Probe{}, err
	}
	return c.Probe(ctx)
}

// Check asks where the upload session of a record stands: see
// resume.Client.Check.
func (p *Pusher) Check(ctx context.Context, r resume.Record) (offset int64, alive bool, err error) {
	c, err := p.recorded(ctx, r)
	if err != nil {
		return 0, false, err
	}
	return c.Check(ctx, r)
}

// Cancel ends the upload session of a record at the registry: see
// resume.Client.Cancel.
func (p *Pusher) Cancel(ctx context.Context, r resume.Record) error {
	c, err := p.recorded(ctx, r)
	if err != nil {
		return err
	}
	return c.Cancel(ctx, r)
}

func (p *Pusher) recorded(ctx context.Context, r resume.Record) (*resume.Client, error) {
	repo, err := name.NewRepository(r.Name(), name.WeakValidation)
	if err != nil {
		return nil, protocol.Kind(protocol.ErrEndpoint, err)
	}
	return p.connect(ctx, repo, nil, repo.Scope(transport.PushScope))
}

func (p *Pusher) push(ctx context.Context, ref name.Reference, g *graph) error {
	if err := matches(ref, g); err != nil {
		return err
	}
	m := p.candidates(ref.Context(), g)
	d := p.delivery(ref)
	d.plan(ctx, g.total())
	if err := d.connect(ctx, m.all()); err != nil {
		return err
	}
	return d.finish(ctx, g, m)
}

func (p *Pusher) client(ctx context.Context, repo name.Repository, scheme string, rt, external http.RoundTripper, d *Delivery) (*resume.Client, error) {
	reference, onEvent := "", p.o.OnEvent
	if d != nil {
		reference = d.ref.Name()
		if onEvent != nil {
			onEvent = d.event
		}
	}
	logger := p.o.Logger
	if logger != nil {
		logger = logger.WithFields(nil).WithContext(ctx) // a client is for one call
	}
	return resume.New(repo, resume.Options{
		PlainHTTP:     scheme == "http",
		Transport:     rt,
		External:      external,
		Reached:       p.reached(repo).Load(),
		RetryFor:      p.o.RetryFor,
		Tries:         p.o.Tries,
		StallTimeout:  p.o.StallTimeout,
		AnswerTimeout: p.o.AnswerTimeout,
		UserAgent:     p.o.UserAgent,
		Dialects:      p.o.Dialects,
		Store:         p.o.Store,
		Reference:     reference,
		Logger:        logger,
		OnEvent:       onEvent,
	})
}

// order is that of uploading: the small blobs while the link is young, since
// each would be a few round trips on an idle link at the end; then the largest
// first, so that no long one is left alone at the end.
func order(a, b *blob) int {
	const small = 64 << 10
	if a.Size <= small || b.Size <= small {
		return cmp.Compare(a.Size, b.Size)
	}
	return cmp.Compare(b.Size, a.Size)
}

// publish writes the manifests, those that are named before those that name
// them. What accompanies the image is there before a tag shows the image.
func (d *Delivery) publish(ctx context.Context, g *graph, ids []string) error {
	for _, level := range slices.Concat(g.levels, g.more) {
		err := each(ctx, d.p.o.Parallel, level, func(ctx context.Context, m *node) error {
			if m == g.root && len(g.more) == 0 && m.subject == "" {
				return nil // its tag comes last, and needs no digest first
			}
			if err := d.put(ctx, g, m.digest.String(), m); err != nil {
				return err
			}
			for _, tag := range m.tags {
				if err := d.put(ctx, g, tag, m); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return each(ctx, d.p.o.Parallel, ids, func(ctx context.Context, id string) error { return d.put(ctx, g, id, g.root) })
}

// each calls f for all items, some at once. The first error ends the others; a
// panic comes out of each, where the caller can recover it.
func each[T any](ctx context.Context, parallel int, items []T, f func(context.Context, T) error) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(parallel)
	var panicked atomic.Pointer[string]
	for _, item := range items {
		eg.Go(func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					text := fmt.Sprintf("%v\n\n%s", r, debug.Stack())
					panicked.CompareAndSwap(nil, &text)
					err = errPanicked
				}
			}()
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return f(ctx, item)
		})
	}
	err := eg.Wait()
	if text := panicked.Load(); text != nil {
		panic(*text)
	}
	return err
}

var errPanicked = errors.New("panicked")

// put writes one manifest (distribution-spec v1.1, end-7), unless the registry
// has it under this name: writing it again would fail where tags are
// immutable.
func (d *Delivery) put(ctx context.Context, g *graph, id string, m *node) error {
	there, err := d.has(ctx, id, m)
	if err != nil {
		return err
	}
	// Only the answer to a PUT says whether the registry lists referrers itself.
	asked := m.subject != "" && id == m.digest.String()
	if there && !asked {
		m.stored(true)
		d.published(ctx, id, m)
		return nil
	}
	resp, err := d.write(ctx, g, id, m)
	if err != nil {
		return err
	}
	got, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err == nil && got.Algorithm() == m.digest.Algorithm() && got != m.digest {
		return protocol.Kind(protocol.ErrRefused, fmt.Errorf("the registry stored the manifest as %q instead of %s", got, m.digest))
	}
	m.stored(there)
	d.published(ctx, id, m)
	if asked && resp.Header.Get("OCI-Subject") == "" {
		return d.refer(ctx, m)
	}
	return nil
}

var manifestTypes = []types.MediaType{
	types.OCIManifestSchema1, types.OCIImageIndex, types.DockerManifestSchema2, types.DockerManifestList,
}

// write sends the manifest, and blobs that it is refused for before it is sent
// again.
func (d *Delivery) write(ctx context.Context, g *graph, id string, m *node) (*http.Response, error) {
	const op = "publish manifest"
	sent := map[digest.Digest]bool{}
	for {
		req, err := http.NewRequest(http.MethodPut, "", bytes.NewReader(m.raw))
		if err != nil {
			return nil, err
		}
		req.URL.Path = "manifests/" + id
		req.Header.Set("Content-Type", m.report.MediaType)
		resp, err := d.c.DoUnless(ctx, op, req, m.request(http.MethodHead, id), m.isAt)
		if err != nil || resp.StatusCode == http.StatusCreated || resp.Request.Method == http.MethodHead {
			return resp, err
		}
		// Whatever was answered, what is there counts: a tag that is immutable
		// and has this manifest, a lost answer of an earlier try, or nothing.
		now, err := d.has(ctx, id, m)
		refusal := d.c.Refused(op, resp)
		switch {
		case err != nil:
			return nil, refusal
		case now:
			return resp, nil
		}
		switch again, err := d.sendAgain(ctx, g, m, refusal, sent); {
		case err != nil:
			return nil, err
		case !again:
			return nil, refusal
		}
	}
}

// has asks whether the registry has exactly this manifest under id.
func (d *Delivery) has(ctx context.Context, id string, m *node) (bool, error) {
	resp, err := d.ask(ctx, http.MethodHead, id, m)
	var answer *protocol.StatusError
	if errors.As(err, &answer) && answer.Status == http.StatusForbidden && !answer.Token {
		// A virtual repository of Artifactory says so of a tag that is not there.
		// Whether the push is denied, the PUT tells.
		return false, nil
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		return false, err
	}
	got, err := d.digestOf(ctx, resp, id, m)
	return got == m.digest, err
}

// digestOf is the digest of the manifest that a HEAD found under id: that in the
// answer, or that of the bytes if the answer has none. Empty is another manifest,
// or none.
func (d *Delivery) digestOf(ctx context.Context, resp *http.Response, id string, m *node) (digest.Digest, error) {
	if got, err := digest.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil {
		return got, nil
	}
	resp, err := d.ask(ctx, http.MethodGet, id, m)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", err
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	return m.digest.Algorithm().FromBytes(raw), nil
}

func (d *Delivery) ask(ctx context.Context, method, id string, m *node) (*http.Response, error) {
	return d.c.Do(ctx, "check manifest", m.request(method, id))
}

// request asks for the manifest under id.
func (m *node) request(method, id string) *http.Request {
	req := &http.Request{Method: method, URL: &url.URL{Path: "manifests/" + id}, Header: http.Header{}}
	req.Header.Add("Accept", m.report.MediaType)
	for _, t := range manifestTypes {
		if string(t) != m.report.MediaType {
			req.Header.Add("Accept", string(t))
		}
	}
	return req
}

// isAt reports whether the answer to a HEAD says that it found exactly this
// manifest.
func (m *node) isAt(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK && resp.Header.Get("Docker-Content-Digest") == m.digest.String()
}

// fill writes what the graph knows into the report.
func (g *graph) fill(r *Report) {
	root := g.root
	r.Digest, r.MediaType = root.digest, root.report.MediaType
	for _, b := range g.blobs {
		r.addBlob(b.report)
	}
	r.Tags = g.tags
	for _, level := range slices.Concat(g.levels, g.more) {
		for _, m := range level {
			r.Manifests = append(r.Manifests, m.report)
			r.Size += m.report.Size
		}
	}
}
