// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
)

// look says of each manifest whether it is there.
func (d *Delivery) look(ctx context.Context, g *graph, ids []string) error {
	return each(ctx, d.p.o.Checks, slices.Concat(slices.Concat(g.levels, g.more)...), func(ctx context.Context, m *node) error {
		id := m.digest.String()
		if m == g.root {
			id = ids[0]
		}
		there, err := d.has(ctx, id, m)
		m.report.Existed, m.report.Pushed = there, there
		return err
	})
}

// ExistsError says that a tag which must not be overwritten is another
// manifest's. It is of the kind resume.ErrRefused.
type ExistsError struct {
	Reference string
	// Digest is what the tag points to.
	Digest digest.Digest
}

func (e *ExistsError) Error() string {
	return fmt.Sprintf("%s exists already, as %s", e.Reference, cmp.Or(e.Digest.String(), "another manifest"))
}

// Is makes it a resume.ErrRefused.
func (e *ExistsError) Is(target error) bool { return target == protocol.ErrRefused }

// unclobbered fails where a tag is another manifest's.
func (d *Delivery) unclobbered(ctx context.Context, g *graph, ids []string) error {
	check := func(tag string, m *node) error {
		if strings.Contains(tag, ":") {
			return nil // a digest cannot be overwritten
		}
		resp, err := d.ask(ctx, http.MethodHead, tag, m)
		if err != nil || resp.StatusCode == http.StatusNotFound {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return d.c.Refused("check manifest", resp)
		}
		got, err := d.digestOf(ctx, resp, tag, m)
		if err != nil {
			return err
		}
		if got != m.digest {
			return &ExistsError{Reference: d.ref.Context().Tag(tag).Name(), Digest: got}
		}
		return nil
	}
	for _, id := range ids {
		if err := check(id, g.root); err != nil {
			return err
		}
	}
	for _, m := range slices.Concat(g.more...) {
		for _, tag := range m.tags {
			if err := check(tag, m); err != nil {
				return err
			}
		}
	}
	return nil
}
