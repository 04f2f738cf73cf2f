// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

const (
	layoutFile = "oci-layout"

	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name" // written by ctr, nerdctl and buildx: a whole reference
)

// place is where the blobs of a layout lie.
type place interface {
	pusher.Content
	// document reads a small file by its name in the layout.
	document(name string) ([]byte, error)
	// stat checks that a blob is there, and of the right size. The error wraps
	// fs.ErrNotExist where it is not there.
	stat(d v1.Descriptor) error
	// String is what a human calls it.
	String() string
}

// openOCI opens an OCI image layout (image-spec v1.1, image-layout.md).
func openOCI(_ context.Context, path string, o Options) (*Images, error) {
	if fi, err := os.Stat(path); err != nil {
		return nil, bad("%w", err)
	} else if !fi.IsDir() {
		return nil, bad("%s is not a directory; an OCI image layout is one", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, bad("%w", err)
	}
	d := dir{name: path, root: root}
	closeAll := func() {
		for _, r := range append(d.links, linked{root: root}) {
			_ = r.root.Close() // it was read only
		}
	}
	for _, allowed := range o.Links {
		l, err := openLinked(allowed)
		if err != nil {
			closeAll()
			return nil, err
		}
		d.links = append(d.links, l)
	}
	i, err := layoutImages("oci:"+path, d, o)
	if err != nil {
		closeAll()
		return nil, err
	}
	i.close = closeAll
	return i, nil
}

// layoutImages are those of the layout at p.
func layoutImages(named string, p place, o Options) (*Images, error) {
	top, err := readTop(p)
	if err != nil {
		return nil, err
	}
	return &Images{
		name: named,
		open: func(ctx context.Context, sel selector) (Source, error) {
			desc, err := choose(p.String(), top, sel)
			if err != nil {
				return Source{}, err
			}
			img, err := layoutImage(ctx, p, top, desc, o)
			return Source{Image: img}, err
		},
		all: func(context.Context) (map[string]selector, error) {
			all := map[string]selector{}
			for _, d := range top.Manifests {
				tag := d.Annotations[refName]
				if t := tagOf(tag); t != "" { // skopeo writes whole references on request
					tag = t
				}
				if tag == "" {
					tag = tagOf(d.Annotations[containerdName])
				}
				if tag == "" {
					continue
				}
				if other, ok := all[tag]; ok && other.digest != d.Digest {
					return nil, bad("%s holds several images with the tag %q", p, tag)
				}
				all[tag] = selector{digest: d.Digest}
			}
			return all, nil
		},
	}, nil
}

// layoutImage checks what the chosen descriptor names, and makes it ready.
func layoutImage(ctx context.Context, p place, top *v1.IndexManifest, desc v1.Descriptor, o Options) (remote.Taggable, error) {
	if !manifest.Is(desc.MediaType) {
		return nil, bad("%s: %s is neither an image nor an index but %q", p, desc.Digest, desc.MediaType)
	}
	img, err := o.pick(ctx, &pusher.Stored{Content: p, Descriptor: desc})
	if err != nil {
		return nil, err
	}
	out, err := o.accompany(ctx, img, &layoutFriends{p: p, top: top})
	if err != nil {
		return nil, err
	}
	return out, newChecker(p, o).check(ctx, out)
}

// choose picks the descriptor that sel asks for. Several names for one digest
// are one image.
func choose(dir string, top *v1.IndexManifest, sel selector) (v1.Descriptor, error) {
	if sel.index != "" {
		n, err := strconv.Atoi(sel.index)
		if err != nil || n >= len(top.Manifests) {
			return v1.Descriptor{}, bad("%s holds %d images, there is none at @%s", dir, len(top.Manifests), sel.index)
		}
		return top.Manifests[n], nil
	}
	var found []v1.Descriptor
	for _, match := range []func(v1.Descriptor) bool{
		func(d v1.Descriptor) bool {
			if sel.digest != (v1.Hash{}) {
				return d.Digest == sel.digest
			}
			return sel.tag == "" || d.Annotations[refName] == sel.tag
		},
		func(d v1.Descriptor) bool {
			full := d.Annotations[containerdName]
			return sel.tag != "" && (sameName(full, sel.tag) || tagOf(full) == sel.tag)
		},
	} {
		for _, d := range top.Manifests {
			same := func(f v1.Descriptor) bool { return f.Digest == d.Digest }
			if match(d) && !slices.ContainsFunc(found, same) {
				found = append(found, d)
			}
		}
		if len(found) > 0 {
			break
		}
	}

	switch {
	case len(found) > 1 && sel == (selector{}) && len(images(found)) == 1:
		return images(found)[0], nil // what else is there belongs to it
	case len(found) == 1:
		return found[0], nil
	case len(top.Manifests) == 0:
		return v1.Descriptor{}, bad("%s holds no image", dir)
	case len(found) > 1:
		return v1.Descriptor{}, bad("%s holds several images, choose one with :TAG or @DIGEST: %s", dir, oneOf(names(found)))
	case sel.tag != "":
		return v1.Descriptor{}, bad("%s holds no image %q; it holds: %s", dir, sel.tag, oneOf(names(top.Manifests)))
	default:
		return v1.Descriptor{}, bad("%s holds no %s at its top; it holds: %s", dir, sel.digest, oneOf(names(top.Manifests)))
	}
}

// names lists descriptors as the user may select them.
func names(ds []v1.Descriptor) []string {
	var all []string
	for _, d := range ds {
		switch name, full := d.Annotations[refName], d.Annotations[containerdName]; {
		case full != "":
			all = append(all, fmt.Sprintf("#%s (@%s)", full, d.Digest))
		case name != "":
			all = append(all, fmt.Sprintf(":%s (@%s)", name, d.Digest))
		case d.Platform != nil:
			all = append(all, fmt.Sprintf("@%s (%s)", d.Digest, d.Platform))
		default:
			all = append(all, "@"+d.Digest.String())
		}
	}
	return all
}

// sameName reports whether both spell one reference: containerd writes out what
// docker's users leave out.
func sameName(a, b string) bool {
	if a == b {
		return true
	}
	at, aerr := name.NewTag(a)
	bt, berr := name.NewTag(b)
	return aerr == nil && berr == nil && at.Name() == bt.Name()
}

// tagOf returns the tag of a reference, "" where it has none.
func tagOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if _, tag, ok := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], ":"); ok {
		return tag
	}
	return ""
}

// images leaves out what belongs to another image: referrers, which have an
// artifact type and no name, and what has a tag made of a digest.
func images(ds []v1.Descriptor) []v1.Descriptor {
	return slices.DeleteFunc(slices.Clone(ds), func(d v1.Descriptor) bool {
		artifact := d.ArtifactType != "" && !types.MediaType(d.ArtifactType).IsConfig()
		return artifact && d.Annotations[refName] == "" || digestTag().MatchString(d.Annotations[refName])
	})
}

// readTop reads oci-layout and index.json.
func readTop(p place) (*v1.IndexManifest, error) {
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := readJSON(p, layoutFile, &marker); err != nil {
		return nil, bad("%s is not an OCI image layout: %w", p, err)
	}
	if !strings.HasPrefix(marker.Version, "1.") {
		return nil, bad("%s has the unknown layout version %q", p, marker.Version)
	}
	var top v1.IndexManifest
	if err := readJSON(p, "index.json", &top); err != nil {
		return nil, bad("%w", err)
	}
	return &top, nil
}

func readJSON(p place, name string, into any) error {
	b, err := p.document(name)
	if err != nil {
		return err
	}
	if err := manifest.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s in %s: %w", name, p, err)
	}
	return nil
}

// checker checks, before anything is sent, that a layout has all that its images
// name.
type checker struct {
	p                place
	nondistributable bool
	walker           manifest.Walker[*pusher.Stored]
}

func newChecker(p place, o Options) *checker {
	c := &checker{p: p, nondistributable: o.Nondistributable}
	c.walker.Tree = c
	return c
}

// check checks an image, what accompanies it, and all that they name.
func (c *checker) check(ctx context.Context, t remote.Taggable) error {
	return everything(t, func(s *pusher.Stored) error {
		err := c.walker.Walk(ctx, s)
		if err == nil || ctx.Err() != nil || errors.Is(err, resume.ErrSource) {
			return err
		}
		return bad("%s: %w", c.p, err)
	})
}

// Describe implements manifest.Tree.
func (c *checker) Describe(_ context.Context, s *pusher.Stored) (v1.Descriptor, bool, error) {
	return s.Descriptor, manifest.Is(s.Descriptor.MediaType), nil
}

// Enter implements manifest.Tree. Digests were parsed by v1.Hash: nothing but hex
// digits of the right number comes in, so that a path made of one cannot leave
// the layout.
func (c *checker) Enter(ctx context.Context, s *pusher.Stored, depth int) ([]*pusher.Stored, error) {
	d := s.Descriptor
	if !isEdited(s) {
		err := c.p.stat(d)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !d.MediaType.IsDistributable() && !c.nondistributable:
			return nil, nil // a foreign layer: the registry is not sent it either
		case errors.Is(err, fs.ErrNotExist) && manifest.Is(d.MediaType) && depth > 0:
			return nil, fmt.Errorf("%w; where only some platforms are there, pick them with --platform", err)
		case err != nil:
			return nil, err
		}
	}
	if !manifest.Is(d.MediaType) {
		return nil, nil
	}
	return children(ctx, s)
}

// Leave implements manifest.Tree.
func (c *checker) Leave(context.Context, *pusher.Stored, []*pusher.Stored) error { return nil }

// children are what a manifest names, in the same place.
func children(ctx context.Context, s *pusher.Stored) ([]*pusher.Stored, error) {
	_, m, err := readManifest(ctx, s)
	if err != nil {
		return nil, err
	}
	named := m.Children(s.Descriptor.MediaType)
	all := make([]*pusher.Stored, len(named))
	for i, d := range named {
		all[i] = at(s, d)
	}
	return all, nil
}

// at is another manifest or blob of the place that s is in.
func at(s *pusher.Stored, d manifest.Descriptor) *pusher.Stored {
	return &pusher.Stored{Content: s.Content, Descriptor: d.V1(), MountFrom: s.MountFrom}
}

// readManifest reads and parses a manifest.
func readManifest(ctx context.Context, s *pusher.Stored) ([]byte, *manifest.Manifest, error) {
	raw, err := s.Manifest(ctx)
	if err != nil {
		return nil, nil, kept(err)
	}
	m, err := manifest.Parse(raw, s.Descriptor.MediaType)
	if err != nil {
		return nil, nil, bad("manifest %s: %w", s.Descriptor.Digest, err)
	}
	return raw, m, nil
}

// dir is a layout in a directory. No symbolic link in it leads out of it: whoever
// made a layout could have files of the user's sent otherwise, such as the blobs
// of another store.
type dir struct {
	name  string
	root  *os.Root
	links []linked // where symbolic links may lead
}

func (d dir) String() string { return d.name }

func (d dir) document(name string) ([]byte, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = fmt.Errorf("%s is larger than %d bytes", d.path(name), maxDocument)
	}
	return b, err
}

// open opens a regular file. A named pipe does not make it wait for a writer.
func (d dir) open(name string) (*os.File, error) {
	root, name := d.place(name)
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", d.path(name)))
	}
	return f, nil
}

// path is how a human finds a file of the layout.
func (d dir) path(name string) string { return filepath.Join(d.name, filepath.FromSlash(name)) }

func (d dir) stat(desc v1.Descriptor) error {
	_, err := d.regular(desc)
	return err
}

// regular looks at the file of a blob.
func (d dir) regular(desc v1.Descriptor) (fs.FileInfo, error) {
	file := blobName(desc.Digest)
	root, at := d.place(file)
	fi, err := root.Lstat(at) // a link could lead to any blob
	switch {
	case err != nil:
		return nil, bad("blob %s: %s: %w", desc.Digest, d.name, err)
	case !fi.Mode().IsRegular():
		return nil, bad("blob %s: %s is not a regular file", desc.Digest, d.path(file))
	case fi.Size() != desc.Size:
		return nil, bad("blob %s: %s has %d bytes, want %d", desc.Digest, d.path(file), fi.Size(), desc.Size)
	}
	return fi, nil
}

// openSame opens the file that fi was of: a link to another file may have taken
// its place since.
func (d dir) openSame(file string, fi fs.FileInfo) (*os.File, error) {
	f, err := d.open(file)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(fi, now) {
		err = fmt.Errorf("%s was replaced while it was read", d.path(file))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Manifest implements pusher.Content.
func (d dir) Manifest(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	f, err := d.Open(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, min(desc.Size, maxDocument))
	_, err = io.ReadFull(f, b)
	return b, err
}

// Open implements pusher.Content.
func (d dir) Open(_ context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	fi, err := d.regular(desc)
	if err != nil {
		return nil, err
	}
	f, err := d.openSame(blobName(desc.Digest), fi)
	if err != nil {
		return nil, bad("blob %s: %w", desc.Digest, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
