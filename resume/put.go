// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

// inOne reports whether the blob goes in the body of the commit: two requests
// for a blob instead of three. Only blobs that are not worth resuming go so.
// It is tried once for each blob, since a PATCH can be resumed: Quay and zot
// cancel a session whose PUT breaks.
func (u *upload) inOne() bool {
	size := u.blob.Size
	if u.apart || u.origin.isForwarded() || size == 0 || size >= min(u.c.o.KeepFrom, DefaultKeepFrom) || u.sess.offset.bytes > 0 || u.sess.sent > 0 {
		return false
	}
	if u.c.pace.dialect().NoPutBody {
		return false
	}
	n, _ := u.c.pace.next(size, true)
	return n == size
}

// put commits the session with the whole blob as the body (end-6).
func (u *upload) put(ctx context.Context) (step, error) {
	s, size := u.sess, u.blob.Size
	r, err := u.blob.open(ctx, 0)
	if err != nil {
		return stepSend, err
	}
	if _, fresh := u.c.pace.next(size, true); fresh {
		ctx = wire.Fresh(ctx)
	}
	body := wire.NewBody(r, size)
	s.whole, u.apart = true, true
	var gone atomic.Int64
	a, err := s.commit(ctx, u.blob.Digest, body, size, func(n int64) {
		u.sentTo(min(gone.Add(n), size))
	})
	if err := u.sent(ctx, body, 0, size, err); err != nil {
		u.apart = !errors.Is(err, wire.ErrSpent)
		return u.inDoubt(), err
	}
	return u.committed(ctx, a)
}

// provedPut takes note of which kind of commit the registry took.
func (u *upload) provedPut() {
	switch {
	case u.sess.whole:
		u.c.pace.takesPut()
	case u.refused:
		u.c.pace.refusesPut()
	}
}

// refusedPut sends a blob in a PATCH that the registry does not take in the body
// of a commit. The blob is known not to be there.
func (u *upload) refusedPut(ctx context.Context, refusal *protocol.StatusError) (step, error) {
	switch refusal.Status {
	case http.StatusRequestEntityTooLarge:
		if !u.c.pace.tooLarge(u.blob.Size, false, true) {
			return stepCommit, refusal
		}
	case http.StatusBadRequest:
		u.refused = true
		return u.reject(ctx, refusal)
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusConflict, http.StatusGone, http.StatusLengthRequired,
		http.StatusUnsupportedMediaType, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		u.refused = true
	default:
		return stepCommit, refusal
	}
	return u.abandon(), nil
}

// abandon leaves a session that was to be committed with a body. So small a blob
// is sent again from its start in a session of its own: the old one may be gone,
// and bytes that are still under way must not mix with new ones. The registry
// has just said that it does not have the blob. If it is assembling it all the
// same, sending it once more does no harm.
func (u *upload) abandon() step {
	u.sess, u.blob.Missing = nil, true
	return stepOpen
}
