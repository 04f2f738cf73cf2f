// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
)

// maxRedirects is how far a blob may be from where it was asked for.
const maxRedirects = 5

var (
	errSlowBlob  = errors.New("the registry sends the blob too slowly")
	errShortBlob = errors.New("the registry ended the blob early")
	errElsewhere = errors.New("the registry sent another part of the blob than was asked for")
)

// Fetch reads a blob of the repository from offset on (distribution-spec v1.1,
// end-2). The reader goes on where a connection broke, with the limits and the
// budget of an upload, and asks for nothing twice where the registry serves
// ranges. It fails with an *Error, of the kind ErrSource where the registry
// does not have the blob. Bytes are not verified.
//
// All calls of Read together may take a minute, a second for each 16 KiB of the
// blob, and Options.RetryFor. Then Read fails with ErrInterrupted, however
// steadily bytes come.
//
// Nothing is asked before the first Read. The context bounds reading as well.
// Close may be called while a Read is under way.
func (c *Client) Fetch(ctx context.Context, dgst digest.Digest, size, offset int64) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	return &fetch{c: c, ctx: ctx, cancel: cancel, digest: dgst, size: size, offset: offset, floor: wire.NewFloor(size, c.o.RetryFor)}
}

// fetch is a blob on its way here.
type fetch struct {
	c            *Client
	ctx          context.Context // ends with Close
	cancel       context.CancelCauseFunc
	digest       digest.Digest
	size, offset int64
	floor        *wire.Floor // bounds the time of all calls of Read

	mu   sync.Mutex // body, as Close sees it
	body *wire.Download
	gone bool
}

// Read goes through the loop only where something fails.
func (f *fetch) Read(p []byte) (n int, err error) {
	if f.offset >= f.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.size-f.offset)]
	defer f.floor.Reading(func() { f.cancel(errSlowBlob) })()
	if f.body != nil {
		if n, err = f.read(p); err == nil {
			return n, nil
		}
	}
	tries := 0
	broke := err
	s := subject{digest: f.digest, size: f.size, broken: func() int64 { return f.offset }}
	err = f.c.retry(f.ctx, s, func(ctx context.Context, l *retry.Loop) (err error) {
		tries = l.Tries()
		if broke != nil {
			err, broke = broke, nil
			return err
		}
		if f.body == nil {
			if err := f.open(ctx); err != nil {
				return err
			}
		}
		n, err = f.read(p)
		return err
	})
	if err != nil {
		return 0, f.c.failure("read", f.digest, f.offset, f.size, tries+1, err)
	}
	return n, nil
}

// read returns at least one byte or an error, after which there is no body.
func (f *fetch) read(p []byte) (int, error) {
	for {
		n, err := f.body.Read(p)
		f.offset += int64(n)
		if n > 0 {
			return n, nil // what ends the body will come again
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = protocol.Transient(errShortBlob)
		}
		f.set(nil)
		return 0, err
	}
}

// set replaces the body; after a Close there is none.
func (f *fetch) set(d *wire.Download) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.body != nil {
		f.body.Close() //nolint:errcheck // it is being given up
	}
	if f.body = d; f.gone && d != nil {
		d.Close() //nolint:errcheck // as above
	}
}

// Close gives up what is not read yet.
func (f *fetch) Close() error {
	f.cancel(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	if f.body != nil {
		f.body.Close() //nolint:errcheck // nothing is lost by it
	}
	return nil
}

// open asks for the rest of the blob.
func (f *fetch) open(ctx context.Context) error {
	d, err := f.c.get(ctx, f.c.url("blobs/"+f.digest.String()), f.offset)
	if err != nil {
		return err
	}
	skip, err := f.accept(d)
	if err == nil && skip > 0 {
		_, err = io.CopyN(io.Discard, d, skip)
	}
	if err != nil {
		d.Close() //nolint:errcheck // it is being given up
		return err
	}
	if f.offset > 0 {
		f.c.log.WithField("digest", f.digest).WithField("offset", f.offset).Info("download resumed")
	}
	f.set(d)
	return nil
}

// accept says how many bytes of the answer to leave out.
func (f *fetch) accept(d *wire.Download) (skip int64, err error) {
	switch d.Status {
	case http.StatusOK:
		if n, ok := contentLength(d.Header); ok && n != f.size {
			return 0, f.otherSize(n)
		}
		return f.offset, nil
	case http.StatusPartialContent:
		part, ok := protocol.ParsePart(d.Header)
		if !ok || part.Start != f.offset {
			return 0, protocol.Transient(errElsewhere)
		}
		if part.Total >= 0 && part.Total != f.size {
			return 0, f.otherSize(part.Total)
		}
		return 0, nil
	}
	a := d.Answer()
	se := protocol.Unexpected(a, time.Now())
	switch a.Status {
	case http.StatusNotFound, http.StatusGone, http.StatusRequestedRangeNotSatisfiable:
		return 0, protocol.Kind(protocol.ErrSource, fmt.Errorf("the blob is not there: %w", protocol.Plain(se)))
	}
	return 0, se
}

func (f *fetch) otherSize(n int64) error {
	return protocol.Kind(protocol.ErrSource, fmt.Errorf("the registry has %d bytes under this digest, the manifest says %d", n, f.size))
}

// get asks for a blob and follows it to where it is stored. Credentials go to
// the registry's own scheme, host and port only, and nothing leads from https
// to http.
func (c *Client) get(ctx context.Context, u *url.URL, offset int64) (*wire.Download, error) {
	for range maxRedirects {
		req := request(http.MethodGet, u, nil, 0)
		if offset > 0 {
			req.Header.Set("Range", protocol.RangeFrom(offset))
		}
		rt := c.rt
		if !protocol.SameOrigin(c.base, u) {
			rt = c.external
		}
		d, err := wire.Receive(ctx, rt, req, c.quick())
		if err != nil {
			c.log.WithField("request", "blob").WithField("error", protocol.Text(protocol.Classify(err).Err)).Debug("no answer")
			return nil, c.tokenAnswer(err)
		}
		c.answered.Store(true)
		c.log.WithField("request", "blob").WithField("status", d.Status).Debug("answered")
		if d.Status < 300 || d.Status > 399 {
			return d, nil
		}
		a := d.Answer()
		d.Close() //nolint:errcheck // read to its end
		to, err := protocol.ParseLocation(c.base, u, a.Header)
		if err != nil {
			return nil, protocol.Kind(protocol.ErrEndpoint, err)
		}
		u = to.URL
	}
	return nil, protocol.Kind(protocol.ErrEndpoint, errors.New("the registry redirects a blob again and again"))
}
