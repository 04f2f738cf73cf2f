// SPDX-License-Identifier: Apache-2.0

// Package source opens the image that a SOURCE argument names. It checks,
// before anything is sent, that all the image needs is there.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// Supported names the spellings that Open takes, for messages.
const Supported = "docker://REF, oci:DIR[:TAG|@DIGEST], oci-archive:PATH[:TAG|@DIGEST], docker-archive:PATH[#REF|@INDEX], - or a path that begins with /, ./ or ../"

// ErrSpec says that the argument can be no source at all: the call is wrong,
// whatever is on the disk. All other errors of Open are resume.ErrSource, or
// those of reading from a registry.
var ErrSpec = errors.New("not a source")

// maxDocument bounds what is read into memory: manifests, indexes, configs.
const maxDocument = manifest.MaxSize

// Options say which part of a source is wanted. The zero value is all of it.
type Options struct {
	// Platforms picks from an index: one platform gives its image, several an
	// index of them.
	Platforms []v1.Platform
	// Referrers takes manifests along whose subject is among those pushed;
	// DigestTags what has a tag made of such a digest, as cosign does.
	Referrers, DigestTags bool
	// PreserveDigests refuses a source that has no manifest of its own.
	PreserveDigests bool
	// Nondistributable needs the layers too that are said to be elsewhere.
	Nondistributable bool

	// Links are directories into which the symbolic links of an OCI layout may
	// lead. Without them, a link to a blob is refused: who made the layout could
	// have any file of this machine published.
	Links []string

	// Stdin is what "-" reads.
	Stdin io.Reader
	// Spools are directories for copies of what cannot be read twice. The first
	// that can be written to gets a directory of rpush's own; it is created if it
	// is missing. Without Spools, copies go to os.TempDir.
	Spools []string
	// Registry reads what docker:// names.
	Registry *pusher.Pusher

	room int64 // what may be copied to one of Spools; 0 is half of what is free
}

// Source is an image, or an index of images, ready to be pushed.
type Source struct {
	// Name is what the user called it, without the part that selects one image.
	Name string
	// Image is a *pusher.Stored, or a *pusher.Bundle where something goes along.
	// It is nil where Plain is not.
	Image remote.Taggable
	// Plain is an image that is no manifest yet: package stream makes it.
	Plain *saved.Plain
}

// Images is what a source holds. It must be closed when nothing of it is being
// read any more.
type Images struct {
	o    Options
	name string
	// open gives what a selector picks, all the selectors by tag.
	open  func(context.Context, selector) (Source, error)
	all   func(context.Context) (map[string]selector, error)
	close func()
	sel   selector
}

// notBuilt lists the transports of containers-transports(5) that are known, so
// that naming one is told apart from a typing error.
var notBuilt = []string{"dir", "docker-daemon", "ostree", "sif"}

// transports are those that read a path.
var transports = map[string]func(context.Context, string, Options) (*Images, error){
	"oci":            openOCI,
	"oci-archive":    openOCIArchive,
	"docker-archive": openDockerArchive,
	anyArchive:       openAnyArchive,
}

// anyArchive is recognised by its content. It has no name outside.
const anyArchive = "archive"

// Open opens what spec names: see Supported. A path without a transport is
// recognised by its content.
//
// The error is ErrSpec, resume.ErrSource, a *resume.Error of a registry, or the
// cause of a done ctx, which bounds reading from a registry as well.
func Open(ctx context.Context, spec string, o Options) (*Images, error) {
	transport, rest, ok := strings.Cut(spec, ":")
	switch {
	case isPath(spec):
		return openPath(ctx, spec, o)
	case spec == "-", strings.HasPrefix(spec, "-#"), strings.HasPrefix(spec, "-@"):
		return openAt(ctx, anyArchive, spec, o)
	case ok && transport == "containers-storage":
		return nil, bad("containers-storage: is podman's to read; use: podman save --format oci-archive %s | rpush - REF", rest)
	case ok && slices.Contains(notBuilt, transport):
		return nil, bad("%s: is not supported; supported: %s", transport, Supported)
	case strings.HasPrefix(spec, anyArchive+":-"):
		return openAt(ctx, anyArchive, rest, o)
	case transport == "docker" && strings.HasPrefix(rest, "//"):
		return openRegistry(ctx, rest[2:], o)
	case !ok || transports[transport] == nil || transport == anyArchive:
		return nil, specError("%q; supported: %s", spec, Supported)
	case rest == "":
		return nil, specError("%q names no path; supported: %s", spec, Supported)
	}
	return openAt(ctx, transport, rest, o)
}

// Spelled reports whether spec is spelled as only a source is, be it one or not.
func Spelled(spec string) bool {
	transport, rest, ok := strings.Cut(spec, ":")
	if transport == anyArchive {
		return strings.HasPrefix(rest, stdin)
	}
	return spec == stdin || isPath(spec) ||
		ok && (transports[transport] != nil || transport == "docker-daemon" || transport == "containers-storage")
}

func openAt(ctx context.Context, transport, rest string, o Options) (*Images, error) {
	path, sel, err := split(rest)
	if err != nil {
		return nil, err
	}
	// What can be seen to be wrong is said before anything is read.
	if transport == "docker-archive" {
		if sel.digest != (v1.Hash{}) {
			return nil, specError("docker-archive:%s cannot be chosen from by digest; use #REF", path)
		}
		if _, err := name.NewTag(sel.tag); sel.tag != "" && err != nil {
			return nil, specError("docker-archive:%s: %w", path, err)
		}
	}
	i, err := transports[transport](ctx, path, o)
	if err != nil {
		return nil, err
	}
	i.o, i.sel = o, sel
	return i, nil
}

// Image gives the one image that the spec names.
func (i *Images) Image(ctx context.Context) (Source, error) { return i.image(ctx, i.sel) }

// Tags gives the tags of all images of the source that have one. A spec that
// picks an image is an error.
func (i *Images) Tags(ctx context.Context) (map[string]func(context.Context) (Source, error), error) {
	if i.sel != (selector{}) {
		return nil, specError("all tags are asked for, and one image is picked")
	}
	all, err := i.all(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]func(context.Context) (Source, error){}
	for tag, sel := range all {
		out[tag] = func(ctx context.Context) (Source, error) { return i.image(ctx, sel) }
	}
	if len(out) == 0 {
		return nil, bad("%s holds nothing that has a tag", i.name)
	}
	return out, nil
}

func (i *Images) image(ctx context.Context, sel selector) (Source, error) {
	s, err := i.open(ctx, sel)
	s.Name = i.name
	return s, err
}

// Close lets go of files and connections.
func (i *Images) Close() {
	if i.close != nil {
		i.close()
	}
}

// isPath holds for what can only be a path, never "transport:...".
func isPath(s string) bool {
	for _, p := range []string{"/", "./", "../"} {
		if strings.HasPrefix(s, p) || strings.HasPrefix(s, filepath.FromSlash(p)) {
			return true
		}
	}
	return filepath.IsAbs(s) // C:\images, \\host\share
}

func openPath(ctx context.Context, spec string, o Options) (*Images, error) {
	path, _, err := split(spec)
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, bad("%w", err)
	case !fi.IsDir():
		return openAt(ctx, anyArchive, spec, o)
	}
	if _, err := os.Stat(filepath.Join(path, layoutFile)); err != nil {
		return nil, bad("%s is not an OCI image layout: %w", path, err)
	}
	return openAt(ctx, "oci", spec, o)
}

// selector picks one image of several. The zero value picks the only one.
type selector struct {
	tag    string
	digest v1.Hash
	index  string // the decimal position in an archive
}

// split takes PATH[:TAG|#REF|@DIGEST|@INDEX] apart. Paths and tags may both
// contain colons, so what exists decides: the longest prefix that is there is
// the path.
func split(s string) (path string, sel selector, err error) {
	if exists(s) {
		return s, sel, nil
	}
	for _, at := range []string{"@sha256:", "@sha512:"} {
		i := strings.LastIndex(s, at)
		if i < 0 {
			continue
		}
		if sel.digest, err = v1.NewHash(s[i+1:]); err != nil {
			return "", sel, specError("%q: malformed digest: %w", s, err)
		}
		if i == 0 {
			return "", sel, specError("%q names no path", s)
		}
		return s[:i], sel, nil
	}
	if at := strings.LastIndexByte(s, '@'); at > 0 && exists(strings.TrimSuffix(s[:at], ":")) {
		if _, err := strconv.ParseUint(s[at+1:], 10, 31); err != nil {
			return "", sel, specError("%q: %q is neither a digest nor the number of an image", s, s[at+1:])
		}
		sel.index = s[at+1:]
		return strings.TrimSuffix(s[:at], ":"), sel, nil
	}
	if hash := strings.LastIndexByte(s, '#'); hash > 0 {
		if sel.tag = s[hash+1:]; sel.tag == "" {
			return "", sel, specError("%q: nothing follows the #", s)
		}
		return s[:hash], sel, nil
	}

	drive := 0
	if runtime.GOOS == "windows" {
		drive = len(filepath.VolumeName(s))
	}
	last := strings.LastIndexByte(s, ':')
	for i := last; i > drive; i = strings.LastIndexByte(s[:i], ':') {
		if exists(s[:i]) {
			last = i
			break
		}
	}
	if last <= drive { // the colon of C:, or none
		return s, sel, nil
	}
	if sel.tag = s[last+1:]; sel.tag == "" {
		return "", sel, specError("%q: the tag after the colon is empty", s)
	}
	return s[:last], sel, nil
}

func exists(path string) bool {
	if path == stdin {
		return true
	}
	_, err := os.Stat(path)
	return err == nil
}

// bad returns a resume.ErrSource.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", resume.ErrSource, fmt.Errorf(format, args...))
}

func specError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrSpec, fmt.Errorf(format, args...))
}

// oneOf lists the names that can be chosen from, at most 20 of them.
func oneOf(names []string) string {
	const most = 20
	if len(names) == 0 {
		return "none"
	}
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}
