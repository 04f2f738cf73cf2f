// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
)

// wholeType is the media type of blobs whose manifest is not known yet.
const wholeType = "application/octet-stream"

// layer takes in a layer: skips it, or compresses it and sends it on its way.
func (j *Job) layer(ctx context.Context, name string, claimed digest.Digest, r io.Reader) error {
	if l, ok := j.known(claimed); ok {
		j.note(name, claimed, l)
		return nil
	}
	j.Doing(fmt.Sprintf("compressing layers, %d done", j.stats.Compressed))
	m, err := j.make(ctx, r, j.Algorithm)
	if err != nil {
		return err
	}
	if claimed != "" && m.plain != claimed {
		m.discard()
		return bad("%q is damaged: its digest is %s, the config says %s", name, m.plain, claimed)
	}
	j.stats.Compressed++
	l := known.Layer{Digest: m.blob, Size: m.size, MediaType: string(j.Algorithm.LayerType(true)), Key: j.Algorithm.Key()}
	if at, ok := j.known(m.plain); ok { // nothing said so before
		m.discard()
		j.note(name, m.plain, at)
		return nil
	}
	j.note(name, m.plain, l)
	j.keep(j.Cache.AddLayer(m.plain, l))
	if len(j.MountFrom) > 0 { // only now its digest is known
		held, err := j.held(ctx, l)
		if held || err != nil {
			m.discard()
		}
		if held {
			j.has(m.plain, l)
		}
		if held || err != nil {
			return err
		}
	}
	return j.accept(m.plain, name, l, m)
}

// blob takes in a blob that is published as it is. It is mounted from one of the
// repositories mountIfHere once its bytes were read.
func (j *Job) blob(ctx context.Context, e saved.Entry, r io.Reader, mountIfHere []string) error {
	mounted := func() (bool, error) {
		if len(mountIfHere) == 0 {
			return false, nil
		}
		return j.Delivery.Held(ctx, e.Digest, e.Size, wholeType, mountIfHere...)
	}
	l := known.Layer{Digest: e.Digest, Size: e.Size, MediaType: wholeType}
	held, err := j.held(ctx, l)
	if err != nil {
		return err
	}
	j.note(e.Name, l.Digest, l)
	if held {
		j.drop(l.Digest)
		return nil
	}
	if j.Spool != nil {
		if b, ok := j.Spool.Get(ctx, l.Digest, l.Size); ok {
			isMounted, err := mounted()
			if isMounted {
				b.Delivered()
				return nil
			}
			if err != nil {
				b.Keep()
				return err
			}
			j.stats.Reused += b.Size
			j.mu.Lock()
			j.spooled[l.Digest] = b
			j.mu.Unlock()
			j.send(l.Digest, l, b)
			return nil
		}
	}
	m, err := j.make(ctx, r, "")
	if err != nil {
		return err
	}
	if m.blob != e.Digest && e.Digest.Algorithm() == digest.SHA256 {
		m.discard()
		return bad("blob %s is damaged: it has the digest %s", e.Digest, m.blob)
	}
	if m.blob == e.Digest {
		isMounted, err := mounted()
		if isMounted || err != nil {
			m.discard()
			return err
		}
	}
	m.blob = e.Digest
	return j.accept(l.Digest, e.Name, l, m)
}
