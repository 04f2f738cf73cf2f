// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"bytes"
	"context"
	"io"
	"net/http"
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
		s, a, err := c.openSession(ctx, subject{digest: dgst, size: size}, from)
		switch {
		case a == nil:
			return err
		case a.Status == http.StatusCreated:
			mounted = true
			return nil
		case a.Status != http.StatusAccepted:
			return protocol.Unexpected(a, time.Now())
		case s != nil:
			_, _ = s.cancel(ctx) // nobody waits for it: registries collect what is left of it
		}
		return nil
	})
	if err != nil {
		return false, c.failure("mount", dgst, 0, size, 0, err)
	}
	if mounted {
		c.emit(ctx, Event{Kind: Mounted, Digest: dgst, Size: size})
	}
	return mounted, nil
}

// answer makes a response whose body is in memory.
func answer(a *wire.Answer) *http.Response {
	return &http.Response{
		Status: http.StatusText(a.Status), StatusCode: a.Status, Header: a.Header, Request: a.Request,
		Body: io.NopCloser(bytes.NewReader(a.Body)), ContentLength: int64(len(a.Body)),
	}
}
