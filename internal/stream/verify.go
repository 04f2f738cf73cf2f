// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/resume"
)

const (
	// maxVerified bounds a blob that is downloaded to be verified.
	maxVerified = 32 << 30
	// maxRatio bounds what such a blob may decompress to, beside a constant: one
	// that is compressed further costs less to compress again than to verify.
	maxRatio = 128
	// maxVerifying bounds how many blobs are verified at once.
	maxVerifying = 2
	// verifyRate is the least rate, in bytes per second, at which a blob must
	// arrive to be verified, beside verifyStart for a blob of any size.
	verifyRate  = 64 << 10
	verifyStart = time.Minute
	// verifyWindow bounds the memory of a zstd decoder: 8 MiB is what every
	// decoder must support (RFC 8878, section 3.1.1.1.2).
	verifyWindow = 8 << 20
)

// errSlow ends a download that takes longer than it is worth.
var errSlow = errors.New("the registry sends the blob too slowly")

// errDiffers says that a blob does not hold the layer it was said to hold.
var errDiffers = errors.New("the blob does not hold that layer")

// verifiedAndHeld reports whether a blob that the registry named as the layer holds it,
// and the repository has it now. The blob is downloaded, once: a manifest may be
// written by anyone who can write to its repository. Nothing is mounted before
// it is verified, or a manifest could have a blob copied that its author may not
// read.
func (j *Job) verifiedAndHeld(ctx context.Context, diff digest.Digest, l known.Layer) (bool, error) {
	l.Key = ""
	said := j.onRegistry(l.Repositories)
	if j.Reader == nil || len(said) == 0 || l.Size > maxVerified {
		return false, nil
	}
	there, err := j.Delivery.Held(ctx, l.Digest, l.Size, l.MediaType)
	if err != nil {
		return false, err
	}
	from := said
	if there {
		from = j.onRegistry([]string{j.Repository})
	}
	at, err := j.verifiedIn(ctx, diff, l, from, said)
	if at == "" || err != nil {
		return false, err
	}
	l.Repositories = []string{at}
	j.keep(j.Cache.AddLayer(diff, l))
	held, err := j.held(ctx, l)
	if held {
		j.drop(l.Digest)
		j.has(diff, l)
	}
	return held, err
}

// verifiedIn verifies a blob in the first of the repositories that has it, and
// names that one, if the blob holds the layer. said are those whose manifests
// say so. After one false statement, or one blob that could not be read, no other
// statement of theirs is looked at: it is cheaper to compress a layer than to try
// in vain for each.
func (j *Job) verifiedIn(ctx context.Context, diff digest.Digest, l known.Layer, from, said []name.Repository) (string, error) {
	j.verifyOnce.Do(func() { j.verifying = make(chan struct{}, maxVerifying) })
	select {
	case j.verifying <- struct{}{}:
		defer func() { <-j.verifying }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	j.mu.Lock()
	trusted := slices.ContainsFunc(said, func(r name.Repository) bool { return !j.doubted[r.Name()] })
	j.mu.Unlock()
	if !trusted {
		return "", nil
	}
	j.Doing(fmt.Sprintf("verifying a layer that the registry has, %s", short(l.Digest)))
	for _, repo := range from {
		err := j.verify(ctx, repo, diff, l)
		switch {
		case err == nil:
			return repo.Name(), nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case !errors.Is(err, resume.ErrSource): // it may be elsewhere
			j.doubt(l, diff, said, err)
			return "", nil
		}
	}
	return "", nil
}

// doubt leaves alone what the manifests of some repositories say about layers.
func (j *Job) doubt(l known.Layer, diff digest.Digest, said []name.Repository, err error) {
	var names []string
	j.mu.Lock()
	if j.doubted == nil {
		j.doubted = map[string]bool{}
	}
	for _, r := range said {
		if !j.doubted[r.Name()] {
			j.doubted[r.Name()] = true
			names = append(names, r.Name())
		}
	}
	j.mu.Unlock()
	for _, name := range names {
		j.Warn(fmt.Errorf("no more layers are taken from %s: it names blob %s as layer %s: %w", name, short(l.Digest), short(diff), err))
	}
}

// onRegistry are the repositories that are on the registry pushed to: what one
// registry says counts for no other.
func (j *Job) onRegistry(names []string) (repos []name.Repository) {
	to, err := name.NewRepository(j.Repository, name.WeakValidation)
	if err != nil {
		return nil
	}
	for _, n := range names {
		if r, err := name.NewRepository(n, name.WeakValidation); err == nil && r.RegistryStr() == to.RegistryStr() {
			repos = append(repos, r)
		}
	}
	return repos
}

// verify downloads a blob and compares its digest, its size and its diffID. It
// fails with errDiffers if any of them is another, and ends after a time that
// depends on the size of the blob alone.
func (j *Job) verify(ctx context.Context, repo name.Repository, diff digest.Digest, l known.Layer) error {
	a, ok := compress.Of(mediaType(l))
	h, err := v1.NewHash(l.Digest.String())
	if !ok || err != nil || l.Digest.Validate() != nil || diff.Validate() != nil {
		return errDiffers
	}
	ctx, cancel := context.WithTimeoutCause(ctx, verifyStart+time.Duration(l.Size/verifyRate)*time.Second, errSlow)
	defer cancel()
	at, err := j.Reader.Repository(ctx, repo)
	if err != nil {
		return err
	}
	r, err := at.Open(ctx, v1.Descriptor{Digest: h, Size: l.Size, MediaType: mediaType(l)}, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &counted{r: r}
	err = holds(in, a, l, diff)
	j.mu.Lock()
	j.stats.Verified += in.n
	j.mu.Unlock()
	if in.err != nil {
		return in.err
	}
	return err
}

// holds reads the blob and fails with errDiffers unless it holds the layer.
func holds(r io.Reader, a compress.Algorithm, l known.Layer, diff digest.Digest) error {
	blob, plain := l.Digest.Verifier(), diff.Verifier()
	whole := io.TeeReader(r, blob)
	layer, err := decompress(whole, a)
	if err != nil {
		return fmt.Errorf("%w: %w", errDiffers, err)
	}
	defer layer.Close()
	most := maxRatio*l.Size + 64<<20
	n, err := io.CopyBuffer(plain, io.LimitReader(layer, most), make([]byte, copySize))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errDiffers, err)
	case n == most:
		return errTooLarge
	}
	if _, err := io.Copy(io.Discard, whole); err != nil { // what follows the layer
		return err
	}
	if !blob.Verified() || !plain.Verified() {
		return errDiffers
	}
	return nil
}

var errTooLarge = errors.New("the blob decompresses to more than is verified")

// decompress gives the plain bytes of a blob, compressed as its media type says.
func decompress(r io.Reader, a compress.Algorithm) (io.ReadCloser, error) {
	switch a {
	case compress.Gzip:
		return gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
	case compress.Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(verifyWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// counted counts what was read, and keeps the error of the registry apart from
// those of decoders.
type counted struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
