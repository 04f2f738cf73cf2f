// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

// probeBody bounds a PATCH that may be refused, because nobody says where the
// session stands. ECR takes no smaller parts.
const probeBody = 5 << 20

// cut is a PATCH that got no answer.
type cut struct {
	whole    bool  // all of its body was handed to the connection
	handed   int64 // bytes of its body that were
	survived int64 // bytes that its connection had carried
}

// send PATCHes what comes next (end-5), from a reader of its own.
func (u *upload) send(ctx context.Context) (step, error) {
	if u.inOne() {
		return u.put(ctx)
	}
	s := u.sess
	// Once something was sent, Content-Range tells where the rest belongs.
	start := s.offset.bytes
	untouched := start == 0 && s.sent == 0
	whole := untouched && !u.origin.isRanged()
	n, fresh := u.c.pace.next(u.blob.Size-start, whole)
	if s.probing {
		n = min(n, max(probeBody, s.lengths.Min)) // it may be refused
	}
	if part := min(s.part, u.blob.Size-start); part > 0 {
		if n < part && s.cuts > 1 {
			return u.drop(fmt.Errorf("chunks of %d bytes do not get through, and the session takes no smaller ones", part))
		}
		n = part
	}
	cut, from, sent := s.cut, s.start, s.sent
	end := start + n
	whole = whole && end == u.blob.Size
	r, err := u.blob.open(ctx, start)
	if err != nil {
		return stepSend, err
	}
	if s.broken {
		s.broken = false
		if start > 0 {
			u.res.Resumes++
			u.c.log.WithField("digest", u.blob.Digest).WithField("offset", start).Info("upload resumed")
			u.emit(Event{Kind: Resumed, Offset: start})
		}
	}
	body := wire.NewBody(r, n)
	if fresh {
		ctx = wire.Fresh(ctx)
	}
	var gone atomic.Int64
	a, err := s.append(ctx, chunk{body: body, start: start, end: end, ranged: !whole}, func(n int64) {
		u.sentTo(min(start+gone.Add(n), end))
	})
	if err := u.sent(ctx, body, start, n, err); err != nil {
		return stepSettle, err
	}
	// A session that nothing was sent to stands at 0 for certain: 416 to its first
	// bytes can only be about their number.
	certain := protocol.Unexpected(a, time.Now()).TooLarge()
	large := certain || a.Status == http.StatusRequestedRangeNotSatisfiable && untouched
	switch {
	case large && u.c.pace.tooLarge(n, !whole && a.Status != http.StatusRequestEntityTooLarge, certain):
		u.c.log.WithField("digest", u.blob.Digest).WithField("size", n).Info("body too large for the registry, trying smaller ones")
		u.steps, u.excused = 0, true
		u.unsettle(true)
		return stepSettle, nil
	case a.Status >= 200 && a.Status < 300:
		return u.acknowledge(ctx, end, a)
	case a.Status == http.StatusBadRequest, a.Status == http.StatusNotFound, a.Status == http.StatusGone,
		a.Status == http.StatusConflict, a.Status == http.StatusRequestedRangeNotSatisfiable:
		// Which of these means what differs between registries. The offset tells.
		u.unsettle(true)
		if s.probing {
			s.cut, s.start = cut, from // what broke before is judged now
		}
		refusal := protocol.Unexpected(a, time.Now())
		if at, ok := refusal.Expects(); ok && at != start && s.acked <= at && at <= sent {
			return u.accept(at)
		}
		if s.refused++; s.refused >= maxRefused {
			return u.refuse(refusal)
		}
		return stepSettle, nil
	}
	s.failed, s.probing = true, false
	u.unsettle(true)
	failure := protocol.Unexpected(a, time.Now())
	u.endedBy(failure, body.Sent(), a.Took) // without the wait for its turn
	if a.Status == http.StatusInternalServerError && (start == 0 && !untouched || s.guessed) {
		// Pulp answers 500 to a wrong offset: to one that was guessed, and to 0 if it
		// holds the one byte that "0-0" does not tell from none.
		if s.refused++; s.refused >= maxRefused {
			return u.refuse(failure)
		}
	}
	return stepSettle, failure
}

// sent takes note of a body of n bytes from start that went out, and of how it
// broke if it did.
func (u *upload) sent(ctx context.Context, body wire.Body, start, n int64, err error) error {
	s, end, sent := u.sess, start+n, body.Sent()
	u.count(-1) // an earlier one
	u.handed += sent
	s.start, s.cut, s.ended, s.answered = start, nil, nil, false
	if err == nil || u.origin.isForwarded() {
		// An early answer may overtake bytes that are still going out, and what
		// goes out on connections of others is not known exactly.
		s.sent = max(s.sent, end)
	}
	if err == nil {
		u.res.Sent += sent
		return nil
	}
	u.unsure = unsure{from: start, sent: sent}
	s.cuts++
	s.sent = max(s.sent, start+sent)
	s.failed, s.probing = true, false
	u.unsettle(true)
	u.origin.onBreak(err)
	if errors.Is(err, wire.ErrSpent) {
		return err
	}
	if bad := body.Err(); bad != nil && ctx.Err() == nil {
		return bad
	}
	if conn, _, ok := exchange(err); ok {
		u.unsure.sent = max(sent-conn.Unacked, 0)
		s.cut = &cut{whole: sent == n, handed: sent, survived: conn.Sent}
	}
	return err
}

// unsure is a body that broke, before it is known how much of it arrived: it began
// at from in the blob, and the other end of the connection acknowledged sent bytes
// of it, or the kernel took as many if nobody knows.
type unsure struct{ from, sent int64 }

// count adds a body that broke to Result.Sent once it is known where the registry
// stands. Of a body that it kept a part of, only that part counts: the rest was in
// the buffers of hosts on the way. A negative offset is not known.
func (u *upload) count(offset int64) {
	if u.unsure.sent > 0 && offset > u.unsure.from {
		u.unsure.sent = offset - u.unsure.from
	}
	u.res.Sent += u.unsure.sent
	u.unsure = unsure{}
}

// acknowledge takes the answer to a PATCH that went well, up to end.
func (u *upload) acknowledge(ctx context.Context, end int64, a *wire.Answer) (step, error) {
	s := u.sess
	held, ranged := protocol.ParseRange(a.Header)
	if a.Status != http.StatusAccepted && !ranged && a.Header.Get("Location") == "" {
		// A web page of some proxy on the way. Nobody knows what became of it.
		u.unsettle(true)
		return stepSettle, protocol.Transient(fmt.Errorf("an answer of status %d that no registry gives to a PATCH", a.Status))
	}
	if s.guessed {
		u.c.pace.endsAtCount()
	}
	u.c.pace.acknowledged()
	u.c.pace.inTime(end - s.start)
	u.timedOut = 0
	u.proved()
	s.cuts = 0
	if s.lengths.Max > 0 && s.start == 0 && end < u.blob.Size {
		s.part = end // Cloudflare's registry refuses chunks of another size, but for the last
	}
	s.small = s.small || end-s.start < partSize && end < u.blob.Size
	before := s.ranged
	s.ranged, s.answered, s.stuck = held.Bytes, true, ranged && before > 0 && held.Bytes == before
	s.acked, s.refused, s.guessed, s.probing, u.excused = end, 0, false, false, false
	if err := s.follow(ctx, a); err != nil {
		return stepSettle, err
	}
	if ranged && held.Bytes != end && (!held.Ambiguous || end > 1) {
		// An answer that contradicts what was sent settles nothing, unless the
		// registry is known for it.
		if s.stuck && u.c.pace.dialect().StuckRange {
			s.trusted = true
		} else {
			u.unsettle(false)
			return stepSettle, nil
		}
	} else {
		s.firm = end
	}
	s.idle = 0
	u.settleAt(end)
	u.keep(ctx)
	return u.proceed(), nil
}
