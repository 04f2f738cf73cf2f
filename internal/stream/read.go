package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
)

// readPlain reads the layers of Plain that nobody has.
func (j *Job) readPlain(ctx context.Context) error {
	for i, l := range j.Plain.Layers {
		if _, ok := j.known(l.DiffID); ok || l.Open == nil {
			continue
		}
		err := open(l, func(r io.Reader) error { return j.layer(ctx, l.Name, l.DiffID, saved.Cancellable(ctx, r)) })
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(j.Plain.Layers), err)
		}
	}
	return nil
}

func open(l saved.PlainLayer, read func(io.Reader) error) error {
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return read(r)
}

// read walks through the saved image once.
func (j *Job) read(ctx context.Context) (*saved.Archive, error) {
	j.Doing(fmt.Sprintf("waiting for the engine to save %s", short(j.ID)))
	r, err := j.Save(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	j.stats.Exports++
	chain := saved.ChainIDs(j.DiffIDs)
	return saved.Walk(ctx, r, func(a *saved.Archive, e saved.Entry, r io.Reader) error {
		switch {
		case j.Whole && e.Digest == "", path.Base(e.Name) == "VERSION":
			return nil
		case j.Whole:
			return j.blob(ctx, e, r)
		}
		return j.layer(ctx, e.Name, j.claimed(a, e, chain), r)
	})
}

// claimed is the diffID that a file is said to have, before it is read; empty
// where nothing says so.
func (j *Job) claimed(a *saved.Archive, e saved.Entry, chain []digest.Digest) digest.Digest {
	if i := a.Position(e, chain); i >= 0 {
		return j.DiffIDs[i]
	}
	// Docker from 25 on names files by it, podman too.
	d := e.Digest
	if hex, ok := strings.CutSuffix(e.Name, ".tar"); ok {
		d = digest.NewDigestFromEncoded(digest.SHA256, hex)
	}
	if slices.Contains(j.DiffIDs, d) {
		return d
	}
	return ""
}

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

// blob takes in a blob that is published as it is.
func (j *Job) blob(ctx context.Context, e saved.Entry, r io.Reader) error {
	l := known.Layer{Digest: e.Digest, Size: e.Size, MediaType: "application/octet-stream"}
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
			mounted, err := j.mounted(ctx, l)
			if mounted {
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
		mounted, err := j.mounted(ctx, l)
		if mounted || err != nil {
			m.discard()
			return err
		}
	}
	m.blob = e.Digest
	return j.accept(l.Digest, e.Name, l, m)
}

// mounted asks for a mount of a blob, whose bytes were read and have its
// digest, from the repositories that are said to have it.
func (j *Job) mounted(ctx context.Context, l known.Layer) (bool, error) {
	if len(j.MountIfHere) == 0 {
		return false, nil
	}
	return j.Delivery.Held(ctx, l.Digest, l.Size, l.MediaType, j.MountIfHere...)
}

// reread reads one file of the archive once more.
func (j *Job) reread(ctx context.Context, file string, read func(io.Reader) error) error {
	if j.Plain != nil {
		for _, l := range j.Plain.Layers {
			if l.Name == file {
				return open(l, read)
			}
		}
		return bad("there is no layer %s", file)
	}
	r, err := j.Save(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = saved.Walk(ctx, r, func(_ *saved.Archive, e saved.Entry, r io.Reader) error {
		if e.Name != file {
			return nil
		}
		if err := read(r); err != nil {
			return err
		}
		return errDone
	})
	switch {
	case err == nil:
		return bad("%s is no longer in what is saved", file)
	case errors.Is(err, errDone):
		return nil
	}
	return err
}

// errDone ends a walk that has found what it looked for.
var errDone = errors.New("done")
