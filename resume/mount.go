package resume

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
)

// Mount asks the registry to take the blob from another of its repositories
// (distribution-spec v1.1, end-11), whose name has no registry. It is false
// where the registry would have it sent instead: the session that it opened for
// that is cancelled, as far as the registry lets it. Size is for the events
// alone, 0 where it is not known.
func (c *Client) Mount(ctx context.Context, dgst digest.Digest, size int64, from string) (bool, error) {
	var mounted bool
	err := c.retry(ctx, subject{digest: dgst, size: size}, func(ctx context.Context, _ *retry.Loop) error {
		at := c.url("blobs/uploads/")
		at.RawQuery = url.Values{"mount": {dgst.String()}, "from": {from}}.Encode()
		a, err := c.send(ctx, request(http.MethodPost, at, nil, 0), c.quick(), nil)
		switch {
		case err != nil:
			return err
		case a.Status == http.StatusCreated:
			mounted = true
			return nil
		case a.Status != http.StatusAccepted:
			return protocol.Unexpected(a, time.Now())
		}
		if loc, err := protocol.ParseLocation(c.base, at, a.Header); err == nil {
			// Nobody waits for it: registries collect what is left of it.
			_, _ = c.send(ctx, request(http.MethodDelete, loc.URL, nil, 0), c.quick(), nil)
		}
		return nil
	})
	if err != nil {
		return false, c.failure("mount", dgst, 0, size, 0, err)
	}
	if mounted {
		c.emit(Event{Kind: Mounted, Digest: dgst, Size: size})
	}
	return mounted, nil
}

// maxRedirects is how often a document's storage may lead on to another place.
const maxRedirects = 3

// Document reads something small, at most 4 MiB: path is relative to the
// repository ("manifests/latest", "blobs/sha256:..."), accept the media types
// wanted. It follows redirects to where the registry stores blobs, without
// credentials there, by the rules for upload locations. Any status but 200 is
// the caller's to judge. The answer's body has been read and needs no Close.
func (c *Client) Document(ctx context.Context, path string, accept ...string) (*http.Response, error) {
	var out *http.Response
	err := c.retry(ctx, subject{}, func(ctx context.Context, _ *retry.Loop) error {
		u := c.url(path)
		for hops := 0; ; hops++ {
			r := request(http.MethodGet, u, nil, 0)
			for _, a := range accept {
				r.Header.Add("Accept", a)
			}
			a, err := c.send(ctx, r, c.quick(), nil)
			if err != nil {
				return err
			}
			if isStorage(u, a) && hops < maxRedirects {
				loc, err := protocol.ParseLocation(c.base, u, a.Header)
				if err != nil {
					return protocol.Kind(protocol.ErrEndpoint, err)
				}
				u = loc.URL
				continue
			}
			if a.Status != http.StatusOK {
				if se := protocol.Unexpected(a, time.Now()); protocol.Classify(se).Class == protocol.Break || a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
					return se
				}
			}
			out = answer(a)
			return nil
		}
	})
	if err != nil {
		return nil, c.failure("read", "", 0, 0, 0, err)
	}
	return out, nil
}

// answer makes a response whose body is in memory.
func answer(a *wire.Answer) *http.Response {
	return &http.Response{
		Status: http.StatusText(a.Status), StatusCode: a.Status, Header: a.Header, Request: a.Request,
		Body: io.NopCloser(bytes.NewReader(a.Body)), ContentLength: int64(len(a.Body)),
	}
}
