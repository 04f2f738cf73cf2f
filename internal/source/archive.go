// SPDX-License-Identifier: Apache-2.0

package source

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/tempfile"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

const (
	// maxEntries, maxNames and maxLinks bound the directory of an archive, which
	// is held in memory.
	maxEntries = 1 << 15
	maxNames   = 4 << 20 // bytes of all names and links
	maxLinks   = 16      // in a chain

	stdin = "-"
)

// archive is a tar file of which any part can be read at any time. Nothing of
// it is unpacked: names and links lead to its own entries or nowhere.
type archive struct {
	name string
	f    *os.File
	size int64

	entries map[string]entry // by cleaned name
	copied  *tempfile.File   // holds f, if it had to be copied
}

type entry struct {
	offset, size int64
	link         string // the cleaned name linked to, if any
}

// openArchive opens file, or standard input. What cannot be read at any place,
// or is compressed, is copied first, to a file that nobody else can see.
func openArchive(ctx context.Context, file string, o Options) (*archive, error) {
	a := &archive{name: file, entries: map[string]entry{}}
	var from io.Reader
	if file == stdin {
		a.name = "standard input"
		if from = o.Stdin; from == nil {
			return nil, bad("there is no standard input")
		}
	} else {
		f, err := os.Open(file)
		if err != nil {
			return nil, bad("%w", err)
		}
		a.f, from = f, f
	}
	if err := a.prepare(ctx, from, o); err != nil {
		a.close()
		return nil, err
	}
	if err := a.scan(ctx); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archive) close() {
	if a.f != nil {
		a.f.Close()
	}
	if a.copied != nil {
		_ = a.copied.Close()
	}
}

// prepare sees to it that f is a plain tar file.
func (a *archive) prepare(ctx context.Context, from io.Reader, o Options) error {
	if a.f != nil {
		fi, err := a.f.Stat()
		if err != nil {
			return bad("%w", err)
		}
		if fi.IsDir() {
			return bad("%s is a directory, not a regular file", a.name)
		}
		magic := make([]byte, 6)
		n, err := a.f.ReadAt(magic, 0)
		if fi.Mode().IsRegular() && (err == nil || errors.Is(err, io.EOF)) && saved.Compression(magic[:n]) == "" {
			a.size = fi.Size()
			return nil
		}
	}
	plain, err := saved.Decompress(saved.Cancellable(ctx, from))
	if err != nil {
		return a.failed(ctx, err)
	}
	defer plain.Close()
	to, file, err := newCopy(o)
	if err != nil {
		return bad("%s has to be copied to be read: %w", a.name, err)
	}
	if was := a.f; was != nil {
		defer was.Close()
	}
	a.f, a.copied = file, to
	_, err = io.Copy(copyWriter{ctx, to}, plain)
	a.size = to.Size()
	if tempfile.IsFull(err) {
		return bad("%s has more than %d bytes, half of what is free in %s: choose another place with --spool-dir", a.name, a.size, filepath.Dir(file.Name()))
	}
	if err != nil {
		return a.failed(ctx, err)
	}
	return nil
}

// copyWriter writes to a temporary file.
type copyWriter struct {
	ctx context.Context // of one copy
	to  *tempfile.File
}

func (w copyWriter) Write(p []byte) (int, error) {
	if err := w.to.Write(w.ctx, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (a *archive) failed(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, resume.ErrSource): // as Decompress says it
		return fmt.Errorf("%s: %w", a.name, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return bad("%s is cut short: %w", a.name, io.ErrUnexpectedEOF)
	}
	return bad("%s: %w", a.name, err)
}

// newCopy makes a file for a copy, in the first directory that can be written to.
// The error is that of the first.
func newCopy(o Options) (to *tempfile.File, f *os.File, err error) {
	in := func(dir string) (*tempfile.File, *os.File, error) {
		to := tempfile.New(tempfile.Options{Dir: dir, Quota: tempfile.NewQuota(cmp.Or(o.room, math.MaxInt64))})
		f, err := to.OnDisk()
		return to, f, err
	}
	if len(o.Spools) == 0 {
		return in(os.TempDir())
	}
	for _, dir := range o.Spools {
		own, made := owndir.Make(dir, owndir.Spool)
		if made == nil {
			if to, f, made = in(own); made == nil {
				return to, f, nil
			}
		}
		err = cmp.Or(err, made)
	}
	return nil, nil, err
}

// scan reads all headers, and so finds out too whether the archive was cut
// short.
func (a *archive) scan(ctx context.Context) error {
	if _, err := a.f.Seek(0, io.SeekStart); err != nil {
		return bad("%w", err)
	}
	names := 0
	for tr := tar.NewReader(a.f); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) && len(a.entries) == 0 {
			return bad("%s is not a tar archive", a.name)
		}
		if err != nil {
			return a.failed(ctx, err)
		}
		name := path.Clean(h.Name)
		if names += len(name) + len(h.Linkname); len(a.entries) == maxEntries || names > maxNames {
			return bad("%s has more than %d entries, or %d bytes of names", a.name, maxEntries, maxNames)
		}
		if _, ok := a.entries[name]; ok {
			continue // readers take the first
		}
		e := entry{size: h.Size}
		switch h.Typeflag {
		case tar.TypeSymlink:
			e.link = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			e.link = path.Clean(h.Linkname)
		case tar.TypeReg:
		default:
			continue
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return bad("%s: %q is a sparse file, which no image archive has", a.name, name)
			}
		}
		if e.offset, err = a.f.Seek(0, io.SeekCurrent); err != nil {
			return bad("%w", err)
		}
		if e.link == "" && (e.size < 0 || e.size > a.size-e.offset) {
			return bad("%s is cut short: %q has %d bytes: %w", a.name, name, e.size, io.ErrUnexpectedEOF)
		}
		a.entries[name] = e
	}
	if len(a.entries) == 0 && a.size == 0 && a.copied != nil {
		return bad("%s is empty: the command that was to write it may have failed", a.name)
	}
	if len(a.entries) == 0 {
		return bad("%s is no archive of an image: it is empty", a.name)
	}
	return nil
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

// open gives an entry from offset on.
func (a *archive) open(e entry, offset int64) (io.ReadCloser, error) {
	return openSection(a.f, e.offset+offset, e.size-offset)
}

// openSection opens a part of a file that stays open itself.
func openSection(f *os.File, offset, size int64) (io.ReadCloser, error) {
	if size < 0 {
		return nil, fmt.Errorf("an offset %d bytes behind the end", -size)
	}
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		// No position of its own, and so no sendfile.
		return io.NopCloser(io.NewSectionReader(f, offset, size)), nil //nolint:nilerr // the other way works everywhere
	}
	if _, err := own.Seek(offset, io.SeekStart); err != nil {
		own.Close()
		return nil, err
	}
	return &section{f: own, left: size}, nil
}

// section is the next bytes of a file that is its own.
type section struct {
	f    *os.File
	left int64
}

func (s *section) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.f.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if errors.Is(err, io.EOF) && s.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *section) Close() error { return s.f.Close() }

// File is what sendfile reads from.
func (s *section) File() *os.File { return s.f }

// document reads a small file.
func (a *archive) document(name string) ([]byte, error) {
	e, ok := a.find(name)
	if !ok {
		return nil, fmt.Errorf("%s: %w in %s", name, fs.ErrNotExist, a.name)
	}
	if e.size > maxDocument {
		return nil, fmt.Errorf("%s in %s has %d bytes, more than %d", name, a.name, e.size, maxDocument)
	}
	return a.read(e)
}

func (a *archive) read(e entry) ([]byte, error) {
	b := make([]byte, e.size)
	_, err := a.f.ReadAt(b, e.offset)
	if errors.Is(err, io.EOF) && len(b) == 0 {
		err = nil
	}
	return b, err
}

// tarred is an OCI layout in an archive.
type tarred struct{ *archive }

func (t tarred) String() string { return t.name }

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (t tarred) stat(d v1.Descriptor) error {
	e, ok := t.find(blobName(d.Digest))
	switch {
	case !ok:
		return bad("blob %s: %w in %s", d.Digest, fs.ErrNotExist, t.name)
	case e.size != d.Size:
		return bad("blob %s has %d bytes in %s, want %d", d.Digest, e.size, t.name, d.Size)
	}
	return nil
}

// Manifest implements pusher.Content.
func (t tarred) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return t.document(blobName(d.Digest))
}

// Open implements pusher.Content.
func (t tarred) Open(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := t.stat(d); err != nil {
		return nil, err
	}
	e, _ := t.find(blobName(d.Digest))
	return t.open(e, offset)
}

// openOCIArchive opens an OCI layout in a tar file.
func openOCIArchive(ctx context.Context, file string, o Options) (*Images, error) {
	a, err := openArchive(ctx, file, o)
	if err != nil {
		return nil, err
	}
	return a.images("oci-archive:", o)
}

func (a *archive) images(transport string, o Options) (i *Images, err error) {
	if transport == "docker-archive:" {
		i, err = dockerImages(transport+a.name, a, o)
	} else {
		i, err = layoutImages(transport+a.name, tarred{a}, o)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	i.close = a.close
	return i, nil
}

// openAnyArchive takes an archive for what it holds. Many tools write both an
// OCI layout and docker's manifest.json. The layout is better where its layers
// are as they were pushed or pulled, with digests that hold; where they are
// not compressed, as Docker's classic store gives them, docker's view is.
func openAnyArchive(ctx context.Context, file string, o Options) (*Images, error) {
	a, err := openArchive(ctx, file, o)
	if err != nil {
		return nil, err
	}
	_, both := a.find(manifestFile)
	top, err := readTop(tarred{a})
	layout := err == nil
	if layout && both {
		if layout, err = a.compressed(ctx, top.Manifests); err != nil {
			a.close()
			return nil, err
		}
	}
	switch {
	case layout:
		return a.images("oci-archive:", o)
	case both:
		return a.images("docker-archive:", o)
	}
	a.close()
	if _, ok := a.find(layoutFile); ok {
		return nil, err
	}
	return nil, bad("%s is neither a docker archive nor an OCI archive: it has no manifest.json and no oci-layout", a.name)
}

// compressed reports whether no layer below is a plain tar. What cannot be read
// is no reason to think so.
func (a *archive) compressed(ctx context.Context, ds []v1.Descriptor) (bool, error) {
	if slices.ContainsFunc(ds, func(d v1.Descriptor) bool { return isPlain(manifest.Of(d)) }) {
		return false, nil
	}
	found, err := a.search(ctx, ds, func(_ v1.Descriptor, m *manifest.Manifest) bool { return slices.ContainsFunc(m.Layers, isPlain) })
	return found == nil, err
}

// isPlain reports whether a layer is a tar that is not compressed.
func isPlain(d manifest.Descriptor) bool { return strings.HasSuffix(string(d.MediaType), ".tar") }

// search looks for a manifest that match holds for among those that ds lead to. It
// returns nil if there is none. What cannot be read is skipped.
func (a *archive) search(ctx context.Context, ds []v1.Descriptor, match func(d v1.Descriptor, m *manifest.Manifest) bool) (*pusher.Stored, error) {
	s := &searcher{a: a, match: match}
	w := manifest.Walker[*pusher.Stored]{Tree: s}
	for _, one := range s.readable(ds) {
		err := w.Walk(ctx, one)
		switch {
		case s.found != nil:
			return s.found, nil
		case err != nil && ctx.Err() != nil:
			return nil, err
		case err != nil:
			return nil, bad("%s: %w", a.name, err)
		}
	}
	return nil, nil
}

// searcher is a walk over the manifests of an archive, up to the first that
// matches.
type searcher struct {
	a     *archive
	match func(v1.Descriptor, *manifest.Manifest) bool
	found *pusher.Stored
}

var errFound = errors.New("found")

// readable picks the manifests that the archive has.
func (s *searcher) readable(ds []v1.Descriptor) (all []*pusher.Stored) {
	for _, d := range ds {
		e, ok := s.a.find(blobName(d.Digest))
		if ok && e.size == d.Size && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			all = append(all, &pusher.Stored{Content: tarred{s.a}, Descriptor: d})
		}
	}
	return all
}

// Describe implements manifest.Tree.
func (s *searcher) Describe(_ context.Context, n *pusher.Stored) (v1.Descriptor, bool, error) {
	return n.Descriptor, true, nil
}

// Enter implements manifest.Tree.
func (s *searcher) Enter(ctx context.Context, n *pusher.Stored, depth int) ([]*pusher.Stored, error) {
	_, m, err := readManifest(ctx, n)
	if err != nil {
		return nil, nil //nolint:nilerr // it is not the one that is looked for
	}
	if s.match(n.Descriptor, m) {
		s.found = n
		return nil, errFound
	}
	if !n.Descriptor.MediaType.IsIndex() || depth == manifest.MaxDepth {
		return nil, nil
	}
	ds := make([]v1.Descriptor, len(m.Manifests))
	for i, d := range m.Manifests {
		ds[i] = d.V1()
	}
	return s.readable(ds), nil
}

// Leave implements manifest.Tree.
func (s *searcher) Leave(context.Context, *pusher.Stored, []*pusher.Stored) error { return nil }
