// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
)

var (
	errEndedEarly = errors.New("the registry ended the answer early")
	errOtherPart  = errors.New("the registry sent another part of the blob than was asked for")
	errTooSlow    = errors.New("the registry sends too slowly")
	errOtherSize  = errors.New("the registry sends something of another size than it began with")
)

// maxKept is how much of an answer that is not a blob is kept until it is whole,
// so that the client never sees it break, in bytes.
const maxKept = 1 << 20

// get carries out a GET or HEAD. Redirects of a blob are followed here: so the
// gateway can go on where the download breaks, and credentials do not follow. A
// blob whose size is known continues with Range.
func (g *Gateway) get(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodHead {
		return g.repeat(r, nil)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	r = r.WithContext(ctx)
	d := &download{g: g, req: r, cancel: cancel, floor: wire.NewFloor(0, g.o.RetryFor), blob: about(r.URL) == aboutBlob}
	resp, err := g.untilAnswered(r, func(ctx context.Context, e *exchange) error {
		part, err := d.open(ctx, r.Header.Get("Range"))
		switch {
		case err != nil:
			return err
		case part.Status == http.StatusOK || part.Status == http.StatusPartialContent:
			whole, err := d.begin(part)
			if err == nil {
				e.out = whole
			}
			return err
		}
		a := part.Answer()
		part.Close() //nolint:errcheck // read to its end
		return e.judge(ctx, a)
	})
	if err != nil || d.body == nil { // else Close does it
		cancel(nil)
	}
	return resp, err
}

// download is the body of an answer on its way to the client.
type download struct {
	g      *Gateway
	req    *http.Request // whose context cancel ends
	cancel context.CancelCauseFunc
	floor  *wire.Floor // bounds the time that reading takes
	blob   bool
	body   *wire.Download
	// at is the offset in the blob of the next byte, end that behind the last one.
	// end is -1 if it is not known: then a break ends the download.
	at, end int64
	total   int64 // of the blob, -1 if it is not known
	whole   bool  // the answer was the whole blob
}

// open asks for the blob, or the given part, wherever it is.
func (d *download) open(ctx context.Context, span string) (*wire.Download, error) {
	c, _ := callOf(ctx)
	req := again(ctx, d.req)
	for range maxRedirects + 1 {
		req.Header.Del("Range")
		if span != "" {
			req.Header.Set("Range", span)
		}
		part, err := wire.Receive(ctx, byCall{}, req, d.g.limits(false))
		if err != nil {
			return nil, err
		}
		c.up.answered.Store(true)
		if !d.blob {
			return part, nil
		}
		to, err := redirected(c, req.URL, part.Status, part.Header)
		if err == nil && to == nil {
			return part, nil
		}
		part.Close() //nolint:errcheck // it leads elsewhere
		if err != nil {
			return nil, err
		}
		req = req.Clone(ctx)
		req.URL, req.Host = to, ""
	}
	return nil, protocol.Kind(protocol.ErrEndpoint, errors.New("the registry redirects a blob again and again"))
}

// begin makes the client's answer of the first part.
func (d *download) begin(part *wire.Download) (*http.Response, error) {
	d.body, d.at, d.end, d.total = part, 0, -1, -1
	out := &http.Response{
		StatusCode: part.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: part.Header.Clone(), Body: d, ContentLength: -1,
	}
	length, err := strconv.ParseInt(part.Header.Get("Content-Length"), 10, 64)
	if err == nil {
		out.ContentLength = length
	}
	if !d.blob {
		return out, d.keep(out)
	}
	if err == nil && part.Header.Get("Content-Encoding") == "" {
		if part.Status == http.StatusOK {
			d.end, d.total, d.whole = length, length, true
		} else if p, ok := protocol.ParsePart(part.Header); ok {
			d.at, d.end, d.total = p.Start, p.Start+length, p.Total
		}
	}
	return out, nil
}

// keep reads what is small to its end before the client gets any of it.
func (d *download) keep(out *http.Response) error {
	head, err := io.ReadAll(io.LimitReader(d, maxKept))
	if err != nil {
		d.body.Close() //nolint:errcheck // it is being given up
		d.body = nil
		return err
	}
	out.Body = &struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), d), d}
	return nil
}

// Read goes through the loop only if something fails.
func (d *download) Read(p []byte) (int, error) {
	if d.at == d.end && d.end >= 0 {
		return 0, io.EOF
	}
	defer d.floor.Reading(func() { d.cancel(errTooSlow) })()
	n, broke := d.read(p)
	if broke == nil || errors.Is(broke, io.EOF) || d.end < 0 {
		return n, broke
	}
	err := d.g.loop(d.req.Context(), "blob", func(ctx context.Context, l *retry.Loop) (err error) {
		if err, broke = broke, nil; err != nil {
			l.Progress() // bytes came before the break
			return err
		}
		if d.body == nil {
			if err := d.resume(ctx); err != nil {
				return err
			}
		}
		n, err = d.read(p)
		return err
	})
	return n, err
}

// read returns at least one byte or an error, after which there is no body.
func (d *download) read(p []byte) (int, error) {
	if d.end >= 0 {
		p = p[:min(int64(len(p)), d.end-d.at)]
	}
	for {
		n, err := d.body.Read(p)
		d.at += int64(n)
		d.floor.Grow(int64(n))
		switch {
		case n > 0:
			return n, nil // what ended the body will come again
		case err == nil:
			continue
		case d.end < 0:
			return 0, err
		case errors.Is(err, io.EOF):
			err = protocol.Transient(errEndedEarly)
		}
		d.body.Close() //nolint:errcheck // it is being given up
		d.body = nil
		return 0, err
	}
}

// resume asks for the rest.
func (d *download) resume(ctx context.Context) error {
	part, err := d.open(ctx, fmt.Sprintf("bytes=%d-%d", d.at, d.end-1))
	if err != nil {
		return err
	}
	var skip int64
	switch part.Status {
	case http.StatusPartialContent:
		p, ok := protocol.ParsePart(part.Header)
		if !ok || p.Start != d.at {
			err = protocol.Transient(errOtherPart)
		} else if p.Total >= 0 && d.total >= 0 && p.Total != d.total {
			err = protocol.Kind(protocol.ErrRefused, errOtherSize)
		}
	case http.StatusOK:
		length, e := strconv.ParseInt(part.Header.Get("Content-Length"), 10, 64)
		if e != nil || !d.whole && d.total < 0 || d.total >= 0 && length != d.total {
			err = protocol.Kind(protocol.ErrRefused, errOtherSize)
		}
		skip = d.at
	default:
		err = protocol.Unexpected(part.Answer(), time.Now())
	}
	if err == nil && skip > 0 {
		_, err = io.CopyN(io.Discard, part, skip)
	}
	if err != nil {
		part.Close() //nolint:errcheck // it is being given up
		return err
	}
	d.g.log().WithField("offset", d.at).Info("download resumed")
	d.body = part
	return nil
}

// Close implements io.Closer.
func (d *download) Close() error {
	defer d.cancel(nil)
	if d.body != nil {
		return d.body.Close()
	}
	return nil
}
