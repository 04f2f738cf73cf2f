// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/internal/source"
	"github.com/rpush-go/rpush/pusher"
)

// imageFlags say what of the source goes where.
type imageFlags struct {
	tags             []string
	allTags          bool
	platforms        []string
	referrers        bool
	digestTags       bool
	preserveDigests  bool
	noClobber        bool
	mountFrom        []string
	nondistributable bool
	dryRun           bool
	digestFile       string
	spoolDir         string
	layoutLinks      []string
	limitRate        rate
	retryTimes       int
	noContentTrust   bool

	mounts  []name.Repository // parsed
	picks   []v1.Platform     // parsed
	spelled func(flag string) string
}

func (o *options) imageFlags() flagGroup {
	f, i := newGroup("Image"), &o.image
	f.StringSliceVarP(&i.tags, "tag", "t", nil, "also push as `TAG`, which may be a full reference")
	f.BoolVarP(&i.allTags, "all-tags", "a", false, "push all tagged images; REFERENCE has no tag")
	f.StringSliceVar(&i.platforms, "platform", nil, "of an index, take only `OS/ARCH`")
	f.BoolVar(&i.referrers, "referrers", false, "also push referrers (signatures, SBOMs)")
	f.BoolVar(&i.digestTags, "digest-tags", false, "also push images tagged by its digest (cosign)")
	f.BoolVar(&i.preserveDigests, "preserve-digests", false, "fail if the digest cannot be preserved")
	f.BoolVar(&i.noClobber, "no-clobber", false, "fail if the tag names another image")
	f.StringSliceVar(&i.mountFrom, "mount-from", nil, "let the registry mount blobs from `REPO`")
	f.BoolVar(&i.dryRun, "dry-run", false, "show what would be sent")
	f.StringVar(&i.digestFile, "digest-file", "", "write the digest to `FILE`")
	o.layers.flags(f.FlagSet)
	f.StringVar(&i.spoolDir, "spool-dir", "", "keep copies and compressed layers in `DIR`")
	f.StringSliceVar(&i.layoutLinks, "layout-links", nil, "let links of an OCI layout lead into `DIR`")
	return f
}

func (o *options) signInFlags() flagGroup {
	f := newGroup("Credentials (override docker login)")
	f.brief = true
	o.to.signInFlags(f.FlagSet)
	return f
}

func (o *options) sourceFlags() flagGroup {
	f := newGroup("The same for the registry that SOURCE names")
	f.brief = true
	o.from.prefix = "src-"
	o.from.signInFlags(f.FlagSet)
	o.from.tlsFlags(f.FlagSet)
	return f
}

// otherFlags are there because docker's users type them.
func (o *options) otherFlags() flagGroup {
	f := newGroup("As crane and docker push have them")
	f.brief = true
	f.BoolVar(&o.image.nondistributable, "allow-nondistributable-artifacts", false, "push foreign layers too")
	f.BoolVar(&o.image.noContentTrust, "disable-content-trust", true, "=false is refused: sign with cosign")
	o.image.spelled = func(flag string) string { return o.spelled[flag] }
	return f
}

// alias gives flags the names that skopeo has for them.
func alias(_ *pflag.FlagSet, flag string) pflag.NormalizedName {
	flag = strings.TrimPrefix(flag, "dest-")
	if flag == "digestfile" {
		flag = "digest-file"
	}
	return pflag.NormalizedName(flag)
}

func (i *imageFlags) contradictions() []contradiction {
	return []contradiction{
		{i.allTags && len(i.tags) > 0, "all-tags", "tag"},
		{i.preserveDigests && len(i.platforms) > 1, "preserve-digests", "platform"},
		{i.dryRun && i.digestFile != "", "dry-run", "digest-file"},
	}
}

func (i *imageFlags) check() error {
	if !i.noContentTrust {
		return errors.New(contentTrust)
	}
	if i.retryTimes < -1 {
		return fmt.Errorf("%s is %d, a negative number", i.spelled("retry-times"), i.retryTimes)
	}
	i.mounts, i.picks = nil, nil
	for _, m := range i.mountFrom {
		r, err := name.NewRepository(strings.TrimPrefix(m, "docker://"), name.WeakValidation)
		if err != nil {
			return fmt.Errorf(badRepository, m)
		}
		i.mounts = append(i.mounts, r)
	}
	for _, p := range i.platforms {
		if p == "all" && len(i.platforms) == 1 {
			return nil
		}
		pick, err := v1.ParsePlatform(p)
		if err != nil || pick.OS == "" || pick.Architecture == "" {
			return fmt.Errorf(badPlatform, p)
		}
		if v := pick.Architecture + "/" + pick.Variant; v == "arm64/v8" || v == "amd64/v1" {
			pick.Variant = "" // the least there is, and mostly left out
		}
		i.picks = append(i.picks, *pick)
	}
	return nil
}

// trusted refuses what docker would not push unsigned: a promise that is not
// kept must not be passed over.
func (o *options) trusted(env map[string]string) error {
	on, err := strconv.ParseBool(env["DOCKER_CONTENT_TRUST"])
	if err == nil && on && o.spelled["disable-content-trust"] == "" {
		return errors.New(contentTrust)
	}
	return nil
}

// source are the options for opening SOURCE.
func (o *options) source(p *pusher.Pusher) source.Options {
	return source.Options{
		Platforms:        o.image.picks,
		Referrers:        o.image.referrers,
		DigestTags:       o.image.digestTags,
		PreserveDigests:  o.image.preserveDigests,
		Nondistributable: o.image.nondistributable,
		Spools:           o.spools(),
		Links:            o.image.layoutLinks,
		Registry:         p,
	}
}

// spools are the directories for what waits on disk, the best first. The last
// one is for users without a home, or with one that cannot be written to.
func (o *options) spools() (all []string) {
	if o.image.spoolDir != "" {
		return []string{o.image.spoolDir}
	}
	if dir := o.cache(); dir != "" {
		all = append(all, dir)
	}
	// Another user may have taken the name.
	last := filepath.Join(largeTemp(), fmt.Sprintf("rpush-%d", os.Getuid()))
	if err := owndir.Check(last); err == nil || errors.Is(err, fs.ErrNotExist) || len(all) == 0 {
		all = append(all, last)
	}
	return all
}

// rate is a number of bytes per second.
type rate int64

var rateText = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^([0-9]+(?:\.[0-9]+)?)([kmgt]?)(i?b|)(?:/s)?$`)
})

// Set takes 500K, 1.5MiB, 20MB/s: K, M, G and T are powers of 1024, KB and the
// like of 1000.
func (r *rate) Set(s string) error {
	m := rateText().FindStringSubmatch(s)
	if m == nil {
		return errors.New("a rate is a number of bytes, such as 500K or 20M")
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return err
	}
	base := 1024.0
	if strings.EqualFold(m[3], "b") {
		base = 1000
	}
	n *= math.Pow(base, float64(strings.Index("kmgt", strings.ToLower(m[2]))+1)*float64(min(len(m[2]), 1)))
	const least, most = 1 << 10, 1 << 50
	if n != 0 && (n < least || n > most) {
		return fmt.Errorf("a rate is 0, for no limit, or at least %d bytes a second", least)
	}
	*r = rate(n)
	return nil
}

func (r *rate) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*r), 10)
}

// Type names the value in a help text.
func (r *rate) Type() string { return "RATE" }
