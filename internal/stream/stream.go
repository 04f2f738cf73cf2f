// Package stream delivers an image while it is still being read: what an
// engine saves comes once and in an order of its own, and goes out layer by
// layer, compressed on the way, before the manifest has been seen. Nothing that
// the registry has is compressed or sent.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// Job is one image to be delivered. Run may be called once.
type Job struct {
	// Delivery takes the blobs; Finish is the caller's.
	Delivery *pusher.Delivery
	// Save gives the saved image. It is called again for layers that did not fit
	// into the spool, once for each try.
	Save func(context.Context) (io.ReadCloser, error)
	// ID is that of the image: the digest of its config or, with Whole, of its
	// manifest or index.
	ID digest.Digest
	// Whole says that the archive holds an image with manifests and blobs as
	// they are to be published, as containerd keeps them.
	Whole bool
	// DiffIDs are those of the layers.
	DiffIDs []digest.Digest

	// Algorithm is how layers are compressed that are not as they are to be
	// published.
	Algorithm compress.Algorithm
	// Format is that of the manifests. Empty is docker's schema 2, or with Whole
	// the one they have.
	Format Format

	// Learnt are blobs that may hold a layer, by diffID, beside those of Cache.
	Learnt map[digest.Digest][]known.Layer
	// Config is the config where it is known already, else empty.
	Config []byte

	// DryRun uploads nothing; a Spool would only fill up.
	DryRun bool

	// Spool is where layers wait for the registry; nil is none: each try makes
	// the layer again.
	Spool *spool.Dir
	// Cache is what is known of layers and images; nil is nothing.
	Cache *known.Cache
	// Repository is where to, registry included.
	Repository string
	// MountFrom are repositories that may have blobs of a Whole image.
	MountFrom []string
	// Warn gets what a user should know; it may not be nil.
	Warn func(error)
	// Doing is told what goes on, for those who wait; it may not be nil.
	Doing func(phase string)

	stats  Stats
	unkept sync.Once

	mu      sync.Mutex
	at      map[digest.Digest]known.Layer // by diffID: at the registry, or about to be
	spooled map[digest.Digest]*spool.Blob
	files   map[string]known.Layer // by name in the archive; of Whole, the blobs
	diffs   map[string]digest.Digest
	unfit   []unfit

	uploads   *errgroup.Group
	uploading context.Context // of uploads
}

// Stats say how much work it was.
type Stats struct {
	// Exports counts how often the image was read.
	Exports int `json:"exports"`
	// Read is how many bytes of layers were read and not skipped.
	Read int64 `json:"read"`
	// Compressed counts the layers that were compressed.
	Compressed int `json:"compressed"`
	// Spooled is how many bytes went into the spool, Reused how many of them
	// came from an earlier process.
	Spooled int64 `json:"spooled"`
	Reused  int64 `json:"reused"`
}

// Stats are final once Run returned.
func (j *Job) Stats() Stats { return j.stats }

// unfit is a blob that did not fit into the spool.
type unfit struct {
	name  string // in the archive
	layer known.Layer
}

var errChanged = errors.New("what was saved is not the image that was asked for")

// Run delivers the layers and returns the image for Delivery.Finish, which
// sends what is left: configs, and small blobs. The errors are those of package
// resume.
func (j *Job) Run(ctx context.Context) (remote.Taggable, error) {
	j.at, j.spooled = map[digest.Digest]known.Layer{}, map[digest.Digest]*spool.Blob{}
	j.files, j.diffs = map[string]known.Layer{}, map[string]digest.Digest{}
	defer func() {
		for _, b := range j.spooled {
			b.Keep() // for the next process; delivered ones are gone
		}
	}()
	if !j.Whole {
		if err := j.look(ctx); err != nil {
			return nil, err
		}
	}
	j.uploads, j.uploading = errgroup.WithContext(ctx)
	img, err := j.deliver(j.uploading)
	if err != nil {
		// The cause may be an upload; its error is the one that Wait returns.
		stop := errStopped{err}
		j.uploads.Go(func() error { return stop })
	}
	werr := j.uploads.Wait()
	var stop errStopped
	switch {
	case errors.As(werr, &stop):
		return nil, stop.err
	case werr != nil:
		return nil, werr
	}
	return img, nil
}

// errStopped ends the uploads because reading has failed.
type errStopped struct{ err error }

func (e errStopped) Error() string { return e.err.Error() }

// look finds the layers that need not be read: those the registry has, and
// those that an earlier process left in the spool.
func (j *Job) look(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(pusher.DefaultChecks)
	seen := map[digest.Digest]bool{}
	for _, diff := range j.DiffIDs {
		if seen[diff] {
			continue
		}
		seen[diff] = true
		eg.Go(func() error { return j.lookFor(ctx, diff) })
	}
	return eg.Wait()
}

func (j *Job) lookFor(ctx context.Context, diff digest.Digest) error {
	var own *known.Layer
	for _, l := range slices.Concat(j.Learnt[diff], j.Cache.Layers(diff)) {
		if a, ok := compress.Of(mediaType(l)); !ok || a != j.Algorithm {
			continue
		}
		held, err := j.Delivery.Held(ctx, l.Digest, l.Size, l.MediaType, l.Repositories...)
		if err != nil {
			return err
		}
		if held {
			j.has(diff, l)
			return nil
		}
		if own == nil && l.Key == j.Algorithm.Key() {
			own = &l
		}
	}
	if own != nil && j.DryRun {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.at[diff] = *own
		return nil
	}
	if own == nil || j.Spool == nil {
		return nil
	}
	if b, ok := j.Spool.Get(ctx, own.Digest, own.Size); ok {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.at[diff] = *own
		j.spooled[own.Digest] = b
		j.stats.Reused += b.Size
	}
	return nil
}

// has notes that the registry has a layer. What a registry only said of a layer
// is not remembered: it is asked again the next time, and a lie ends with it.
func (j *Job) has(diff digest.Digest, l known.Layer) {
	j.mu.Lock()
	j.at[diff] = l
	j.mu.Unlock()
	if l.Key != "" {
		others := slices.DeleteFunc(slices.Clone(l.Repositories), func(r string) bool { return r == j.Repository })
		l.Repositories = append([]string{j.Repository}, others...)
		j.keep(j.Cache.AddLayer(diff, l))
	}
}

// keep says once what could not be remembered. The push goes on.
func (j *Job) keep(err error) {
	if err != nil {
		j.unkept.Do(func() { j.Warn(fmt.Errorf("what was learnt about layers is not kept: %w", err)) })
	}
}

func (j *Job) deliver(ctx context.Context) (remote.Taggable, error) {
	for diff, l := range maps.Clone(j.at) { // uploads write to it
		if b, ok := j.spooled[l.Digest]; ok {
			j.send(diff, l, b)
		}
	}
	unknown := func(d digest.Digest) bool { _, ok := j.known(d); return !ok }
	if !j.Whole && len(j.Config) > 0 && !slices.ContainsFunc(j.DiffIDs, unknown) {
		return j.assemble(j.Config, j.DiffIDs, nil)
	}
	a, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.again(ctx); err != nil {
		return nil, err
	}
	if j.Whole {
		return j.whole(a)
	}
	return j.docker(a)
}

// read walks through the saved image once.
func (j *Job) read(ctx context.Context) (*saved.Archive, error) {
	j.Doing(fmt.Sprintf("waiting for the engine to save %s", short(j.ID)))
	r, err := j.Save(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	j.stats.Exports++
	chain := saved.ChainIDs(j.DiffIDs)
	return saved.Walk(ctx, r, func(a *saved.Archive, e saved.Entry, r io.Reader) error {
		switch {
		case j.Whole && e.Digest == "", path.Base(e.Name) == "VERSION":
			return nil
		case j.Whole:
			return j.blob(ctx, e, r)
		}
		return j.layer(ctx, e, j.claimed(a, e, chain), r)
	})
}

// claimed is the diffID that a file is said to have, before it is read; empty
// where nothing says so.
func (j *Job) claimed(a *saved.Archive, e saved.Entry, chain []digest.Digest) digest.Digest {
	if i := a.Position(e, chain); i >= 0 {
		return j.DiffIDs[i]
	}
	// Docker from 25 on names files by it, podman too.
	d := e.Digest
	if hex, ok := strings.CutSuffix(e.Name, ".tar"); ok {
		d = digest.NewDigestFromEncoded(digest.SHA256, hex)
	}
	if slices.Contains(j.DiffIDs, d) {
		return d
	}
	return ""
}

// layer takes in a layer: skips it, or compresses it and sends it on its way.
func (j *Job) layer(ctx context.Context, e saved.Entry, claimed digest.Digest, r io.Reader) error {
	if l, ok := j.known(claimed); ok {
		j.note(e.Name, claimed, l)
		return nil
	}
	j.Doing(fmt.Sprintf("compressing layers, %d done", j.stats.Compressed))
	m, err := j.make(ctx, r, j.Algorithm)
	if err != nil {
		return err
	}
	j.stats.Compressed++
	l := known.Layer{Digest: m.blob, Size: m.size, MediaType: string(j.Algorithm.LayerType(true)), Key: j.Algorithm.Key()}
	if at, ok := j.known(m.plain); ok { // nothing said so before
		m.discard()
		j.note(e.Name, m.plain, at)
		return nil
	}
	j.note(e.Name, m.plain, l)
	j.keep(j.Cache.AddLayer(m.plain, l))
	return j.accept(m.plain, e.Name, l, m)
}

// blob takes in a blob that is published as it is.
func (j *Job) blob(ctx context.Context, e saved.Entry, r io.Reader) error {
	l := known.Layer{Digest: e.Digest, Size: e.Size, MediaType: "application/octet-stream"}
	held, err := j.Delivery.Held(ctx, l.Digest, l.Size, l.MediaType, j.MountFrom...)
	if err != nil {
		return err
	}
	j.note(e.Name, l.Digest, l)
	if held {
		return nil
	}
	if j.Spool != nil {
		if b, ok := j.Spool.Get(ctx, l.Digest, l.Size); ok {
			j.stats.Reused += b.Size
			j.mu.Lock()
			j.spooled[l.Digest] = b
			j.mu.Unlock()
			j.send(l.Digest, l, b)
			return nil
		}
	}
	m, err := j.make(ctx, r, "")
	if err != nil {
		return err
	}
	if m.blob != e.Digest && e.Digest.Algorithm() == digest.SHA256 {
		m.discard()
		return bad("blob %s is damaged: it has the digest %s", e.Digest, m.blob)
	}
	m.blob = e.Digest
	return j.accept(l.Digest, e.Name, l, m)
}

// accept sends what was made on its way, from the spool if it is there.
func (j *Job) accept(diff digest.Digest, name string, l known.Layer, m *made) error {
	if m.w == nil {
		j.later(diff, name, l)
		return nil
	}
	b, err := m.w.Keep(m.blob)
	if err != nil {
		j.Warn(fmt.Errorf("the spool does not keep a layer, it is made again for each try: %w", err))
		j.later(diff, name, l)
		return nil
	}
	j.stats.Spooled += b.Size
	j.mu.Lock()
	j.at[diff] = l
	j.spooled[l.Digest] = b
	j.mu.Unlock()
	j.send(diff, l, b)
	return nil
}

// later leaves a blob to again.
func (j *Job) later(diff digest.Digest, name string, l known.Layer) {
	j.unfit = append(j.unfit, unfit{name, l})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.at[diff] = l
}

// send uploads a blob beside everything else.
func (j *Job) send(diff digest.Digest, l known.Layer, b *spool.Blob) {
	j.uploads.Go(func() error {
		err := j.Delivery.Upload(j.uploading, resume.Blob{Digest: l.Digest, Size: l.Size, Open: b.Open}, l.MediaType)
		if err != nil {
			return err
		}
		b.Delivered()
		if !j.Whole {
			j.has(diff, l)
		}
		return nil
	})
}

// again delivers what did not fit into the spool: the image is saved, and the
// blob made, for every try.
func (j *Job) again(ctx context.Context) error {
	if j.DryRun {
		return nil
	}
	for _, u := range j.unfit {
		j.Doing(fmt.Sprintf("sending %s, which does not fit into the spool", short(u.layer.Digest)))
		err := j.Delivery.Upload(ctx, resume.Blob{
			Digest: u.layer.Digest, Size: u.layer.Size,
			Open: func(open context.Context, offset int64) (io.ReadCloser, error) {
				return at(open, j.remake(ctx, u.name), offset)
			},
		}, u.layer.MediaType)
		if err != nil {
			return err
		}
	}
	return nil
}

// remake makes the blob of one file of the archive anew.
func (j *Job) remake(ctx context.Context, file string) io.ReadCloser {
	pr, pw := io.Pipe()
	j.stats.Exports++
	go func() {
		pw.CloseWithError(func() error {
			r, err := j.Save(ctx)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = saved.Walk(ctx, r, func(_ *saved.Archive, e saved.Entry, r io.Reader) error {
				if e.Name != file {
					return nil
				}
				if err := j.copyTo(pw, r); err != nil {
					return err
				}
				return errDone
			})
			if err == nil {
				err = bad("%s is no longer in what is saved", file)
			}
			if errors.Is(err, errDone) {
				err = nil
			}
			return err
		}())
	}()
	return pr
}

// errDone ends a walk that has found what it looked for.
var errDone = errors.New("done")

func (j *Job) known(diff digest.Digest) (known.Layer, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, ok := j.at[diff]
	return l, ok
}

func (j *Job) note(file string, diff digest.Digest, l known.Layer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.files[file], j.diffs[file] = l, diff
}

// docker makes the image of an archive with a manifest.json.
func (j *Job) docker(a *saved.Archive) (remote.Taggable, error) {
	images, err := a.Docker()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		config, ok := a.Document(img.Config)
		if !ok || j.ID.Algorithm().FromBytes(config) != j.ID {
			continue
		}
		diffs, err := diffIDs(config)
		if err != nil {
			return nil, bad("the config %s: %w", j.ID, err)
		}
		if len(diffs) != len(img.Layers) {
			return nil, bad("the image has %d layers, its config names %d", len(img.Layers), len(diffs))
		}
		for i, name := range img.Layers {
			if foreign, ok := img.LayerSources[toHash(diffs[i])]; ok && !foreign.MediaType.IsDistributable() {
				continue
			}
			file, _, ok := a.Resolve(name)
			if !ok {
				return nil, bad("layer %d of %d, %q, is missing", i+1, len(diffs), name)
			}
			if got := j.diffs[file]; got != diffs[i] {
				return nil, bad("layer %d of %d, %q, is damaged: its digest is %s, the config says %s", i+1, len(diffs), name, got, diffs[i])
			}
		}
		return j.assemble(config, diffs, img.LayerSources)
	}
	return nil, bad("%w: it has no config %s", errChanged, j.ID)
}

func toHash(d digest.Digest) v1.Hash {
	return v1.Hash{Algorithm: d.Algorithm().String(), Hex: d.Encoded()}
}

// assemble makes the image of layers that are at the registry or on their way.
func (j *Job) assemble(config []byte, diffs []digest.Digest, foreign map[v1.Hash]v1.Descriptor) (remote.Taggable, error) {
	if got := j.ID.Algorithm().FromBytes(config); got != j.ID {
		return nil, bad("%w: its config is %s, not %s", errChanged, got, j.ID)
	}
	var descs []v1.Descriptor
	for i, diff := range diffs {
		if f, ok := foreign[toHash(diff)]; ok && !f.MediaType.IsDistributable() {
			descs = append(descs, f)
			continue
		}
		l, ok := j.known(diff)
		if !ok {
			return nil, bad("layer %d of %d, %s, is missing", i+1, len(diffs), diff)
		}
		a, ok := compress.Of(mediaType(l))
		if !ok {
			return nil, bad("layer %d of %d has the media type %q", i+1, len(diffs), l.MediaType)
		}
		d, err := descriptor(l, a.LayerType(j.Format == OCI))
		if err != nil {
			return nil, bad("layer %d of %d: %w", i+1, len(diffs), err)
		}
		descs = append(descs, d)
	}
	manifest, err := NewManifest(config, descs, j.Format == OCI)
	if err != nil {
		return nil, err
	}
	j.keep(j.Cache.AddConfig(j.ID, config))
	return NewImage(manifest, config, nil)
}

// bad returns a resume.ErrSource.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", resume.ErrSource, fmt.Errorf(format, args...))
}

func short(d digest.Digest) string { return string(d[:min(len(d), len("sha256:")+12)]) }
