package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
)

// learnFor is how long what is only a help may take to be found out.
const learnFor = 10 * time.Second

// layerFlags are those of layerOptions, by name.
var layerFlags = []string{"compression", "format", "cache-from"}

// layerOptions are the flags about layers that are not compressed yet.
type layerOptions struct {
	compression, format string
	cacheFrom           []string
}

func (l *layerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&l.compression, "compression", string(compress.Gzip), "compress plain layers `HOW`: gzip, zstd, none")
	f.StringVar(&l.format, "format", "", "write their manifest as `FORMAT`, oci or v2s2")
	f.StringSliceVar(&l.cacheFrom, "cache-from", nil, "do not compress what `REF` has")
}

func (l *layerOptions) check(spelled map[string]string) error {
	l.compression = cmp.Or(l.compression, string(compress.Gzip))
	switch {
	case !slices.Contains(compress.Algorithms, compress.Algorithm(l.compression)):
		return fmt.Errorf("%s is %q, not gzip, zstd or none", spelled["compression"], l.compression)
	case l.format != "" && l.format != "oci" && l.format != "v2s2":
		return fmt.Errorf("%s is %q, neither oci nor v2s2", spelled["format"], l.format)
	}
	for _, ref := range l.cacheFrom {
		if _, err := name.ParseReference(ref, name.WeakValidation); err != nil {
			return fmt.Errorf("%s: "+badReference, spelled["cache-from"], ref)
		}
	}
	return nil
}

// manifests is the format asked for, by its name or by a compression that the
// other does not have.
func (l *layerOptions) manifests() stream.Format {
	if l.compression == string(compress.Zstd) {
		return stream.OCI
	}
	return stream.Format(l.format)
}

// making is an image on its way to one repository that becomes blobs and a
// manifest meanwhile.
type making struct {
	*pushes
	target
	what string     // what people call it
	job  stream.Job // says what to read
	po   pusher.Options
	eng  *engineImage // nil: it comes from an archive

	p *pusher.Pusher
	d *pusher.Delivery
}

func (m *making) push(ctx context.Context) error {
	report, err := m.deliver(ctx)
	stats := m.job.Stats()
	return m.done(m.target, report, &stats, err)
}

func (m *making) deliver(ctx context.Context) (*pusher.Report, error) {
	var err error
	if m.p, err = pusher.New(m.po); err != nil {
		return nil, err
	}
	if m.d, err = m.p.Open(ctx, m.ref); err != nil {
		return nil, err
	}
	defer m.p.CloseIdleConnections()
	m.progress.doing(pushingPhase(m.what, m.ref))
	img, err := m.make(ctx)
	if err != nil {
		return m.d.Report(), err
	}
	m.progress.doing(pushingPhase(m.what, m.ref))
	report, err := m.d.Finish(ctx, tagged(img, m.tags))
	if err == nil && m.eng != nil && !m.o.image.dryRun {
		m.update(ctx, report)
	}
	return report, err
}

func (m *making) warn(err error) { m.a.out.note("warning: " + err.Error()) }

// make delivers the layers, and returns what is to be published.
func (m *making) make(ctx context.Context) (remote.Taggable, error) {
	j := &m.job
	j.Delivery, j.Repository, j.DryRun = m.d, m.ref.Context().Name(), m.o.image.dryRun
	j.Algorithm, j.Format = compress.Algorithm(m.o.layers.compression), m.o.layers.manifests()
	j.Warn, j.Doing = m.warn, m.progress.doing
	j.Cache = m.cache()
	if !j.DryRun {
		j.Spool = m.spool()
	}
	for _, repo := range m.po.MountFrom {
		j.MountFrom = append(j.MountFrom, repo.Name())
	}
	if _, isWhole := j.Input.(*stream.Whole); isWhole {
		if j.Format == "" {
			if there, err := stream.Published(ctx, m.p, m.d, m.ref.Context(), j.Input.ID()); there != nil || err != nil {
				return there, err
			}
		}
		return j.Run(ctx)
	}
	if err := m.unclobbered(ctx); err != nil {
		return nil, err
	}
	lessons, reader := m.learn(ctx)
	j.Learnt, j.Config, j.Reader = lessons.Layers(), lessons.Config(), reader
	if config, ok := j.Cache.Config(j.Input.ID()); ok {
		j.Config = config
	}
	return j.Run(ctx)
}

// unclobbered refuses early what Finish would refuse in the end: to take a tag
// from an image with another ID.
func (m *making) unclobbered(ctx context.Context) error {
	if !m.o.image.noClobber {
		return nil
	}
	tags := m.tags
	if t, ok := m.ref.(name.Tag); ok {
		tags = append([]string{t.TagStr()}, tags...)
	}
	for _, tag := range tags {
		ref := m.ref.Context().Tag(tag)
		doc, err := m.p.Manifest(ctx, ref)
		if err != nil {
			return err
		}
		if doc == nil {
			continue
		}
		is, err := manifest.Parse(doc.Raw, "")
		if err != nil || is.Config == nil || is.Config.Digest.String() != m.job.Input.ID().String() {
			return &pusher.ExistsError{Reference: ref.Name(), Digest: digest.FromBytes(doc.Raw)}
		}
	}
	return nil
}

// spool is the first place that is good for it, or nil.
func (m *making) spool() *spool.Dir {
	var first error
	for _, place := range m.o.spools() {
		d, err := spool.Open(place, 0)
		if err == nil {
			return d
		}
		first = cmp.Or(first, err)
	}
	m.warn(fmt.Errorf("there is no place for compressed layers, each try makes them again: %w", first))
	return nil
}

// learn asks the registry what it knows of the image's layers, and returns the
// pusher to verify that with. All of it is a help: what fails is left out.
func (m *making) learn(ctx context.Context) (*stream.Lessons, *pusher.Pusher) {
	lessons := &stream.Lessons{ID: m.job.Input.ID(), DiffIDs: m.job.Input.DiffIDs()}
	p, err := m.x.reader(m.ref.Context())
	if err != nil {
		return lessons, nil
	}
	ctx, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	var eg errgroup.Group
	eg.SetLimit(pusher.DefaultParallel)
	if _, ok := m.ref.(name.Tag); ok {
		eg.Go(func() error {
			_ = lessons.Learn(ctx, p, m.ref) // the push itself will tell
			return nil
		})
	}
	for _, from := range m.o.layers.cacheFrom {
		ref, err := name.ParseReference(from, name.WeakValidation)
		if err != nil {
			continue // checked before
		}
		if ref.Context().RegistryStr() != m.ref.Context().RegistryStr() {
			m.warn(fmt.Errorf("%s is on another registry than %s: no layer can be taken from there", ref.Name(), m.ref.Context().Name()))
			continue
		}
		eg.Go(func() error {
			if err := lessons.Learn(ctx, p, ref); err != nil && ctx.Err() == nil {
				m.warn(fmt.Errorf("nothing is learnt from %s: %w", ref.Name(), err))
			}
			return nil
		})
	}
	if m.eng != nil {
		m.eng.learn(ctx, &eg, m.x, lessons, m.ref.Context().RegistryStr())
	}
	_ = eg.Wait() // none of them fails
	return lessons, p
}

// largeTemp is where large files of a user without a home may go.
func largeTemp() string {
	if os.PathSeparator == '/' {
		return "/var/tmp" // TMPDIR is often in memory
	}
	return os.TempDir()
}
