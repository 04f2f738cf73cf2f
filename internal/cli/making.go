// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
)

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

// references are those of --cache-from.
func (l *layerOptions) references() (all []name.Reference) {
	for _, from := range l.cacheFrom {
		if ref, err := name.ParseReference(from, name.WeakValidation); err == nil { // checked before
			all = append(all, ref)
		}
	}
	return all
}

// make pushes an image that becomes blobs and a manifest on its way. eng is nil if
// the image comes from an archive; what is what people call it.
func (p *pushes) make(ctx context.Context, t target, po pusher.Options, in stream.Input, what string, eng *engineImage) error {
	push := stream.Push{
		Job: stream.Job{
			Input: in, DryRun: p.o.image.dryRun, Cache: p.cache(),
			Algorithm: compress.Algorithm(p.o.layers.compression), Format: p.o.layers.manifests(),
			Warn: p.warn, Doing: p.progress.doing,
		},
		Options: po, Reference: t.ref, Tags: t.tags, NoClobber: p.o.image.noClobber,
		Spools: p.o.spools(), CacheFrom: p.o.layers.references(), Readers: p.x.reader,
		Phase: pushingPhase(what, t.ref),
	}
	if eng != nil {
		push.Related = func(ctx context.Context) []stream.Related { return eng.related(ctx, t.ref.Context().RegistryStr()) }
	}
	report, err := push.Run(ctx)
	if err == nil && eng != nil && !p.o.image.dryRun {
		p.update(ctx, eng, po, t.ref.Context(), report)
	}
	stats := push.Job.Stats()
	return p.done(t, report, &stats, err)
}

func (p *pushes) warn(err error) { p.a.out.note("warning: " + err.Error()) }

// largeTemp is where large files of a user without a home may go.
func largeTemp() string {
	if os.PathSeparator == '/' {
		return "/var/tmp" // TMPDIR is often in memory
	}
	return os.TempDir()
}
