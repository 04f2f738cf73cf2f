package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	// maxEntries bounds the directory of an archive that is held in memory.
	maxEntries = 1 << 20
	// maxLinks bounds a chain of links within an archive.
	maxLinks = 16
)

// openDockerArchive opens what `docker save` and `podman save` write.
func openDockerArchive(ctx context.Context, file string, sel selector) (Source, error) {
	if sel.digest != (v1.Hash{}) {
		return Source{}, specError("docker-archive:%s cannot be chosen from by digest; use :REF", file)
	}
	var tag *name.Tag
	if sel.tag != "" {
		t, err := name.NewTag(sel.tag)
		if err != nil {
			return Source{}, specError("docker-archive:%s: %w", file, err)
		}
		tag = &t
	}

	a, err := scan(ctx, file)
	if err != nil {
		return Source{}, err
	}
	desc, err := a.choose(tag)
	if err != nil {
		return Source{}, err
	}
	config, ok := a.find(desc.Config)
	if !ok {
		return Source{}, bad("%s: the config %q is missing", file, desc.Config)
	}
	if config.size > maxDocument {
		return Source{}, bad("%s: the config %q has %d bytes, more than %d", file, desc.Config, config.size, maxDocument)
	}

	img, err := tarball.ImageFromPath(file, tag)
	if err != nil {
		return Source{}, bad("%s: %w", file, err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return Source{}, bad("%s: the config %q: %w", file, desc.Config, err)
	}
	if got, want := len(desc.Layers), len(cfg.RootFS.DiffIDs); got != want {
		return Source{}, bad("%s has %d layers, its config %q names %d", file, got, desc.Config, want)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != len(desc.Layers) {
		return Source{}, bad("%s: reading its layers: %d of %d, %w", file, len(layers), len(desc.Layers), err)
	}
	for i, layer := range desc.Layers {
		if _, ok := a.find(layer); ok {
			// The archive gives no digest of what will be sent, only this one of
			// what is in it: nobody else can notice damage.
			if err := verifyLayer(ctx, layers[i], cfg.RootFS.DiffIDs[i]); err != nil {
				return Source{}, bad("%s: layer %d of %d, %q: %w", file, i+1, len(desc.Layers), layer, err)
			}
			continue
		}
		if foreign, ok := desc.LayerSources[cfg.RootFS.DiffIDs[i]]; ok && !foreign.MediaType.IsDistributable() {
			continue
		}
		return Source{}, bad("%s: layer %d of %d, %q, is missing", file, i+1, len(desc.Layers), layer)
	}
	return Source{Name: "docker-archive:" + file, Image: img}, nil
}

// verifyLayer compares the digest of a layer's uncompressed bytes.
func verifyLayer(ctx context.Context, l v1.Layer, want v1.Hash) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	h, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch _, err := io.CopyN(h, r, 4<<20); {
		case errors.Is(err, io.EOF):
			if got := fmt.Sprintf("%x", h.Sum(nil)); got != want.Hex {
				return fmt.Errorf("it is damaged: its digest is %s:%s, the config says %s", want.Algorithm, got, want)
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// archive is the directory of a tar file.
type archive struct {
	file     string
	entries  map[string]entry // by cleaned name
	manifest tarball.Manifest
}

type entry struct {
	size int64
	link string // the cleaned name linked to, if any
}

// scan reads all headers of the archive, and so finds out too whether it was
// cut short, and its manifest.json.
func scan(ctx context.Context, file string) (*archive, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, bad("%w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, bad("%w", err)
	} else if !fi.Mode().IsRegular() {
		return nil, bad("%s is not a regular file", file)
	}
	magic, _ := bufio.NewReader(f).Peek(6)
	if kind := compression(magic); kind != "" {
		return nil, bad("%s is compressed with %s, which is not supported yet; decompress it first", file, kind)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, bad("%w", err)
	}

	a := &archive{file: file, entries: map[string]entry{}}
	for tr := tar.NewReader(f); ; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) && len(a.entries) == 0 {
			return nil, bad("%s is not a tar archive", file)
		}
		if err != nil {
			return nil, bad("%s: %w", file, err)
		}
		if len(a.entries) == maxEntries {
			return nil, bad("%s has more than %d entries", file, maxEntries)
		}
		clean := path.Clean(h.Name)
		if _, ok := a.entries[clean]; ok {
			continue // readers take the first
		}
		e := entry{size: h.Size}
		if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
			e.link = path.Join(path.Dir(clean), path.Clean(h.Linkname))
		}
		a.entries[clean] = e
		if clean == "manifest.json" {
			if a.manifest, err = readArchiveManifest(tr, h.Size); err != nil {
				return nil, bad("%s: manifest.json: %w", file, err)
			}
		}
	}

	if len(a.manifest) > 0 {
		return a, nil
	}
	if _, ok := a.entries[layoutFile]; ok {
		return nil, bad("%s is an OCI archive, which is not supported yet; unpack it and name the directory: oci:DIR", file)
	}
	return nil, bad("%s is no docker archive: it has no manifest.json that names an image", file)
}

func readArchiveManifest(r io.Reader, size int64) (m tarball.Manifest, err error) {
	if size > maxDocument {
		return nil, fmt.Errorf("%d bytes, more than %d", size, maxDocument)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(b, &m)
}

// find looks a name up, through links.
func (a *archive) find(name string) (entry, bool) {
	name = path.Clean(name)
	for range maxLinks {
		e, ok := a.entries[name]
		if !ok || e.link == "" {
			return e, ok
		}
		name = e.link
	}
	return entry{}, false
}

// choose picks the image tagged tag, or the only one.
func (a *archive) choose(tag *name.Tag) (*tarball.Descriptor, error) {
	if tag == nil {
		if len(a.manifest) == 1 {
			return &a.manifest[0], nil
		}
		return nil, bad("%s holds several images, choose one with :REF: %s", a.file, oneOf(a.names()))
	}
	for i, d := range a.manifest {
		if slices.ContainsFunc(d.RepoTags, func(s string) bool {
			t, err := name.NewTag(s)
			return err == nil && t.Name() == tag.Name()
		}) {
			return &a.manifest[i], nil
		}
	}
	return nil, bad("%s holds no image %q; it holds: %s", a.file, tag, oneOf(a.names()))
}

func (a *archive) names() []string {
	var all []string
	for _, d := range a.manifest {
		if len(d.RepoTags) == 0 {
			all = append(all, "an image without a name, with the config "+d.Config)
		}
		all = append(all, d.RepoTags...)
	}
	return all
}

// compression names the format that the first bytes of a file belong to.
func compression(magic []byte) string {
	for _, f := range []struct{ name, magic string }{
		{"gzip", "\x1f\x8b"},
		{"zstd", "\x28\xb5\x2f\xfd"},
		{"xz", "\xfd7zXZ\x00"},
		{"bzip2", "BZh"},
	} {
		if bytes.HasPrefix(magic, []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}
