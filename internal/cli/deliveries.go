// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
)

// target is one push: a reference, and further tags of its repository.
type target struct {
	ref  name.Reference
	tags []string
}

// tagText is compiled when it is asked for, as are all: a push should start at
// once.
var tagText = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
})

// targets puts the tags of --tag beside the reference, by repository.
func (o *options) targets(c call) ([]target, error) {
	if o.image.allTags && c.tagged {
		return nil, fmt.Errorf(tagWithAll, c.ref)
	}
	if err := o.useful(c); err != nil {
		return nil, err
	}
	all := []target{{ref: c.ref}}
	for _, t := range o.image.tags {
		ref := name.Reference(c.ref.Context().Tag(t))
		if !tagText().MatchString(t) {
			var err error
			if ref, err = name.ParseReference(strings.TrimPrefix(t, "docker://"), name.WeakValidation); err != nil {
				return nil, fmt.Errorf(badTag, t)
			}
		}
		_, byDigest := ref.(name.Digest)
		i := slices.IndexFunc(all, func(o target) bool { return o.ref.Context().Name() == ref.Context().Name() })
		switch {
		case i < 0:
			all = append(all, target{ref: ref})
		case byDigest:
			return nil, fmt.Errorf(badTag, t)
		default:
			all[i].tags = append(all[i].tags, ref.Identifier())
		}
	}
	return all, nil
}

// useful finds flags that would do nothing. Variables may be set for other
// calls.
func (o *options) useful(c call) error {
	if !strings.HasPrefix(c.source, "docker://") {
		for _, flag := range slices.Sorted(maps.Keys(o.spelled)) {
			if strings.HasPrefix(o.spelled[flag], "--"+o.from.prefix) {
				return fmt.Errorf(notForSource, o.spelled[flag])
			}
		}
	}
	given := func(why string, flags ...string) error {
		for _, flag := range flags {
			if o.spelled[flag] == "--"+flag {
				return fmt.Errorf(why, o.spelled[flag])
			}
		}
		return nil
	}
	var err error
	switch _, engine := c.ofEngine(); {
	case engine:
		err = given(notForEngine, "referrers", "digest-tags", "allow-nondistributable-artifacts")
		if err == nil && len(o.image.picks) > 1 {
			err = fmt.Errorf(onePlatform, o.spelled["platform"])
		}
	default:
		err = given(onlyForEngine, engineFlags...)
		transport, _, _ := strings.Cut(c.source, ":")
		if err == nil && (transport == "oci" || transport == "docker") {
			err = cmp.Or(given(nothingToSpool, "spool-dir"), given(onlyForPlain, layerFlags...))
		}
	}
	if err != nil {
		return err
	}
	for _, r := range o.image.mounts {
		if r.RegistryStr() != c.ref.Context().RegistryStr() && o.spelled["mount-from"] == "--mount-from" {
			return fmt.Errorf(otherRegistry, r, c.ref.Context().RegistryStr())
		}
	}
	return nil
}

// severalPushes holds where the result is a list.
func (o *options) severalPushes() bool {
	return o.image.allTags || slices.ContainsFunc(o.image.tags, func(t string) bool { return !tagText().MatchString(t) })
}

// spellOut makes an argument of what would be taken for flags: "-#REF" and "-@N"
// pick an image on standard input.
func spellOut(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		if a == "--" {
			break
		}
		if strings.HasPrefix(a, "-#") || strings.HasPrefix(a, "-@") {
			out[i] = "archive:" + a
		}
	}
	return out
}

// fromStdin reports whether a SOURCE is read from standard input.
func fromStdin(spec string) bool {
	_, path, ok := strings.Cut(spec, ":")
	if !ok || strings.HasPrefix(spec, "-") {
		path = spec
	}
	return path == "-" || strings.HasPrefix(path, "-#") || strings.HasPrefix(path, "-@") || strings.HasPrefix(path, "-:")
}

// apply adds what the flags say to the library's options.
func (i *imageFlags) apply(p *pusher.Options) {
	p.MountFrom, p.NoClobber, p.DryRun = i.mounts, i.noClobber, i.dryRun
	p.Nondistributable = i.nondistributable
}

// delivered is what came of one push.
type delivered struct {
	ref    name.Reference
	report *pusher.Report
	layers *stream.Stats // nil where there was nothing to make
}

// deliveries are noted by a push that may be left behind.
type deliveries struct {
	mu     sync.Mutex
	done   []delivered
	failed *delivered
}

func (d *deliveries) add(one delivered, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failed = &one
		return
	}
	d.done = append(d.done, one)
}

// taken gives what is done, and the push that failed, which may not have come
// as far as having a report.
func (d *deliveries) taken(first name.Reference) (done []delivered, failed delivered) {
	d.mu.Lock()
	defer d.mu.Unlock()
	failed = delivered{ref: first}
	if d.failed != nil {
		failed = *d.failed
	}
	if failed.report == nil {
		failed.report = &pusher.Report{Reference: failed.ref.Name()}
	}
	return slices.Clone(d.done), failed
}

// writeDigests writes what --digest-file asks for: the digest alone, as skopeo
// and podman do, or where there are several, a line for each.
func writeDigests(file string, all []delivered) error {
	var lines []string
	for _, d := range all {
		if s := d.report.Digest.String(); !slices.Contains(lines, s) {
			lines = append(lines, s)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil { //nolint:gosec // others read it
		return &localError{"--digest-file", err}
	}
	return nil
}
