// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	_ "crypto/sha512" // digests may be sha512
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Blob is what is to be delivered.
type Blob struct {
	Digest digest.Digest
	// Size in bytes, 0 or more.
	Size int64
	// Open returns a reader of the bytes from offset, 0 <= offset <= Size, to
	// the end. Each call must return a reader of its own, since one that has
	// been given up may still be in use for a moment; it is closed after use.
	// The bytes must be the same every time. An *os.File keeps sendfile, as
	// does a reader of a part of one that has a method File() *os.File. The
	// context is for Open alone, not for reading.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// MountFrom is a repository of the same registry that may hold the blob
	// already, without the registry's name; empty for none.
	MountFrom string
	// Missing says that the caller has just asked and the registry does not
	// have the blob: the first check is left out.
	Missing bool
	// FalselyFound says that the registry answered 200 to HEAD for the blob and
	// does not have it, as some versions of Artifactory do. Whether the blob has
	// arrived is then asked with GET.
	FalselyFound bool
}

func (b Blob) check() error {
	switch err := b.Digest.Validate(); {
	case err != nil:
		return protocol.Kind(protocol.ErrSource, fmt.Errorf("digest %q: %w", b.Digest, err))
	case b.Size < 0:
		return protocol.Kind(protocol.ErrSource, fmt.Errorf("size %d is negative", b.Size))
	case b.Open == nil:
		return protocol.Kind(protocol.ErrSource, errors.New("the blob has no Open"))
	}
	return nil
}

// open returns a reader at offset; its failure is the source's.
func (b Blob) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	r, err := b.Open(ctx, offset)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("opening the source: %w", err))
	}
	return r, nil
}

// verify reads the whole source and compares its digest.
func (b Blob) verify(ctx context.Context) error {
	r, err := b.open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	v := b.Digest.Verifier()
	n, err := io.Copy(v, io.LimitReader(&cancellable{ctx, r}, b.Size+1))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		err = fmt.Errorf("reading the source: %w", err)
	case n < b.Size:
		err = fmt.Errorf("the source has %d bytes, not %d", n, b.Size)
	case n > b.Size:
		err = fmt.Errorf("the source has more than %d bytes", b.Size)
	case !v.Verified():
		err = errors.New("the bytes of the source do not have this digest: it is damaged")
	default:
		return nil
	}
	return protocol.Kind(protocol.ErrSource, err)
}

// cancellable is a reader that ends with its context.
type cancellable struct {
	ctx context.Context // of one call of verify
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Result is what became of a blob.
type Result struct {
	// Existed: the registry had it. Mounted: it took it from Blob.MountFrom.
	// Neither: it was uploaded.
	Existed, Mounted bool
	// Sent is the number of bytes of the blob that went out, those sent again
	// included: all bytes of requests that were answered, and of requests that
	// broke, those that the registry kept. If it kept none, those that the other end
	// of the connection acknowledged (Linux) or that the kernel took. Where a
	// registry answered before it had all of a body, what was still going out may be
	// missing.
	Sent int64
	// Breaks counts requests that broke, Resumes how often the upload went on at
	// an offset above 0, Restarts how often a session was lost.
	Breaks, Resumes, Restarts int
	// Continued is how many bytes the registry held of an upload that an earlier
	// process had left and this one went on with.
	Continued int64
	// Kept: the upload did not end well, and its record is in the Store for a
	// later one to continue.
	Kept     bool
	Duration time.Duration
}
