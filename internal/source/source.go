// Package source opens the image that a SOURCE argument names. It checks,
// before anything is sent, that all the image needs is there.
package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/resume"
)

// Supported names the spellings that Open takes, for messages.
const Supported = "oci:DIR[:TAG|@DIGEST], docker-archive:PATH[:REF], or a path that begins with /, ./ or ../"

// ErrSpec says that the argument can be no source at all: the call is wrong,
// whatever is on the disk. All other errors of Open are resume.ErrSource.
var ErrSpec = errors.New("not a source")

// maxDocument bounds what is read into memory: manifests, indexes, configs.
// 4 MiB is what registries accept (distribution-spec v1.1, "Pushing manifests").
const maxDocument = 4 << 20

// Source is an image, or an index of images, ready to be pushed.
type Source struct {
	// Name is what the user called it, without the part that selects one image.
	Name string
	// Image is a v1.Image or a v1.ImageIndex.
	Image remote.Taggable
}

// notBuilt lists the transports of containers-transports(5) that are known, so
// that naming one is told apart from a typing error.
var notBuilt = []string{"dir", "docker", "docker-daemon", "oci-archive", "ostree", "sif"}

// Open opens what spec names: see Supported. A path without a transport is
// recognised by its content.
//
// Every blob is checked to be there and to have the size its descriptor says;
// manifests are hashed, layers are not: the registry does that. The error is
// ErrSpec, resume.ErrSource, or the cause of a done ctx.
func Open(ctx context.Context, spec string) (Source, error) {
	transport, rest, ok := strings.Cut(spec, ":")
	switch {
	case isPath(spec):
		return openPath(ctx, spec)
	case spec == "-":
		return Source{}, bad("reading from standard input is not supported yet; supported: %s", Supported)
	case ok && transport == "containers-storage":
		return Source{}, bad("containers-storage: is podman's to read; use: podman save --format oci-archive %s | rpush - REF", rest)
	case ok && slices.Contains(notBuilt, transport):
		return Source{}, bad("%s: is not supported yet; supported: %s", transport, Supported)
	case !ok || transport != "oci" && transport != "docker-archive":
		return Source{}, specError("%q; supported: %s", spec, Supported)
	case rest == "":
		return Source{}, specError("%q names no path; supported: %s", spec, Supported)
	}

	path, sel, err := split(rest)
	if err != nil {
		return Source{}, err
	}
	if transport == "oci" {
		return openOCI(ctx, path, sel)
	}
	return openDockerArchive(ctx, path, sel)
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

func openPath(ctx context.Context, spec string) (Source, error) {
	path, sel, err := split(spec)
	if err != nil {
		return Source{}, err
	}
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return Source{}, bad("%w", err)
	case fi.Mode().IsRegular():
		return openDockerArchive(ctx, path, sel)
	case !fi.IsDir():
		return Source{}, bad("%s is neither a directory nor a regular file", path)
	}
	if _, err := os.Stat(filepath.Join(path, layoutFile)); err != nil {
		return Source{}, bad("%s is not an OCI image layout: %w", path, err)
	}
	return openOCI(ctx, path, sel)
}

// selector picks one image of several. The zero value picks the only one.
type selector struct {
	tag    string
	digest v1.Hash
}

// split takes PATH[:TAG|@DIGEST] apart. Paths and tags may both contain
// colons, so what exists decides: the longest prefix that is there is the path.
func split(s string) (path string, sel selector, err error) {
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

	if exists(s) {
		return s, sel, nil
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
