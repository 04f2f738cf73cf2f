// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

const (
	// maxFailedCommits is how often a commit may fail at the registry before the
	// chunks of its session are blamed, if they are small.
	maxFailedCommits = 3
	// commitRate is the slowest a registry is expected to assemble a blob at, in
	// bytes per second, after a commit whose answer was lost; commitLeast is the
	// least time that it is given.
	commitRate  = 8 << 20
	commitLeast = 30 * time.Second
)

var (
	errCommitting  = errors.New("no answer to the commit yet")
	errFailsCommit = errors.New("the registry fails every commit of this session")
	errSmallParts  = errors.New("the registry fails the commit of an upload in small chunks")
)

// commit asks the registry to make the session a blob (end-6).
func (u *upload) commit(ctx context.Context) (step, error) {
	u.emit(Event{Kind: Committing, Offset: u.sess.offset.bytes})
	a, err := u.sess.commit(ctx, u.blob.Digest, nil, 0, nil)
	if err != nil {
		u.origin.onBreak(err)
		return u.inDoubt(), err
	}
	return u.committed(ctx, a)
}

// committed takes the answer to a commit.
func (u *upload) committed(ctx context.Context, a *wire.Answer) (step, error) {
	s := u.sess
	switch {
	case a.Status == http.StatusCreated && (s.recorded || !protocol.SameOrigin(u.c.base, a.Request.URL)):
		return u.confirm(ctx)
	case a.Status == http.StatusCreated:
		u.proved()
		u.provedPut()
		return u.finish(Committed), nil
	case a.Status >= 200 && a.Status < 300:
		// Not what the spec says: only the blob itself is proof.
		return u.inDoubt(), protocol.Transient(fmt.Errorf("the commit got an answer of status %d, which is none", a.Status))
	}
	refusal := protocol.Unexpected(a, time.Now())
	if v := protocol.Classify(refusal); v.Class == protocol.Break {
		if a.Status == http.StatusInternalServerError {
			s.commits++
		}
		u.failsEmpty(refusal)
		if v.Busy && !s.whole {
			return stepCommit, refusal // it was not carried out
		}
		return u.inDoubt(), refusal
	}
	// An earlier commit may have been carried out after all.
	exists, err := u.arrived(ctx)
	switch {
	case err != nil:
		return u.inDoubt(), err
	case exists:
		return u.finish(Committed), nil
	case s.whole:
		return u.refusedPut(ctx, refusal)
	case a.Status == http.StatusNotFound || a.Status == http.StatusGone:
		if !s.failed {
			u.vanished()
		}
		return u.drop(errLost)
	case a.Status == http.StatusRequestedRangeNotSatisfiable || a.Status == http.StatusConflict:
		u.unsettle(false)
		if s.refused++; s.refused >= maxRefused {
			return u.drop(refusal)
		}
		return stepSettle, nil
	case a.Status == http.StatusBadRequest:
		return u.reject(ctx, refusal)
	}
	return stepCommit, refusal
}

// confirm asks the registry for the blob after a commit that another host
// answered, or that belongs to a session of a record: neither answer proves
// that the registry has the blob.
func (u *upload) confirm(ctx context.Context) (step, error) {
	exists, err := u.arrived(ctx)
	if err == nil && exists {
		return u.finish(Committed), nil
	}
	if err == nil {
		err = protocol.Transient(errors.New("the commit was answered, and the registry does not have the blob yet"))
	}
	return u.inDoubt(), err
}

// reject finds out whose fault a refused digest is. Registries say it with
// DIGEST_INVALID, or with a code that can mean a lost session as well.
func (u *upload) reject(ctx context.Context, refusal *protocol.StatusError) (step, error) {
	if u.origin.firstOffset() > 0 {
		return stepCommit, refusal // nobody has the bytes before
	}
	if err := u.blob.verify(ctx); err != nil {
		return stepCommit, err
	}
	// Without a break no offset can have been wrong, so the answer is about what
	// the blob contains.
	if u.undisturbed() && refusal.RefusesContent() {
		return stepCommit, &ContentError{Err: refusal}
	}
	if u.rejected++; u.rejected > 1 {
		if refusal.Has(transport.DigestInvalidErrorCode) {
			return stepCommit, fmt.Errorf("the source is good, its bytes were sent twice, and still: %w", refusal)
		}
		return stepCommit, &ContentError{Err: refusal}
	}
	why := "the registry refuses the digest of a good source: an offset it gave was wrong"
	if !refusal.Has(transport.DigestInvalidErrorCode) {
		why = "the registry refuses the commit of a good source"
	}
	u.warn(errors.New(why + "; sending the blob again"))
	return u.drop(refusal)
}

// undisturbed reports whether nothing has gone wrong in this upload.
func (u *upload) undisturbed() bool {
	return u.res.Breaks == 0 && u.res.Resumes == 0 && u.res.Restarts == 0 && u.sess.refused == 0 && !u.sess.recorded
}

// arrived asks for the blob after something of it was sent.
func (u *upload) arrived(ctx context.Context) (bool, error) {
	size := u.blob.Size
	if !u.origin.knowsSize() {
		size = -1
	}
	if u.blob.FalselyFound {
		return u.c.arrivedByGET(ctx, u.blob.Digest, size, true)
	}
	return u.c.arrived(ctx, u.blob.Digest, size, u.blob.Size)
}

// resolve finds out what became of a commit that got no clear answer. The blob
// is asked for first: if it is there, nothing else matters.
func (u *upload) resolve(ctx context.Context) (step, error) {
	exists, err := u.arrived(ctx)
	if err != nil {
		return stepResolve, err
	}
	if exists {
		return u.finish(Committed), nil
	}
	if u.sess.whole {
		return u.abandon(), nil
	}
	if u.emptyFailures > 0 {
		return u.emptyAgain()
	}
	offset, err := u.ask(ctx)
	switch {
	case (err == nil || errors.Is(err, errLost)) && u.smallParts():
		return u.drop(errSmallParts)
	case (err == nil || errors.Is(err, errLost)) && u.sess.commits >= maxFailures:
		return u.drop(errFailsCommit)
	case errors.Is(err, errLost) && u.sess.commits > 0 && u.sess.offset.isSettled() && u.c.pace.dialect().NoStatus:
		// The registry answered the commit, and a status request says nothing.
		return stepCommit, protocol.Transient(errCommitting)
	case errors.Is(err, errLost) && u.commitsAgain():
		return stepCommit, nil
	case errors.Is(err, errLost) && time.Since(u.doubt) < u.patience():
		// Neither blob nor session: the registry may be assembling the blob.
		return stepResolve, protocol.Transient(errCommitting)
	case errors.Is(err, errLost):
		return u.drop(err)
	case err != nil && isDamaged(err) && u.commitFailed():
		return u.drop(err)
	case err != nil:
		return stepResolve, err
	}
	next, err := u.accept(offset)
	if err == nil {
		u.keep(ctx)
	}
	return next, err
}

// commitFailed counts answers of 500 about a session whose commit is in doubt, while
// the blob is not there. The registry may be assembling the blob, which takes time
// by its size; if not, such a session is of no use any more.
func (u *upload) commitFailed() bool {
	u.sess.failures++
	return u.sess.failures >= maxKeptFailures && time.Since(u.doubt) >= u.patience()-commitLeast
}

// commitsAgain settles a doubtful commit by sending it once more, where a status
// request gets 404 whether or not the session lives, as on ECR. That is tried as
// soon as the registry is known for it, else before the session is given up.
func (u *upload) commitsAgain() bool {
	s := u.sess
	known := u.c.pace.dialect().NoStatus
	if s.again || s.acked != u.blob.Size || !known && time.Since(u.doubt) < u.patience() {
		return false
	}
	s.again = true
	u.settleAt(s.acked)
	return true
}

// patience is how long a registry may take to assemble the blob. It grows with
// the blob, so that a small one whose session is truly lost is not waited for
// as long as a large one.
func (u *upload) patience() time.Duration {
	return min(u.c.o.AnswerTimeout, commitLeast+time.Duration(u.blob.Size/commitRate)*time.Second)
}
