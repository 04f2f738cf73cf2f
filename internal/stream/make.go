// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/spool"
)

// copySize is what is read of a layer at once.
const copySize = 256 << 10

// made is a blob that was made of a file, in the spool unless w is nil.
type made struct {
	w     *spool.Writer
	plain digest.Digest // of what was read, decompressed
	blob  digest.Digest
	size  int64
}

func (m *made) discard() {
	if m.w != nil {
		m.w.Discard()
		m.w = nil
	}
}

// make reads r and makes a blob of it; without an algorithm it stays as it is.
func (j *Job) make(ctx context.Context, r io.Reader, a compress.Algorithm) (m *made, err error) {
	m = &made{}
	defer func() {
		if err != nil {
			m.discard()
		}
	}()
	if j.Spool != nil {
		if m.w, err = j.Spool.Create(ctx); err != nil {
			j.unspooled(err)
			m.w, err = nil, nil
		}
	}
	sum := &sink{j: j, ctx: ctx, m: m, h: sha256.New()}
	plain := sha256.New()
	if a == "" {
		n, err := io.CopyBuffer(sum, plainReader{r}, make([]byte, copySize))
		j.stats.Read += n
		m.blob = digest.NewDigest(digest.SHA256, sum.h)
		return m, err
	}
	layer, err := saved.Decompress(r) // podman and others may have compressed it
	if err != nil {
		return m, err
	}
	defer layer.Close()
	z, err := a.Writer(sum)
	if err != nil {
		return m, err
	}
	n, err := io.CopyBuffer(io.MultiWriter(z, plain), io.LimitReader(layer, saved.MaxLayer), make([]byte, copySize))
	j.stats.Read += n
	if err == nil && n == saved.MaxLayer {
		err = bad("a layer unpacks to more than %d bytes", int64(saved.MaxLayer))
	}
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	m.plain, m.blob = digest.NewDigest(digest.SHA256, plain), digest.NewDigest(digest.SHA256, sum.h)
	return m, err
}

// copyTo writes the blob that make would make of r.
func (j *Job) copyTo(w io.Writer, r io.Reader) error {
	if j.Input.keepsBlobs() {
		_, err := io.CopyBuffer(w, plainReader{r}, make([]byte, copySize))
		return err
	}
	layer, err := saved.Decompress(r)
	if err != nil {
		return err
	}
	defer layer.Close()
	z, err := j.Algorithm.Writer(w)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(z, plainReader{layer}, make([]byte, copySize))
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	return err
}

// plainReader hides all but Read, so that the buffer given is used.
type plainReader struct{ io.Reader }

// unspooled warns: the push goes on, at a price.
func (j *Job) unspooled(err error) {
	j.Warn(fmt.Errorf("the spool does not take a layer, it is made again for each try: %w", err))
}

// sink hashes and counts a blob, and keeps it in the spool as long as it fits.
type sink struct {
	j   *Job
	ctx context.Context // of make
	m   *made
	h   hash.Hash
}

func (s *sink) Write(p []byte) (int, error) {
	if s.m.w != nil {
		switch _, err := s.m.w.Write(p); {
		case errors.Is(err, spool.ErrFull):
			s.m.discard()
		case err != nil && s.ctx.Err() != nil:
			return 0, err
		case err != nil: // a disk that fails, or takes no file so large
			s.m.discard()
			s.j.unspooled(err)
		}
	}
	s.m.size += int64(len(p))
	return s.h.Write(p)
}

func mediaType(l known.Layer) types.MediaType { return types.MediaType(l.MediaType) }
