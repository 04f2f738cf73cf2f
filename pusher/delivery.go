// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// Delivery is one image on its way to one reference. Where an image is made
// while it is pushed, its blobs can be given one by one as they come to be
// known; Finish takes the whole image, sends what was not given before, and
// publishes it. Push does all of it in one call.
//
// Held, Upload and Report are safe for concurrent use; nothing is to run beside
// Finish.
type Delivery struct {
	p     *Pusher
	c     *resume.Client
	ref   name.Reference
	began time.Time
	slots chan struct{} // Options.Parallel

	referrers sync.Mutex // the fallback tag is read, changed and written

	events sync.Mutex   // held while Options.OnEvent runs
	total  resume.Total // wants events

	mu    sync.Mutex
	given map[digest.Digest]*given
	order []*given
}

// given is a blob that was asked for or uploaded before the image was known.
type given struct {
	report BlobReport
	busy   chan struct{} // holds one token while nobody is at work on it
}

// Open begins a delivery to ref. Over https it does not touch the network yet.
func (p *Pusher) Open(ctx context.Context, ref name.Reference) (*Delivery, error) {
	if ref == nil {
		return nil, errors.New("pusher: a reference is needed")
	}
	d := p.delivery(ref)
	if err := d.connect(ctx, onRegistry(p.o.MountFrom, ref.Context())); err != nil {
		return nil, err
	}
	return d, nil
}

// delivery makes a delivery that has yet to connect.
func (p *Pusher) delivery(ref name.Reference) *Delivery {
	return &Delivery{
		p: p, ref: ref, began: time.Now(),
		slots: make(chan struct{}, p.o.Parallel), given: map[digest.Digest]*given{},
	}
}

// connect asks for the right to mount from repositories of the same registry, too.
func (d *Delivery) connect(ctx context.Context, from []name.Repository) (err error) {
	scopes := []string{d.ref.Scope(transport.PushScope)}
	for _, r := range from {
		scopes = append(scopes, r.Scope(transport.PullScope))
	}
	d.c, err = d.p.connect(ctx, d.ref.Context(), d, scopes...)
	return err
}

// claim gives the blob's record to the caller alone, until release.
func (d *Delivery) claim(ctx context.Context, dgst digest.Digest, size int64, mediaType string) (g *given, release func(), err error) {
	d.mu.Lock()
	g, ok := d.given[dgst]
	if !ok {
		g = &given{busy: make(chan struct{}, 1)}
		g.report = BlobReport{Digest: dgst, MediaType: mediaType, Size: size, State: BlobPending}
		g.busy <- struct{}{}
		d.given[dgst] = g
		d.order = append(d.order, g)
	}
	d.mu.Unlock()
	select {
	case <-g.busy:
		return g, func() { g.busy <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, nil, ended(ctx)
	}
}

// Held asks whether the repository has the blob, and where it has not, whether
// the registry takes it from one of the repositories from, names as of
// name.Repository.Name; those of other registries are passed over. A blob that
// is held is not asked for again by Finish. With Options.DryRun nothing is
// mounted, and a blob is held where it could be.
func (d *Delivery) Held(ctx context.Context, dgst digest.Digest, size int64, mediaType string, from ...string) (bool, error) {
	g, release, err := d.claim(ctx, dgst, size, mediaType)
	if err != nil {
		return false, err
	}
	defer release()
	if g.report.State != BlobPending {
		return true, nil
	}
	exists, err := d.c.Exists(ctx, dgst, size)
	if err != nil {
		return false, err
	}
	if exists {
		d.settle(g, BlobExisted, "")
		return true, nil
	}
	for _, repo := range from {
		bare := d.mountable(repo)
		if bare == "" {
			continue
		}
		if d.p.o.DryRun {
			there, err := d.at(ctx, bare, dgst, size)
			if err != nil {
				return false, err
			}
			if there {
				d.settle(g, BlobPending, bare)
				return true, nil
			}
			continue
		}
		mounted, err := d.c.Mount(ctx, dgst, size, bare)
		if errors.Is(err, protocol.ErrRefused) || errors.Is(err, protocol.ErrDenied) {
			continue // it is not ours to read, or the registry does not know of mounts
		}
		if err != nil {
			return false, err
		}
		if mounted {
			d.settle(g, BlobMounted, bare)
			return true, nil
		}
	}
	return false, nil
}

// mountable is the bare name of a repository that a blob can be mounted from,
// empty where it cannot, or is no name: it may come from a file that others
// write to.
func (d *Delivery) mountable(repo string) string {
	from, err := name.NewRepository(repo, name.WeakValidation)
	if err != nil || !mountable(from, d.ref.Context()) {
		return ""
	}
	return from.RepositoryStr()
}

// at asks another repository of the registry for a blob. One that cannot be
// asked has it not.
func (d *Delivery) at(ctx context.Context, bare string, dgst digest.Digest, size int64) (bool, error) {
	c, err := d.p.quietly(ctx, d.ref.Context().Repo(bare))
	if err != nil {
		return false, ended(ctx)
	}
	there, err := c.Exists(ctx, dgst, size)
	if err != nil {
		return false, ended(ctx)
	}
	return there, nil
}

func (d *Delivery) settle(g *given, s BlobState, from string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g.report.State, g.report.MountFrom = s, from
}

// Upload delivers one blob, or returns at once where it has been delivered. At
// most Options.Parallel run at once, the others wait. The errors are those of
// resume.Client.Upload.
func (d *Delivery) Upload(ctx context.Context, b resume.Blob, mediaType string) error {
	g, release, err := d.claim(ctx, b.Digest, b.Size, mediaType)
	if err != nil {
		return err
	}
	defer release()
	if g.report.State != BlobPending {
		return nil
	}
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return ended(ctx)
	}
	if d.p.o.DryRun {
		return nil
	}
	if b.MountFrom != "" {
		b.MountFrom = d.mountable(b.MountFrom)
	}
	r, err := d.c.Upload(ctx, b)
	d.mu.Lock()
	defer d.mu.Unlock()
	g.report.took(r, err)
	return err
}

// took notes what came of an upload.
func (r *BlobReport) took(res resume.Result, err error) {
	r.Sent += res.Sent
	r.Breaks += res.Breaks
	r.Resumes += res.Resumes
	r.Restarts += res.Restarts
	r.Continued += res.Continued
	r.Kept = res.Kept
	r.Seconds = seconds(res.Duration)
	switch {
	case err != nil:
	case res.Existed:
		r.State = BlobExisted
	case res.Mounted:
		r.State = BlobMounted
	default:
		r.State = BlobUploaded
	}
}

// Finish delivers what of img has not been given before, and publishes it: see
// Push. The report covers the image, with what was done for it before.
func (d *Delivery) Finish(ctx context.Context, img remote.Taggable) (*Report, error) {
	report := &Report{Reference: d.ref.Name()}
	if img == nil {
		return report, errors.New("pusher: an image is needed")
	}
	g, err := newGraph(ctx, img, d.p.graphs)
	if err == nil {
		defer g.close()
		d.plan(ctx, g.total())
		err = d.finish(ctx, g, d.p.candidates(d.ref.Context(), g))
		g.fill(report)
	}
	report.Seconds = seconds(time.Since(d.began))
	return report, named(ctx, d.ref, err)
}

// Plan says what the image will consist of, as far as that is known before
// Finish. Events have it as their Total from then on. Finish replaces it.
func (d *Delivery) Plan(ctx context.Context, t resume.Total) { d.plan(ctx, t) }

// Report is what has been done before Finish, for a delivery that does not get
// that far.
func (d *Delivery) Report() *Report {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &Report{Reference: d.ref.Name(), Seconds: seconds(time.Since(d.began))}
	for _, g := range d.order {
		r.addBlob(g.report)
	}
	return r
}

func (d *Delivery) finish(ctx context.Context, g *graph, m *mounts) error {
	ids, err := d.ids(g)
	if err != nil {
		return err
	}
	for _, b := range g.blobs {
		if early, ok := d.given[b.Digest]; ok {
			mt := b.report.MediaType
			b.report = early.report
			b.report.MediaType, b.report.Size = mt, b.Size
		}
	}
	if d.p.o.NoClobber {
		if err := d.unclobbered(ctx, g, ids); err != nil {
			return err
		}
	}
	if err := d.check(ctx, g); err != nil {
		return err
	}
	if err := m.choose(ctx); err != nil {
		return err
	}
	if d.p.o.DryRun {
		return d.look(ctx, g, ids)
	}
	if err := d.upload(ctx, g); err != nil {
		return err
	}
	if d.p.o.NoClobber { // somebody may have been faster
		if err := d.unclobbered(ctx, g, ids); err != nil {
			return err
		}
	}
	return d.publish(ctx, g, ids)
}

// ids are the names that the image gets: the reference's tag or digest, and
// further tags.
func (d *Delivery) ids(g *graph) ([]string, error) {
	if err := matches(d.ref, g); err != nil {
		return nil, err
	}
	ids := []string{d.ref.Identifier()}
	for _, tag := range g.tags {
		if _, err := name.NewTag(d.ref.Context().Name()+":"+tag, name.StrictValidation); err != nil {
			return nil, fmt.Errorf("pusher: %q is no tag", tag)
		}
		if !slices.Contains(ids, tag) {
			ids = append(ids, tag)
		}
	}
	return ids, nil
}

// matches refuses to publish one manifest under the digest of another.
func matches(ref name.Reference, g *graph) error {
	if d, ok := ref.(name.Digest); ok && d.DigestStr() != g.root.digest.String() {
		return protocol.Kind(protocol.ErrSource, fmt.Errorf("the manifest to push is %s, not the one the reference names", g.root.digest))
	}
	return nil
}

func hasKind(err error) bool {
	for _, kind := range []error{resume.ErrInterrupted, resume.ErrDenied, resume.ErrEndpoint, resume.ErrSource, resume.ErrRefused} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// ended returns nil while ctx goes on, and an error of the kind ErrInterrupted
// after it has ended.
func ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return protocol.Kind(protocol.ErrInterrupted, context.Cause(ctx))
}

// named says what a failure is about if the error does not. A failure without a
// kind, after the context has ended, is of the kind ErrInterrupted.
func named(ctx context.Context, ref name.Reference, err error) error {
	if err != nil && ctx.Err() != nil && !hasKind(err) {
		err = protocol.Kind(protocol.ErrInterrupted, err)
	}
	var own *resume.Error
	if err != nil && !errors.As(err, &own) {
		return fmt.Errorf("push %s: %w", ref.Name(), err)
	}
	return err
}

// check asks for everything at once.
func (d *Delivery) check(ctx context.Context, g *graph) error {
	return each(ctx, d.p.o.Checks, pending(g), func(ctx context.Context, b *blob) error {
		began := time.Now()
		exists, err := d.c.Exists(ctx, b.Digest, b.Size)
		b.Missing, b.checked = !exists, time.Now()
		b.report.Seconds = seconds(time.Since(began))
		if exists {
			b.report.State = BlobExisted
		}
		return err
	})
}

func (d *Delivery) upload(ctx context.Context, g *graph) error {
	missing := pending(g)
	slices.SortStableFunc(missing, order)
	return each(ctx, d.p.o.Parallel, missing, func(ctx context.Context, b *blob) error {
		// Another push may have delivered it since.
		b.Missing = time.Since(b.checked) < time.Second
		r, err := d.c.Upload(ctx, b.Blob)
		b.report.took(r, err)
		return err
	})
}

// pending are the blobs that are not at the registry, as far as is known.
func pending(g *graph) []*blob {
	return slices.DeleteFunc(slices.Clone(g.blobs), func(b *blob) bool { return b.report.State != BlobPending })
}

// Document is a manifest or a config as a registry has it.
type Document struct {
	Raw       []byte
	MediaType string
}

// Manifest reads the manifest that ref names, at most 4 MiB, from whatever
// repository. It is nil, without an error, if there is none. One that is
// named by its digest is checked against it.
func (p *Pusher) Manifest(ctx context.Context, ref name.Reference) (*Document, error) {
	accept := make([]string, len(manifestTypes))
	for i, t := range manifestTypes {
		accept[i] = string(t)
	}
	var want digest.Digest
	if d, ok := ref.(name.Digest); ok {
		want = digest.Digest(d.DigestStr())
	}
	return p.document(ctx, ref.Context(), "manifests/"+ref.Identifier(), want, accept...)
}

// Config reads a small blob of a repository, at most 4 MiB, and checks its
// digest. It is nil, without an error, if there is none.
func (p *Pusher) Config(ctx context.Context, repo name.Repository, dgst digest.Digest) (*Document, error) {
	return p.document(ctx, repo, "blobs/"+dgst.String(), dgst)
}

func (p *Pusher) document(ctx context.Context, repo name.Repository, path string, want digest.Digest, accept ...string) (*Document, error) {
	c, err := p.connect(ctx, repo, nil, repo.Scope(transport.PullScope))
	if err != nil {
		return nil, err
	}
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Header: http.Header{}}
	for _, a := range accept {
		req.Header.Add("Accept", a)
	}
	resp, err := c.Do(ctx, "read", req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, c.Refused("read", resp)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, protocol.Kind(protocol.ErrRefused, err)
		}
		if got := want.Algorithm().FromBytes(b); got != want {
			return nil, protocol.Kind(protocol.ErrRefused, fmt.Errorf("the registry gave %s where %s was asked for", got, want))
		}
	}
	return &Document{Raw: b, MediaType: string(contentType(resp))}, nil
}
