// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"fmt"

	"github.com/rpush-go/rpush/internal/protocol"
)

const (
	// maxLost ends an upload whose sessions are lost so many times in a row
	// without the registry ever holding more than before, if its odds are not
	// known.
	maxLost = 8
	// If breaks lose the sessions, the bytes sent between two of them tell the
	// odds: minCuts is from how many breaks on, and maxOdds how many times as large
	// as the bytes between two breaks no blob gets through. If connections break at
	// random, one session in e to that power does: 1 in 400.
	minCuts = 5
	maxOdds = 6
	// maxPasses is how many times the bytes of the blob are sent if the odds are
	// better, and cheap how many bytes may be sent in any case.
	maxPasses = 3
	cheap     = 8 * proof
)

// LostError is the end of an upload whose sessions the registry lost again and
// again. Nothing of the blob is kept. Four things help: layers smaller than what
// connections carry between two breaks, a host or line that resets no
// connections, a proxy before the registry that buffers requests, or a registry
// that keeps what it received, such as distribution 3. It is of the kind
// ErrInterrupted.
type LostError struct {
	// Times is how many sessions were lost.
	Times int
	// Between is how many bytes of the blob were sent for each session that a
	// break of its connection lost. 0 is not measured.
	Between int64
	// Size of the blob in bytes.
	Size int64
	// Err is how the last one was lost.
	Err error
}

func (e *LostError) Error() string {
	if e.Between > 0 {
		return fmt.Sprintf("the registry keeps nothing of an upload whose connection breaks, and connections break every %s on average: "+
			"%s in one piece did not get through (%d upload sessions lost, the last because: %v)",
			inMiB(e.Between), inMiB(e.Size), e.Times, e.Err)
	}
	return fmt.Sprintf("the registry lost the upload session %d times in a row, the last time because: %v", e.Times, e.Err)
}

// inMiB is a number of bytes for people.
func inMiB(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/mib) }

// Unwrap returns how the last session was lost.
func (e *LostError) Unwrap() error { return e.Err }

// drop gives up the session. The next step opens a new one.
func (u *upload) drop(why error) (step, error) {
	if err := u.origin.replaceSession(why); err != nil {
		return stepSettle, err
	}
	cut := u.sess.gone
	u.leave()
	u.gaveUp()
	u.sess, u.res.Continued = nil, 0
	u.forget()
	u.res.Restarts++
	u.c.log.WithField("digest", u.blob.Digest).WithField("error", protocol.Text(why)).Warn("upload session lost")
	u.emit(Event{Kind: Lost, Err: why})
	if u.excused { // it took a smaller body to find out, and may take more
		u.excused = false
	} else if u.lost++; u.ends(cut) {
		e := &LostError{Times: u.lost, Size: u.blob.Size, Err: protocol.Plain(why)}
		if cut {
			e.Times, e.Between = u.cuts, u.handed/int64(u.cuts)
			u.c.pace.fruitless()
		}
		return stepOpen, protocol.Kind(protocol.ErrInterrupted, e)
	}
	return stepOpen, protocol.Transient(fmt.Errorf("upload session lost: %w", why))
}

// ends reports whether the session that was just lost is the last one. cut: a
// body of it broke.
func (u *upload) ends(cut bool) bool {
	if !cut || u.handed < min(proof, 2*u.blob.Size) {
		return u.lost >= maxLost
	}
	between := u.handed / int64(u.cuts)
	return u.cuts >= minCuts && u.blob.Size/maxOdds > between || u.handed >= max(maxPasses*u.blob.Size, cheap)
}

// refuse gives up a session that does not take what comes next.
func (u *upload) refuse(why *protocol.StatusError) (step, error) {
	switch {
	case u.mistrusts():
	case u.sess.most > 0:
		u.c.pace.refusedMore()
	case u.sess.failed: // it may hold one byte, which "0-0" does not tell
	default:
		if u.hopeless++; u.hopeless > 1 {
			return stepSettle, why // not even the first bytes, and not by accident
		}
	}
	return u.drop(fmt.Errorf("it refuses to continue where it says it stands: %w", why))
}

// mistrusts drops what is remembered about the registry, if that may be why the
// session is lost. The loss does not count then.
func (u *upload) mistrusts() bool {
	if u.sess.recorded || !u.c.pace.mistrust() {
		return false
	}
	u.c.log.WithField("digest", u.blob.Digest).Info("what was learnt about the registry before does not hold, forgetting it")
	u.excused = true
	return true
}

// vanished notes a session that is gone although nothing broke, and reports
// whether fewer are opened at once from now on. The loss does not count then.
func (u *upload) vanished() bool {
	if u.sess.recorded || !u.c.pace.vanished() {
		return false
	}
	u.c.log.WithField("parallel", u.c.pace.dialect().Parallel).Info("upload sessions vanish, opening fewer at once")
	u.excused = true
	return true
}

// smallParts reports whether the registry fails the commit because of the size
// of the chunks, as ECR does with 500. Larger ones are sent then.
func (u *upload) smallParts() bool {
	s, least := u.sess, maxFailedCommits
	if s.again {
		least-- // nobody says whether the session lives, and it is given up next
	}
	if !s.small || s.commits < least || !u.c.pace.smallParts() {
		return false
	}
	u.c.log.WithField("digest", u.blob.Digest).Info("the registry fails the commit of small chunks, sending larger ones")
	u.excused = true
	return true
}
