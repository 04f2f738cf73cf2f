package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/engine"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/source"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

const (
	// learnFor is how long what is only a help may take to be found out.
	learnFor = 10 * time.Second
	// updateFor is how long the engine may take to note what was pushed.
	updateFor = time.Minute
)

// engineOptions are the flags about images of the Docker engine, and what a
// run found out.
type engineOptions struct {
	host, context       string
	compression, format string
	cacheFrom           []string
	noUpdate            bool

	from atomic.Pointer[engine.Engine]
}

func (e *engineOptions) flags() flagGroup {
	g := newGroup("Docker engine")
	g.StringVar(&e.host, "docker-host", "", "read from the engine at `HOST`")
	g.StringVar(&e.context, "docker-context", "", "read from that of the docker context `NAME`")
	g.StringVar(&e.compression, "compression", string(compress.Gzip), "compress layers `HOW`: gzip, zstd, none")
	g.StringVar(&e.format, "format", "", "write the manifest as `FORMAT`, oci or v2s2")
	g.StringSliceVar(&e.cacheFrom, "cache-from", nil, "do not compress what `REF` has")
	g.BoolVar(&e.noUpdate, "no-engine-update", false, "do not tell the engine the digest")
	return g
}

func (e *engineOptions) check(spelled map[string]string) error {
	switch {
	case !slices.Contains(compress.Algorithms, compress.Algorithm(cmp.Or(e.compression, "gzip"))):
		return fmt.Errorf("%s is %q, not gzip, zstd or none", spelled["compression"], e.compression)
	case e.format != "" && e.format != "oci" && e.format != "v2s2":
		return fmt.Errorf("%s is %q, neither oci nor v2s2", spelled["format"], e.format)
	}
	for _, ref := range e.cacheFrom {
		if _, err := name.ParseReference(ref, name.WeakValidation); err != nil {
			return fmt.Errorf("%s: "+badReference, spelled["cache-from"], ref)
		}
	}
	return nil
}

// elsewhere is the address of the engine if it is on another host.
func (e *engineOptions) elsewhere() string {
	if eng := e.from.Load(); eng != nil && eng.Remote() {
		return eng.Address
	}
	return ""
}

// manifests is the format asked for, by its name or by a compression that the
// other does not have.
func (e *engineOptions) manifests() stream.Format {
	if e.compression == string(compress.Zstd) {
		return stream.OCI
	}
	return stream.Format(e.format)
}

// engineImage is the image of the engine to be read, if that is the source.
func (c call) engineImage() (image string, ok bool) {
	if c.source == "" {
		return engineName(c.ref), true
	}
	return strings.CutPrefix(c.source, "docker-daemon:")
}

// engineName spells a reference as the engine does.
func engineName(ref name.Reference) string {
	s := ref.Name()
	if rest, ok := strings.CutPrefix(s, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return s
}

// delivering is what pushes have in common.
type delivering struct {
	to       []target
	x        *access
	d        *deliveries
	progress *progress
	store    resume.Store
}

// deliverEngine pushes images of the engine: one to all targets, or all tags.
func (a *app) deliverEngine(ctx context.Context, o *options, c call, image string, all *delivering) error {
	eng, err := engine.Open(ctx, engine.Options{Host: o.engine.host, Context: o.engine.context})
	if err != nil {
		return err
	}
	defer eng.Close() //nolint:errcheck // idle connections
	o.engine.from.Store(eng)
	jobs := make([]*engineJob, 0, len(all.to))
	for _, t := range all.to {
		jobs = append(jobs, &engineJob{image: image, target: t})
	}
	if o.image.allTags {
		if jobs, err = engineTags(ctx, eng, c); err != nil {
			return err
		}
	}
	var before []name.Reference
	for _, j := range jobs {
		j.a, j.o, j.eng, j.progress, j.before = a, o, eng, all.progress, before
		report, err := j.deliver(ctx, all)
		all.d.add(delivered{j.ref, report, j.stats}, err)
		if err != nil {
			return err
		}
		if !o.image.dryRun {
			before = append(before, j.ref)
		}
	}
	return nil
}

// engineTags is a job for each tag that the engine has of a repository, which
// is that of REFERENCE unless SOURCE names another.
func engineTags(ctx context.Context, eng *engine.Engine, c call) ([]*engineJob, error) {
	repo := c.ref.Context()
	if c.source != "" {
		from := strings.TrimPrefix(c.source, "docker-daemon:")
		var err error
		if repo, err = name.NewRepository(from, name.WeakValidation); err != nil {
			return nil, fmt.Errorf("%w: "+badRepository, source.ErrSpec, from)
		}
	}
	tags, err := eng.Tags(ctx, repo)
	if err != nil {
		return nil, err
	}
	var jobs []*engineJob
	for _, tag := range tags {
		jobs = append(jobs, &engineJob{image: engineName(repo.Tag(tag)), target: target{ref: c.ref.Context().Tag(tag)}})
	}
	return jobs, nil
}

// engineJob is one image on its way from the engine to one repository.
type engineJob struct {
	image string
	target
	before   []name.Reference // pushed by this call already
	a        *app
	o        *options
	eng      *engine.Engine
	img      engine.Image
	po       pusher.Options
	p        *pusher.Pusher
	d        *pusher.Delivery
	progress *progress
	stats    *stream.Stats
}

func (j *engineJob) deliver(ctx context.Context, all *delivering) (*pusher.Report, error) {
	var err error
	if j.img, err = j.eng.Image(ctx, j.image); err != nil {
		return nil, err
	}
	if picks := j.o.image.picks; len(picks) > 0 {
		if j.img, err = j.eng.Pick(ctx, j.image, j.img, picks[0]); err != nil {
			return nil, err
		}
	}
	if j.o.image.preserveDigests && !j.img.Whole {
		return nil, fmt.Errorf(noDigestToKeep, resume.ErrSource, j.image)
	}
	if flag := j.o.spelled["compression"]; flag != "" && j.img.Whole {
		return nil, fmt.Errorf(keptCompressed, resume.ErrSource, flag, j.image)
	}
	host := j.ref.Context().RegistryStr()
	if j.po, err = j.o.pusher(&j.o.to, host); err != nil {
		return nil, err
	}
	j.o.image.apply(&j.po)
	for _, ref := range j.before {
		j.po.MountFrom = append(slices.Clone(j.po.MountFrom), ref.Context())
	}
	if j.img.Whole {
		j.po.MountFrom = append(slices.Clone(j.po.MountFrom), j.relations(ctx, host)...)
	}
	j.a.adopt(ctx, j.o, &j.po, j.eng, host)
	if err := j.a.signIn(&j.po, j.o, j.ref.Context(), all.x.to); err != nil {
		return nil, err
	}
	j.po.OnEvent, j.po.Store = j.progress.event, all.store
	if j.p, err = pusher.New(j.po); err != nil {
		return nil, err
	}
	if j.d, err = j.p.Open(ctx, j.ref); err != nil {
		return nil, err
	}
	defer j.d.Close()
	j.progress.doing(pushingPhase(j.image, j.ref))
	what, err := j.read(ctx)
	if err != nil {
		return j.d.Report(), err
	}
	j.progress.doing(pushingPhase(j.image, j.ref))
	report, err := j.d.Finish(ctx, tagged(what, j.tags))
	if err == nil && !j.o.image.dryRun {
		j.update(ctx, report, all.x.to)
	}
	return report, err
}

func (j *engineJob) warn(err error) { j.a.out.note("warning: " + err.Error()) }

// read delivers the layers, and returns what is to be published.
func (j *engineJob) read(ctx context.Context) (remote.Taggable, error) {
	o := &j.o.engine
	job := &stream.Job{
		Delivery:  j.d,
		Save:      func(ctx context.Context) (io.ReadCloser, error) { return j.eng.Export(ctx, j.img) },
		ID:        j.img.ID,
		Whole:     j.img.Whole,
		DiffIDs:   j.img.DiffIDs,
		Algorithm: compress.Algorithm(o.compression),
		Format:    o.manifests(),

		Repository: j.ref.Context().Name(),
		DryRun:     j.o.image.dryRun,
		Warn:       j.warn,
		Doing:      j.progress.doing,
	}
	defer func() { stats := job.Stats(); j.stats = &stats }()
	if dir := j.o.cache(); dir != "" {
		job.Cache = known.Open(dir)
	}
	if !job.DryRun {
		job.Spool = j.spool()
	}
	if job.Whole {
		for _, repo := range j.po.MountFrom {
			job.MountFrom = append(job.MountFrom, repo.Name())
		}
		if there, err := j.published(ctx); there != nil || err != nil {
			return there, err
		}
		return job.Run(ctx)
	}
	lessons := j.learn(ctx)
	job.Learnt, job.Config = lessons.Layers(), lessons.Config()
	if config, ok := job.Cache.Config(j.img.ID); ok {
		job.Config = config
	}
	return job.Run(ctx)
}

// spool is the first place that is good for it, or nil.
func (j *engineJob) spool() *spool.Dir {
	places := []string{j.o.image.spoolDir}
	if places[0] == "" {
		places = nil
		if dir := j.o.cache(); dir != "" {
			places = append(places, filepath.Join(dir, "spool"))
		}
		places = append(places, filepath.Join(largeTemp(), fmt.Sprintf("rpush-%d", os.Getuid())))
	}
	var first error
	for _, place := range places {
		d, err := spool.Open(place, 0)
		if err == nil {
			return d
		}
		first = cmp.Or(first, err)
	}
	j.warn(fmt.Errorf("there is no place for compressed layers, each try makes them again: %w", first))
	return nil
}

// maxRelations bounds from how many repositories a blob is mounted on trial.
const maxRelations = 8

// relations are the repositories of the registry that may have blobs of an image
// that containerd keeps: those named by --cache-from, and those that the engine
// has images of which begin as this one does.
func (j *engineJob) relations(ctx context.Context, host string) (repos []name.Repository) {
	add := func(repo name.Repository) {
		known := slices.ContainsFunc(append(repos, j.ref.Context()), func(r name.Repository) bool { return r.Name() == repo.Name() })
		if repo.RegistryStr() == host && !known && len(repos) < maxRelations {
			repos = append(repos, repo)
		}
	}
	for _, from := range j.o.engine.cacheFrom {
		if ref, err := name.ParseReference(from, name.WeakValidation); err == nil {
			add(ref.Context())
		}
	}
	for _, other := range append([]engine.Image{j.img}, j.eng.Relatives(ctx, j.img, host)...) {
		for _, ref := range other.RepoDigests {
			add(ref.Context())
		}
	}
	return repos
}

// published is the manifest or index of an image that containerd keeps, if the
// repository has it, with all that it names.
func (j *engineJob) published(ctx context.Context) (remote.Taggable, error) {
	if j.o.engine.manifests() != "" {
		return nil, nil
	}
	doc, err := j.p.Manifest(ctx, j.ref.Context().Digest(j.img.ID.String()))
	if err != nil || doc == nil {
		return nil, err
	}
	return &rawManifest{doc.Raw, types.MediaType(doc.MediaType)}, nil
}

// rawManifest is one whose blobs are at the registry.
type rawManifest struct {
	raw   []byte
	media types.MediaType
}

func (m *rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m *rawManifest) MediaType() (types.MediaType, error) { return m.media, nil }

// learn asks registries what they know of the image's layers. All of it is a
// help: what fails is left out.
func (j *engineJob) learn(ctx context.Context) *stream.Lessons {
	lessons := &stream.Lessons{ID: j.img.ID}
	po := j.po
	po.RetryFor, po.OnEvent = learnFor, nil
	p, err := pusher.New(po)
	if err != nil {
		return lessons
	}
	ctx, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	var eg errgroup.Group
	eg.SetLimit(pusher.DefaultParallel)
	if _, ok := j.ref.(name.Tag); ok {
		eg.Go(func() error {
			_ = lessons.Learn(ctx, p, j.ref) // the push itself will tell
			return nil
		})
	}
	for _, ref := range j.before {
		eg.Go(func() error {
			_ = lessons.Learn(ctx, p, ref) // a help only
			return nil
		})
	}
	for _, from := range j.o.engine.cacheFrom {
		ref, err := name.ParseReference(from, name.WeakValidation)
		if err != nil {
			continue // checked before
		}
		eg.Go(func() error {
			if err := lessons.Learn(ctx, p, ref); err != nil && ctx.Err() == nil {
				j.warn(fmt.Errorf("nothing is learnt from %s: %w", ref.Name(), err))
			}
			return nil
		})
	}
	host := j.ref.Context().RegistryStr()
	for _, other := range append([]engine.Image{j.img}, j.eng.Relatives(ctx, j.img, host)...) {
		for _, ref := range other.RepoDigests {
			if ref.Context().RegistryStr() == host {
				eg.Go(func() error { j.learnFrom(ctx, p, lessons, ref, other); return nil })
				break
			}
		}
	}
	_ = eg.Wait() // none of them fails
	return lessons
}

// learnFrom asks the engine's mirrors first, as the engine does.
func (j *engineJob) learnFrom(ctx context.Context, p *pusher.Pusher, l *stream.Lessons, ref name.Digest, of engine.Image) {
	for _, mirror := range j.eng.Mirrors(ref.Context().RegistryStr()) {
		repo, err := name.NewRepository(mirror+"/"+ref.Context().RepositoryStr(), name.WeakValidation)
		if err != nil {
			continue
		}
		if l.LearnAs(ctx, p, repo.Digest(ref.DigestStr()), ref.Context(), of.ID, of.DiffIDs) == nil {
			return
		}
	}
	_ = l.LearnAs(ctx, p, ref, ref.Context(), of.ID, of.DiffIDs) // a help only
}

// update has the engine note the digest of what was pushed.
func (j *engineJob) update(ctx context.Context, r *pusher.Report, keys *credentials.Keychain) {
	ref := j.ref.Context().Digest(r.Digest.String())
	noted := slices.ContainsFunc(j.img.RepoDigests, func(d name.Digest) bool { return d.Name() == ref.Name() })
	if j.o.engine.noUpdate || noted || j.img.Whole {
		return
	}
	j.progress.doing("telling the engine the digest")
	ctx, cancel := context.WithTimeout(ctx, updateFor)
	defer cancel()
	auth, err := keys.Resolve(j.ref.Context())
	if err == nil {
		conf, cerr := auth.Authorization()
		if err = cerr; err == nil {
			err = j.eng.Learn(ctx, ref, conf)
		}
	}
	if err != nil {
		j.warn(fmt.Errorf("the image is pushed, but the engine did not note its digest: %w", err))
	}
}

// adopt takes over the engine's settings, where no flag says otherwise.
func (a *app) adopt(ctx context.Context, o *options, po *pusher.Options, eng *engine.Engine, host string) {
	said := slices.ContainsFunc([]string{"plain-http", "tls-verify", "insecure", "ca-file", "cert-dir"}, func(f string) bool { return o.spelled[f] != "" })
	if !said && eng.Insecure(ctx, host) {
		po.Scheme = pusher.SchemeEither
		if po.TLSClientConfig == nil {
			po.TLSClientConfig = &tls.Config{}
		}
		po.TLSClientConfig.InsecureSkipVerify = true
	}
	httpProxy, httpsProxy, noProxy, ok := eng.Proxies()
	if !ok || po.Proxy != nil {
		return
	}
	for _, p := range []string{httpProxy, httpsProxy} {
		if u, err := url.Parse(p); err == nil && u.User != nil {
			// The engine shows no password.
			a.out.note("warning: " + proxySecretWords)
			return
		}
	}
	choose := (&httpproxy.Config{HTTPProxy: httpProxy, HTTPSProxy: httpsProxy, NoProxy: noProxy}).ProxyFunc()
	po.Proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}

// largeTemp is where large files of a user without a home may go.
func largeTemp() string {
	if os.PathSeparator == '/' {
		return "/var/tmp" // TMPDIR is often in memory
	}
	return os.TempDir()
}
