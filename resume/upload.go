// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
)

const (
	// maxSteps is how many steps without progress may follow each other before the
	// loop of internal/retry waits.
	maxSteps = 12
	// sentEvery is the least time between two Sent events of a blob.
	sentEvery = 100 * time.Millisecond
)

var errNoHeadway = errors.New("the registry answers, and nothing comes of it")

// sessionHistory is a session with what has happened in it, as far as that decides
// what comes next.
type sessionHistory struct {
	*session
	// start is where the last PATCH began, and cut how it broke, if it did.
	start int64
	cut   *cut
	ended *ended // how a gateway ended it, if one did
	// refused counts requests in a row that were refused where the registry
	// said it stands; guessed is set while one of them tries the byte before.
	refused  int
	guessed  bool
	failures int     // to ask, in a row
	recorded bool    // the session comes from a record
	kept     *Record // what is known of it came from this record, and is not yet confirmed
	idle     int
	again    bool // a commit was sent again although nobody says whether the session lives

	part     int64 // the size of its first chunk, which a registry that announces a largest wants all to have
	cuts     int   // requests in a row that broke since the last answer to a PATCH
	ranged   int64 // what the Range of the last good answer to a PATCH said
	answered bool  // the last PATCH was answered well
	stuck    bool  // its Range had not moved
	trusted  bool  // going on by our own count, against the Range
	noStatus bool  // and the status request got a 404
	probing  bool  // going on at acked, because nobody says where it stands
	most     int64 // the most it has held
	said     int64 // the offset it said last
	failed   bool  // a PATCH got no answer, or one of a failure
	broken   bool  // not continued since the last break
	firm     int64 // the most it has acknowledged without contradicting itself
	whole    bool  // the blob was sent in the body of the commit, and nothing before
	small    bool  // a PATCH before the last was smaller than partSize
	commits  int   // commits that the registry failed to carry out
	gone     bool  // lost because a body broke
}

// upload is one blob on its way. Bytes only go down, offsets only come up.
type upload struct {
	c    *Client
	ctx  context.Context // of the events
	blob Blob
	res  Result
	loop *retry.Loop
	op   string
	// tries that failed.
	tries int

	handed int64  // bytes handed to connections, those sent again included
	unsure unsure // of the last body that broke; zero if it is counted in res.Sent

	sess     *sessionHistory // nil without a session
	lease    *heldLease      // nil where nothing is kept
	saved    Record
	next     step
	steps    int       // taken without progress since the loop was last left
	doubt    time.Time // when the last commit was sent that nobody answered
	best     int64     // the most the registry held, over all sessions
	lost     int       // sessions lost in a row without a new best
	entered  bool      // has the right to have a session open
	cuts     int       // sessions lost because a body broke
	rejected int       // digests refused
	// emptyFailures counts commits of the empty blob that failed at the registry,
	// emptyFailure is its last answer.
	emptyFailures int
	emptyFailure  *protocol.StatusError
	hopeless      int          // sessions that refused their first PATCH
	hangups       int          // POSTs in a row that ended without an answer or a reset
	timedOut      int          // bodies in a row that gateways ended without gain
	excused       bool         // the next loss is that of a body too large
	apart         bool         // the bytes go before the commit, not in its body
	refused       bool         // the registry refused a commit with a body
	told          atomic.Int64 // when Sent was last emitted, in Unix nanoseconds

	origin origin
}

// Upload delivers one blob. It returns once the registry has it under its
// digest, or with an *Error. The Result is valid in both cases.
func (c *Client) Upload(ctx context.Context, blob Blob) (Result, error) {
	began := time.Now()
	u := &upload{c: c, ctx: ctx, origin: ownBlob{}, blob: blob, op: "check"}
	err := blob.check()
	if err == nil {
		err = u.deliver(ctx)
	}
	u.count(-1)
	u.res.Duration = time.Since(began)
	if err != nil {
		return u.res, u.failed(err)
	}
	return u.res, nil
}

// deliver runs the upload in the one loop.
func (u *upload) deliver(ctx context.Context) (err error) {
	defer func() { // also where the source panics
		u.leave()
		u.release(err)
	}()
	s := u.subject()
	s.broken = u.broke
	return u.c.retry(ctx, s, func(ctx context.Context, l *retry.Loop) error {
		u.loop = l
		err := u.run(ctx)
		u.tries = l.Tries()
		return err
	})
}

// subject is what the upload is about.
func (u *upload) subject() subject {
	return subject{digest: u.blob.Digest, size: max(u.blob.Size, 0)}
}

func (u *upload) failure(err error) error {
	var held int64
	if u.sess != nil {
		held = u.sess.most
	}
	return u.c.failure(u.op, u.blob.Digest, held, max(u.blob.Size, 0), u.tries+1, err)
}

// failed tells of the end of an upload without the blob, and returns its error.
func (u *upload) failed(err error) error {
	u.count(-1)
	err = u.failure(err)
	u.emit(Event{Kind: Failed, Err: err})
	return err
}

// broke counts a break and says which offset is safe.
func (u *upload) broke() int64 {
	u.res.Breaks++
	if u.sess == nil {
		return 0
	}
	return u.sess.most
}

// step is what an upload does next. Each step is a method that returns the step after
// it, also if it fails: the next try begins with that one.
type step uint8

const (
	stepReserve step = iota // get the right to the record of the blob
	stepRecall              // make a session of that record
	stepBegin               // whatever comes first without a record
	stepOpen                // open a session
	stepSettle              // ask for the offset
	stepSend                // send what comes next
	stepCommit              // make the session a blob
	stepResolve             // find out what became of a commit
	stepDone
)

// run takes one step after the other, until the blob is there or something fails
// that has to be waited out.
func (u *upload) run(ctx context.Context) (err error) {
	u.steps = 0
	for u.next != stepDone {
		if u.steps > maxSteps {
			return protocol.Transient(errNoHeadway)
		}
		u.steps++
		if u.held().isLost() {
			if u.next, err = u.relinquish(); err != nil {
				return err
			}
		}
		ctx, parent := u.whileHeld(ctx), ctx
		switch u.next {
		case stepReserve:
			u.next, err = u.reserve(parent)
		case stepRecall:
			u.op = "check"
			u.next, err = u.recall(ctx)
		case stepBegin:
			u.next, err = u.origin.begin(ctx, u)
		case stepOpen:
			u.op = "open"
			u.next, err = u.open(ctx)
		case stepSettle:
			u.op = "status"
			u.next, err = u.settle(ctx)
		case stepSend:
			u.op = "send"
			u.next, err = u.send(ctx)
		case stepCommit:
			u.op = "commit"
			u.next, err = u.commit(ctx)
		case stepResolve:
			u.op = "commit"
			u.next, err = u.resolve(ctx)
		}
		if err != nil && u.held().isLost() {
			continue // whatever ended the step
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// proceed is the step after the offset was settled.
func (u *upload) proceed() step {
	switch {
	case u.sess.offset.bytes < u.blob.Size:
		return stepSend
	case !u.origin.commits():
		return stepDone // the commit is another request
	}
	return stepCommit
}

// inDoubt is the step after a commit that may or may not have been carried out.
func (u *upload) inDoubt() step {
	u.doubt = time.Now()
	return stepResolve
}

// finish ends an upload whose blob is at the registry.
func (u *upload) finish(k EventKind) step {
	u.forget()
	if k == Committed {
		u.c.pace.delivered()
	}
	u.c.pace.save()
	u.count(-1)
	u.emit(Event{Kind: k, Offset: u.blob.Size})
	return stepDone
}

func (u *upload) warn(err error) {
	u.c.warn(u.ctx, subject{digest: u.blob.Digest, size: u.blob.Size}, err)
}

// sentTo tells of provisional progress, now and then. It may be called by a
// request that has just been given up.
func (u *upload) sentTo(offset int64) {
	now, told := time.Now().UnixNano(), u.told.Load()
	if u.c.o.OnEvent != nil && now-told >= int64(sentEvery) && u.told.CompareAndSwap(told, now) {
		u.emit(Event{Kind: Sent, Offset: offset})
	}
}

func (u *upload) emit(e Event) {
	e.Digest, e.Size = u.blob.Digest, u.blob.Size
	if e.Kind != Sent { // which another goroutine may tell of
		e.Sent = u.res.Sent
	}
	u.c.emit(u.ctx, e)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
