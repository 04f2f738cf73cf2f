// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/resume"
)

// unfit is a blob that did not fit into the spool.
type unfit struct {
	diff  digest.Digest
	name  string // in the archive
	layer known.Layer
}

// accept sends what was made on its way, from the spool if it is there.
func (j *Job) accept(diff digest.Digest, name string, l known.Layer, m *made) error {
	if m.w == nil {
		j.later(diff, name, l)
		return nil
	}
	b, err := m.w.Keep(m.blob)
	if err != nil {
		j.unspooled(err)
		j.later(diff, name, l)
		return nil
	}
	j.stats.Spooled += b.Size
	j.mu.Lock()
	j.at[diff] = l
	j.spooled[l.Digest] = b
	j.mu.Unlock()
	j.send(diff, l, b)
	return nil
}

// later leaves a blob to again.
func (j *Job) later(diff digest.Digest, name string, l known.Layer) {
	j.unfit = append(j.unfit, unfit{diff, name, l})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.at[diff] = l
}

// send uploads a blob beside everything else.
func (j *Job) send(diff digest.Digest, l known.Layer, b *spool.Blob) {
	j.uploads.Go(func() error {
		err := j.Delivery.Upload(j.uploading, resume.Blob{Digest: l.Digest, Size: l.Size, Open: b.Open}, l.MediaType)
		if err != nil {
			return err
		}
		b.Delivered()
		j.arrived(diff, l)
		return nil
	})
}

// arrived notes that a blob was uploaded.
func (j *Job) arrived(diff digest.Digest, l known.Layer) {
	if !j.Input.keepsBlobs() {
		j.has(diff, l)
	}
}

// again delivers what did not fit into the spool: the image is saved, and the
// blob made, for every try.
func (j *Job) again(ctx context.Context) error {
	if j.DryRun {
		return nil
	}
	for _, u := range j.unfit {
		j.Doing(fmt.Sprintf("sending %s, which does not fit into the spool", short(u.layer.Digest)))
		err := j.Delivery.Upload(ctx, resume.Blob{
			Digest: u.layer.Digest, Size: u.layer.Size,
			Open: func(open context.Context, offset int64) (io.ReadCloser, error) {
				return at(open, j.remake(ctx, u.name), offset)
			},
		}, u.layer.MediaType)
		if err != nil {
			return err
		}
		j.arrived(u.diff, u.layer)
	}
	return nil
}

// remade is a blob that is being made while it is read.
type remade struct {
	*io.PipeReader
	stop context.CancelFunc
}

// Close ends what the engine does for it, too.
func (r *remade) Close() error {
	r.stop()
	return r.PipeReader.Close()
}

// remake makes the blob of one file of the archive again.
func (j *Job) remake(ctx context.Context, file string) *remade {
	ctx, stop := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	j.stats.Exports += j.Input.exportsToReread()
	go func() {
		defer stop()
		pw.CloseWithError(j.Input.reread(ctx, file, func(r io.Reader) error { return j.copyTo(pw, r) }))
	}()
	return &remade{pr, stop}
}

// at gives the blob from an offset on, once there is something to be read: the
// engine may take minutes to begin, and a request that sends nothing would be
// taken for stalled.
func at(ctx context.Context, r *remade, offset int64) (io.ReadCloser, error) {
	defer context.AfterFunc(ctx, func() { _ = r.Close() })() // a pipe closes
	b := bufio.NewReader(r)
	_, err := io.CopyN(io.Discard, b, offset)
	if err == nil {
		if _, err = b.Peek(1); errors.Is(err, io.EOF) {
			err = nil // nothing is left
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{b, r}, nil
}
