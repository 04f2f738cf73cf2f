// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
)

const (
	// maxRefused ends a session that refuses so many requests in a row although
	// it says where to continue.
	maxRefused = 3
	// maxAsks bounds how often the offset is asked in a row while the answers
	// differ. The first two are firstSettle apart, later ones up to maxSettle.
	maxAsks     = 60
	firstSettle = 10 * time.Millisecond
	maxSettle   = time.Second
)

// settle asks the registry for the offset until it is sure.
func (u *upload) settle(ctx context.Context) (step, error) {
	s := u.sess
	wait, before := firstSettle, int64(-1)
	for range maxAsks {
		offset, err := u.ask(ctx)
		if errors.Is(err, errLost) {
			if u.blind() {
				u.keep(ctx)
				return u.proceed(), nil
			}
			if s.kept != nil {
				return u.expired(err)
			}
			switch {
			case s.cut != nil:
				// The sockets hold all of a small chunk, and a break in the middle of
				// it looks like a lost answer.
				if s.gone = !s.cut.whole || s.cut.handed < min(2*partSize, u.blob.Size); s.gone {
					u.cuts++
				}
				u.c.pace.lost(*s.cut)
			case !s.failed && (u.mistrusts() || u.vanished()):
				// No break explains the loss.
			case s.refused > 0 && s.most > 0:
				u.c.pace.refusedMore()
			}
			waited := s.cut != nil || s.ended != nil
			next, err := u.drop(err)
			if waited && protocol.IsTransient(err) {
				return next, nil // the break has been waited for; a registry that answers need not be
			}
			return next, err
		}
		if err != nil {
			if ctx.Err() == nil && u.leadsNowhere(ctx, err) {
				return u.drop(err)
			}
			return stepSettle, err
		}
		if s.offset.state != draining || offset == before {
			next, err := u.accept(offset)
			if err == nil {
				u.keep(ctx)
			}
			return next, err
		}
		if before >= 0 {
			wait = min(2*wait, maxSettle)
		}
		before = offset
		if err := sleep(ctx, wait); err != nil {
			return stepSettle, err
		}
	}
	return stepSettle, protocol.Transient(errors.New("the upload offset keeps changing"))
}

// ask asks the registry for the offset.
func (u *upload) ask(ctx context.Context) (int64, error) {
	offset, err := u.sess.ask(ctx)
	if err == nil {
		u.sess.failures = 0
	}
	return offset, err
}

// accept takes an offset that the registry said.
func (u *upload) accept(said int64) (step, error) {
	s := u.sess
	s.probing = false
	if said != s.said {
		s.said, s.refused = said, 0
	}
	if s.kept != nil {
		u.found(said)
	}
	d := u.c.pace.dialect()
	held, tries := candidates(said, s.acked, s.sent, d)
	if held > s.sent {
		// More than anybody sent it. The digest would tell in the end, after
		// all bytes were sent in vain.
		return u.drop(fmt.Errorf("the registry claims to hold %d bytes of an upload that was sent %d", said, s.sent))
	}
	if held < s.firm && !d.StuckRange {
		// It has lost bytes: distribution on S3 does so after parts below 5 MiB. The
		// digest would be refused after all was sent.
		return u.drop(fmt.Errorf("the registry holds %d bytes of an upload of which it had acknowledged %d", held, s.firm))
	}
	if held < s.acked {
		s.trusted = s.refused == 0 && s.answered
	}
	n := min(s.refused, maxRefused-1)
	offset := tries[n]
	s.guessed = n == 1 && offset == said-1 && offset > s.acked
	if u.rejected > 0 && s.acked > 0 && offset == s.acked+1 {
		offset = s.acked // rather Quay's way of counting than a lie again
	}
	if u.rejected > 0 && offset != s.acked {
		// An offset lied once: from now on only the ends of acknowledged
		// chunks count. Smaller chunks have more of them.
		if s.cut != nil {
			u.c.pace.noGain(s.cut.handed)
		}
		return u.drop(errors.New("not continuing inside a chunk after a refused digest"))
	}
	if offset < u.origin.firstOffset() {
		return u.drop(fmt.Errorf("it stands at %d, before what can be sent again", offset))
	}
	u.count(offset)
	if lost := s.cutBack(offset); lost > 0 {
		if offset > s.start {
			u.c.pace.keptPart(lost, s.cut.survived)
		} else {
			u.c.pace.keptNothing(s.cut.handed, s.cut.survived)
		}
	}
	if offset <= s.start {
		u.gaveUp()
	}
	s.cut, s.ended = nil, nil
	u.settleAt(offset)
	return u.proceed(), nil
}

// blind goes on without an answer to where the session stands. After a PATCH
// that was answered well, a 404 means that the registry has no such endpoint, as
// on ECR, and our own count holds. After a break on a registry known for that,
// the next PATCH goes to the last acknowledged byte: it is taken, or the refusal
// says where the session stands, or the session is lost. It reports false if
// only the last is left.
func (u *upload) blind() bool {
	s := u.sess
	switch {
	case s.answered && s.stuck:
		s.trusted, s.noStatus = true, true
	case u.c.pace.dialect().NoStatus && !s.probing && s.refused == 0 && s.acked < u.blob.Size && s.acked >= u.origin.firstOffset() && u.rejected == 0:
		if s.kept != nil {
			u.found(s.acked)
		}
		s.probing = true
	default:
		return false
	}
	u.gaveUp() // who knows what was kept
	u.settleAt(s.acked)
	return true
}

// proved takes note that the registry went on with a session by our own count.
func (u *upload) proved() {
	if s := u.sess; s.trusted {
		s.trusted = false
		u.c.pace.countsAlone(s.noStatus)
	}
}

// settleAt takes note that the session holds n bytes.
func (u *upload) settleAt(n int64) {
	s := u.sess
	s.offset = settledAt(n)
	if n > s.most {
		s.most, u.steps = n, 0
		u.loop.Progress()
	}
	if n > u.best {
		u.best, u.lost = n, 0
	}
	u.emit(Event{Kind: Settled, Offset: n})
}

// unsettle forgets the offset: nothing is sent before the registry was asked.
// drains: a connection was given up that may still deliver bytes.
func (u *upload) unsettle(drains bool) {
	if s := u.sess; s != nil {
		s.offset.unsettle(drains)
		s.broken = true
	}
}

// cutBack is how many bytes the last break cost, if the session stands at offset.
func (s *sessionHistory) cutBack(offset int64) int64 {
	if s.cut == nil {
		return 0
	}
	return s.start + s.cut.handed - offset
}
