package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	layoutFile = "oci-layout"

	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name" // written by ctr, nerdctl and buildx: a whole reference

	// maxDepth bounds indexes within indexes. Real images have one or two levels.
	maxDepth = 8
)

// openOCI opens an OCI image layout (image-spec v1.1, image-layout.md).
func openOCI(ctx context.Context, dir string, sel selector) (Source, error) {
	c := checker{ctx: ctx, dir: dir, seen: map[visit]bool{}}
	top, err := c.readTop()
	if err != nil {
		return Source{}, err
	}
	desc, err := choose(dir, top, sel)
	if err != nil {
		return Source{}, err
	}
	if !desc.MediaType.IsImage() && !desc.MediaType.IsIndex() {
		return Source{}, bad("%s: %s is neither an image nor an index but %q", dir, desc.Digest, desc.MediaType)
	}
	if err := c.check(desc, 0); err != nil {
		return Source{}, err
	}

	root, err := layout.Path(dir).ImageIndex()
	if err != nil {
		return Source{}, bad("%w", err)
	}
	src := Source{Name: "oci:" + dir}
	if desc.MediaType.IsIndex() {
		src.Image, err = root.ImageIndex(desc.Digest)
	} else {
		src.Image, err = root.Image(desc.Digest)
	}
	if err != nil {
		return Source{}, bad("%s: %w", dir, err)
	}
	return src, nil
}

// choose picks the descriptor that sel asks for. Several names for one digest
// are one image.
func choose(dir string, top *v1.IndexManifest, sel selector) (v1.Descriptor, error) {
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
			return sel.tag != "" && (full == sel.tag || tagOf(full) == sel.tag)
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
		switch name, tag := d.Annotations[refName], tagOf(d.Annotations[containerdName]); {
		case name != "":
			all = append(all, fmt.Sprintf(":%s (@%s)", name, d.Digest))
		case tag != "":
			all = append(all, fmt.Sprintf(":%s (@%s)", tag, d.Digest))
		case d.Platform != nil:
			all = append(all, fmt.Sprintf("@%s (%s)", d.Digest, d.Platform))
		default:
			all = append(all, "@"+d.Digest.String())
		}
	}
	return all
}

// tagOf returns the tag of a reference, "" where it has none.
func tagOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if _, tag, ok := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], ":"); ok {
		return tag
	}
	return ""
}

// checker looks at every file of a layout that an image names.
type checker struct {
	ctx  context.Context // of one Open call
	dir  string
	seen map[visit]bool
}

// visit is what makes a check of a blob different from another.
type visit struct {
	digest    v1.Hash
	size      int64
	mediaType types.MediaType
}

// readTop reads index.json.
func (c *checker) readTop() (*v1.IndexManifest, error) {
	if fi, err := os.Stat(c.dir); err != nil {
		return nil, bad("%w", err)
	} else if !fi.IsDir() {
		return nil, bad("%s is not a directory; an OCI image layout is one", c.dir)
	}
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := c.readJSON(layoutFile, &marker); err != nil {
		return nil, bad("%s is not an OCI image layout: %w", c.dir, err)
	}
	if !strings.HasPrefix(marker.Version, "1.") {
		return nil, bad("%s has the unknown layout version %q", c.dir, marker.Version)
	}
	var top v1.IndexManifest
	if err := c.readJSON("index.json", &top); err != nil {
		return nil, bad("%w", err)
	}
	return &top, nil
}

func (c *checker) readJSON(name string, into any) error {
	file := filepath.Join(c.dir, name)
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return err
	}
	if len(b) > maxDocument {
		return fmt.Errorf("%s is larger than %d bytes", file, maxDocument)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// check verifies the blob of d and all that it names in turn.
func (c *checker) check(d v1.Descriptor, depth int) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	at := visit{d.Digest, d.Size, d.MediaType}
	if c.seen[at] {
		return nil
	}
	c.seen[at] = true

	isManifest := d.MediaType.IsImage() || d.MediaType.IsIndex()
	file, err := c.stat(d)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !d.MediaType.IsDistributable():
		return nil // a foreign layer: the registry is not sent it either
	case err != nil:
		return err
	case !isManifest:
		return nil
	case depth >= maxDepth:
		return bad("%s: indexes nested deeper than %d at %s", c.dir, maxDepth, d.Digest)
	case d.Size > maxDocument:
		return bad("manifest %s: %s has %d bytes, more than %d", d.Digest, file, d.Size, maxDocument)
	}

	children, err := readManifest(file, d)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := c.check(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// stat checks that the blob's file is there, and of the right size, and
// returns its path. The digest was parsed by v1.Hash: nothing but hex digits
// of the right number comes in, so the path cannot leave the layout.
func (c *checker) stat(d v1.Descriptor) (string, error) {
	if d.Digest == (v1.Hash{}) {
		return "", bad("%s: a descriptor of type %q has no digest", c.dir, d.MediaType)
	}
	if d.Size < 0 {
		return "", bad("blob %s has the size %d in its descriptor", d.Digest, d.Size)
	}
	file := filepath.Join(c.dir, "blobs", d.Digest.Algorithm, d.Digest.Hex)
	fi, err := os.Lstat(file) // links are refused when the blob is read
	switch {
	case err != nil:
		return "", bad("blob %s: %w", d.Digest, err)
	case !fi.Mode().IsRegular():
		return "", bad("blob %s: %s is not a regular file", d.Digest, file)
	case fi.Size() != d.Size:
		return "", bad("blob %s: %s has %d bytes, want %d", d.Digest, file, fi.Size(), d.Size)
	}
	return file, nil
}

// readManifest reads and verifies a manifest and returns what it names.
func readManifest(file string, d v1.Descriptor) ([]v1.Descriptor, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, bad("manifest %s: %w", d.Digest, err)
	}
	hash, err := v1.Hasher(d.Digest.Algorithm)
	if err != nil {
		return nil, bad("manifest %s: %w", d.Digest, err)
	}
	hash.Write(b)
	if got := fmt.Sprintf("%x", hash.Sum(nil)); got != d.Digest.Hex {
		return nil, bad("manifest %s: %s has the digest %s:%s", d.Digest, file, d.Digest.Algorithm, got)
	}

	// One document may be valid as both kinds; its own word must agree with the
	// descriptor's, or the check would not be about what is pushed.
	var self struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &self); err != nil {
		return nil, bad("manifest %s: %s: %w", d.Digest, file, err)
	}
	if self.MediaType != "" && self.MediaType != d.MediaType {
		return nil, bad("manifest %s: %s says it is %q, its descriptor %q", d.Digest, file, self.MediaType, d.MediaType)
	}

	if d.MediaType.IsIndex() {
		m, err := v1.ParseIndexManifest(bytes.NewReader(b))
		if err != nil {
			return nil, bad("index %s: %s: %w", d.Digest, file, err)
		}
		return m.Manifests, nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, bad("manifest %s: %s: %w", d.Digest, file, err)
	}
	return append([]v1.Descriptor{m.Config}, m.Layers...), nil
}
