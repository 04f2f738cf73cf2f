// SPDX-License-Identifier: Apache-2.0

// Package saved reads a saved image once, from its first byte to its last, as
// it comes out of an engine or a pipe: what docker save and podman save write
// (manifest.json), and OCI archives (index.json). The manifest may come last,
// so blobs are handed out before it is known what they are for.
//
// An archive is foreign input. Nothing of it is written to a file system, all
// that is kept of it is bounded, and no name or link in it leaves it.
package saved

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/resume"
)

// The bounds of what is kept of an archive in memory.
const (
	// MaxDocument is the largest manifest, index or config.
	MaxDocument = manifest.MaxSize

	maxDocuments = 16 << 20 // all of them together
	maxEntries   = 1 << 15
	maxNames     = 4 << 20  // bytes of all names and links
	maxLinks     = 16       // in a chain
	maxTrailer   = 64 << 20 // bytes after the end of the tar
)

// The files that say what an archive holds.
const (
	manifestFile = "manifest.json"
	indexFile    = "index.json"
	layoutFile   = "oci-layout"
	blobsDir     = "blobs/"
)

// Entry is one file of an archive.
type Entry struct {
	// Name is its cleaned path in the archive.
	Name string
	// Size in bytes, as the archive has it.
	Size int64
	// Digest is what the name of a file of an OCI layout says it has, empty for
	// all others. Nobody has checked it.
	Digest digest.Digest
}

// Visitor is given every file as it comes but for the documents, which the
// Archive keeps. What it does not read of r is skipped; r is of no use after it
// returned. Its error ends the walk.
type Visitor func(a *Archive, e Entry, r io.Reader) error

// Archive is what has been seen of an archive: during the walk up to now, after
// it all. It is not safe for concurrent use.
type Archive struct {
	files map[string]int64  // sizes by name
	links map[string]string // what a name leads to
	docs  map[string][]byte
	kept  int // bytes of docs
	names int // bytes of all names

	digests map[hashed]digest.Digest // of docs, once asked for
	tried   int64                    // bytes that Position has hashed
}

// hashed is a file that was hashed with an algorithm.
type hashed struct {
	file      string
	algorithm digest.Algorithm
}

// Walk reads the archive r, compressed with gzip or zstd or not at all, in one
// pass. A file of at most MaxDocument that begins as JSON does is a document
// and kept, as long as there is room; all others go to visit. The first of
// several files with one name counts, as it does in package source.
//
// The error is resume.ErrSource, the visitor's, or the cause of a done ctx. It
// does not say whether the archive holds an image: see Docker and Index.
func Walk(ctx context.Context, r io.Reader, visit Visitor) (*Archive, error) {
	a := &Archive{files: map[string]int64{}, links: map[string]string{}, docs: map[string][]byte{}}
	plain, err := Decompress(Cancellable(ctx, r))
	if err != nil {
		return a, cause(ctx, err)
	}
	defer plain.Close()
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF) && len(a.files)+len(a.links) == 0 && ctx.Err() == nil:
			return a, bad("the archive is empty")
		case errors.Is(err, io.EOF):
			// Whoever writes into a pipe must not be told that nobody reads.
			_, err := io.CopyN(io.Discard, plain, maxTrailer)
			if err != nil && !errors.Is(err, io.EOF) {
				return a, cause(ctx, fmt.Errorf("after the end of the archive: %w", err))
			}
			return a, nil
		case errors.Is(err, tar.ErrHeader) && len(a.files) == 0 && ctx.Err() == nil:
			return a, bad("it is not a tar archive")
		case err != nil:
			return a, cause(ctx, err)
		}
		if err := a.take(h, tr, visit); err != nil {
			return a, cause(ctx, err)
		}
	}
}

// cause makes an error the source's unless it is something else already.
func cause(ctx context.Context, err error) error {
	var visitors *visitError
	switch {
	case errors.As(err, &visitors):
		return visitors.err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, resume.ErrSource):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return bad("the archive is cut short: %w", err)
	}
	return bad("reading the archive: %w", err)
}

// visitError keeps a visitor's error apart from those of reading.
type visitError struct{ err error }

func (e *visitError) Error() string { return e.err.Error() }

func (a *Archive) take(h *tar.Header, r io.Reader, visit Visitor) error {
	name := path.Clean(h.Name)
	if len(a.files)+len(a.links) >= maxEntries {
		return bad("the archive has more than %d entries", maxEntries)
	}
	if a.names += len(name) + len(h.Linkname); a.names > maxNames {
		return bad("the names in the archive have more than %d bytes", maxNames)
	}
	if a.has(name) {
		return nil
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		a.links[name] = path.Join(path.Dir(name), h.Linkname)
		return nil
	case tar.TypeLink:
		a.links[name] = path.Clean(h.Linkname)
		return nil
	case tar.TypeReg:
	default:
		return nil
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return bad("%q is a sparse file, which no image archive has", name)
		}
	}
	a.files[name] = h.Size

	e := Entry{Name: name, Size: h.Size, Digest: blobDigest(name)}
	rest, isDocument, err := a.document(name, h.Size, r)
	if err != nil || isDocument {
		return err
	}
	counted := &exact{r: rest, left: h.Size}
	if err := visit(a, e, counted); err != nil {
		if counted.err != nil {
			return counted.err // the visitor only passes it on
		}
		return &visitError{err}
	}
	return nil
}

// document keeps r if it is a document, and gives it back unread if not.
func (a *Archive) document(name string, size int64, r io.Reader) (rest io.Reader, ok bool, err error) {
	known := name == manifestFile || name == indexFile || name == layoutFile
	if size > MaxDocument {
		if known {
			return nil, false, bad("%s has %d bytes, more than %d", name, size, MaxDocument)
		}
		return r, false, nil
	}
	head := make([]byte, min(size, 512))
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, false, err
	}
	text := bytes.TrimLeft(head, " \t\r\n")
	json := len(text) > 0 && (text[0] == '{' || text[0] == '[') &&
		bytes.IndexByte(head, 0) < 0 // as in the tar of a layer whose first file is "[id].js"
	whole := io.MultiReader(bytes.NewReader(head), r)
	if !json && !known || a.kept+int(size) > maxDocuments {
		if known {
			return nil, false, bad("the archive has more than %d bytes of manifests", maxDocuments)
		}
		return whole, false, nil
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(whole, b); err != nil {
		return nil, false, err
	}
	a.docs[name] = b
	a.kept += len(b)
	return nil, true, nil
}

// exact notes how reading went, so that a visitor that is given too little
// cannot take it for the end of a file.
type exact struct {
	r    io.Reader
	left int64
	err  error
}

func (e *exact) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && e.left > 0:
		err = io.ErrUnexpectedEOF
		e.err = err
	case err != nil && !errors.Is(err, io.EOF):
		e.err = err
	}
	return n, err
}

func blobDigest(name string) digest.Digest {
	rest, ok := strings.CutPrefix(name, blobsDir)
	d := digest.Digest(strings.Replace(rest, "/", ":", 1))
	if !ok || strings.Contains(rest, ":") || d.Validate() != nil {
		return ""
	}
	return d
}

// BlobName is where an OCI layout keeps a blob.
func BlobName(d digest.Digest) string {
	return blobsDir + strings.Replace(string(d), ":", "/", 1)
}

func (a *Archive) has(name string) bool {
	_, file := a.files[name]
	_, link := a.links[name]
	return file || link
}

// Resolve follows links from name to a file of the archive. It takes the
// spellings that manifests use.
func (a *Archive) Resolve(name string) (file string, size int64, ok bool) {
	name = path.Clean(name)
	for range maxLinks {
		if size, ok := a.files[name]; ok {
			return name, size, true
		}
		to, ok := a.links[name]
		if !ok {
			return "", 0, false
		}
		name = to
	}
	return "", 0, false
}

// Document gives a document by its name, through links. The caller must not
// change it.
func (a *Archive) Document(name string) ([]byte, bool) {
	file, _, ok := a.Resolve(name)
	if !ok {
		return nil, false
	}
	b, ok := a.docs[file]
	return b, ok
}

// Blob gives a document of an OCI layout by its digest, checked against it.
func (a *Archive) Blob(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, bad("digest %q: %w", d, err)
	}
	file, _, _ := a.Resolve(BlobName(d))
	b, ok := a.docs[file]
	if !ok {
		return nil, bad("%s is missing, or no manifest", d)
	}
	// Many names may lead to one file: it is hashed once.
	at := hashed{file, d.Algorithm()}
	got, ok := a.digests[at]
	if !ok {
		got = d.Algorithm().FromBytes(b)
		if a.digests == nil {
			a.digests = map[hashed]digest.Digest{}
		}
		a.digests[at] = got
	}
	if got != d {
		return nil, bad("%s is damaged: it has the digest %s", d, got)
	}
	return b, nil
}

// DockerImage is one image of a manifest.json. All of it comes from the
// archive and names files of it.
type DockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
	// LayerSources are the descriptors of foreign layers, by diffID.
	LayerSources map[v1.Hash]v1.Descriptor
}

// Docker gives the images of a manifest.json; none where there is no such
// file.
func (a *Archive) Docker() (all []DockerImage, err error) {
	b, ok := a.Document(manifestFile)
	if !ok {
		return nil, nil
	}
	if err := manifest.Unmarshal(b, &all); err != nil {
		return nil, bad("%s: %w", manifestFile, err)
	}
	return all, nil
}

// Index gives the top of an OCI layout; nil where the archive holds none.
func (a *Archive) Index() (*v1.IndexManifest, error) {
	b, ok := a.Document(indexFile)
	if !ok {
		return nil, nil
	}
	if _, ok := a.Document(layoutFile); !ok {
		return nil, nil
	}
	m := &v1.IndexManifest{}
	if err := manifest.Unmarshal(b, m); err != nil {
		return nil, bad("%s: %w", indexFile, err)
	}
	return m, nil
}

// bad returns a resume.ErrSource.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", resume.ErrSource, fmt.Errorf(format, args...))
}
