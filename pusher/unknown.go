// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// sendAgain sends the blobs that the registry misses in a manifest although it
// claimed to have them. Some versions of Artifactory answer 200 to HEAD for a
// blob that is not there (gardener/cc-utils#1752), and garbage collection may
// take a blob away after the check, or after this push has uploaded it. If the
// registry does not name the blobs, those that this push did not upload are
// suspected first. Each blob is sent again once. sent holds
// those that this manifest has waited for; it reports whether there was one more,
// so that the manifest is worth another try.
func (d *Delivery) sendAgain(ctx context.Context, g *graph, m *node, refusal error, sent map[digest.Digest]bool) (bool, error) {
	var answer *protocol.StatusError
	if !errors.As(refusal, &answer) || !answer.MissesBlob() {
		return false, nil
	}
	var named, claimed, all []*blob
	for _, b := range g.blobs {
		if !m.blobs[b.Digest] {
			continue
		}
		if answer.Mentions(b.Digest.String()) {
			named = append(named, b)
		}
		if b.isClaimed() {
			claimed = append(claimed, b)
		}
		all = append(all, b)
	}
	switch {
	case len(named) > 0:
	case len(claimed) > 0:
		named = claimed
	default:
		named = all
	}
	again := false
	for _, b := range named {
		if sent[b.Digest] {
			continue
		}
		ok, err := d.uploadAgain(ctx, b)
		if errors.Is(err, resume.ErrSource) {
			return false, nil // it is not here any more; the registry's own words say more
		}
		if err != nil {
			return false, err
		}
		sent[b.Digest] = true
		again = again || ok
	}
	return again, nil
}

// isClaimed reports whether the registry claimed to have the blob before this push.
func (b *blob) isClaimed() bool {
	b.again.Lock()
	defer b.again.Unlock()
	return b.sent || b.report.State == BlobExisted || b.report.State == BlobMounted
}

// uploadAgain sends a blob that the registry should have, unless that was done.
func (d *Delivery) uploadAgain(ctx context.Context, b *blob) (bool, error) {
	b.again.Lock()
	defer b.again.Unlock()
	if b.sent {
		return true, nil
	}
	b.report.State = BlobPending
	b.Missing, b.FalselyFound, b.MountFrom = true, true, ""
	r, err := d.c.Upload(ctx, b.Blob)
	b.report.took(r, err)
	b.sent = err == nil
	return b.sent, err
}
