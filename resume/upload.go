package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
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
	// maxRefused ends a session that refuses so many requests in a row although
	// it says where to continue.
	maxRefused = 3
	// maxAsks bounds how often the offset is asked in a row while the answers
	// differ.
	maxAsks = 60
	// maxSteps is how many requests without progress may follow each other
	// before the loop has its say.
	maxSteps = 12

	// probeBody bounds a PATCH that may be refused, because nobody says where the
	// session stands. ECR takes no smaller parts.
	probeBody = 5 << 20

	// maxFailedCommits is how often a commit may fail at the registry before the
	// chunks of its session are blamed, if they are small.
	maxFailedCommits = 3

	firstSettle = 10 * time.Millisecond
	maxSettle   = time.Second
	sentEvery   = 100 * time.Millisecond
)

// The slowest a registry is expected to assemble a blob at, after a commit
// whose answer was lost, and the least time it is given.
const (
	commitRate  = 8 << 20 // bytes per second
	commitLeast = 30 * time.Second
)

var (
	errCommitting  = errors.New("no answer to the commit yet")
	errFailsCommit = errors.New("the registry fails every commit of this session")
	errSmallParts  = errors.New("the registry fails the commit of an upload in small chunks")
	errNoHeadway   = errors.New("the registry answers, and nothing comes of it")
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

// cutBack is how many bytes the last break cost, if the session stands at offset.
func (s *sessionHistory) cutBack(offset int64) int64 {
	if s.cut == nil {
		return 0
	}
	return s.start + s.cut.handed - offset
}

// cut is a PATCH that got no answer.
type cut struct {
	whole    bool  // all of its body was handed to the connection
	handed   int64 // bytes of its body that were
	survived int64 // bytes that its connection had carried
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

	// guest is the request of another client that this upload carries out on a
	// transport; nil for a Client's own.
	guest *passage
}

// Upload delivers one blob. It returns once the registry has it under its
// digest, or with an *Error. The Result is valid in both cases.
func (c *Client) Upload(ctx context.Context, blob Blob) (Result, error) {
	began := time.Now()
	u := &upload{c: c, ctx: ctx, blob: blob, op: "check"}
	err := blob.check()
	if err == nil {
		err = u.deliver(ctx)
	}
	u.count(-1)
	u.res.Duration = time.Since(began)
	if err != nil {
		return u.res, u.failure(err)
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
	stepForward             // send another client's request as it came
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
			u.next = u.begin()
		case stepForward:
			u.op = "send"
			u.next, err = u.pass(ctx)
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

// begin is the first step if there is no record to continue from.
func (u *upload) begin() step {
	switch {
	case u.guest.waits(u.c.pace):
		return stepForward
	case u.sess == nil:
		return stepOpen
	case !u.sess.offset.isSettled():
		return stepSettle
	}
	return u.proceed()
}

// proceed is the step after the offset was settled.
func (u *upload) proceed() step {
	switch {
	case u.sess.offset.bytes < u.blob.Size:
		return stepSend
	case u.guest.appends():
		return stepDone // the commit is another request
	}
	return stepCommit
}

// inDoubt is the step after a commit that may or may not have been carried out.
func (u *upload) inDoubt() step {
	u.doubt = time.Now()
	return stepResolve
}

// enter waits for the right to have a session open.
func (u *upload) enter(ctx context.Context) error {
	if u.entered {
		return nil
	}
	waited, err := u.c.pace.enter(ctx)
	if err != nil {
		return err
	}
	if u.entered = true; waited {
		u.loop.Progress() // others made it: the wait is no failure
	}
	return nil
}

// leave gives that right to another upload.
func (u *upload) leave() {
	if u.entered {
		u.entered = false
		u.c.pace.leave()
	}
}

// open gets a session, unless the blob is there already.
func (u *upload) open(ctx context.Context) (step, error) {
	if err := u.enter(ctx); err != nil {
		return stepOpen, err
	}
	switch there, err := u.existed(ctx); {
	case err != nil:
		return stepOpen, err
	case there:
		return stepDone, nil
	}
	s, a, err := u.c.openSession(ctx, u.subject(), u.blob.MountFrom)
	if a == nil {
		if errors.Is(err, io.EOF) {
			u.hungUp()
		}
		return stepOpen, err
	}
	u.hangups = 0
	switch {
	case err != nil:
		return stepOpen, err
	case a.Status == http.StatusCreated && u.blob.MountFrom != "":
		u.res.Mounted = true
		return u.finish(Mounted), nil
	case a.Status != http.StatusAccepted && u.blob.MountFrom != "" && protocol.Classify(protocol.Unexpected(a, time.Now())).Class == protocol.Final:
		// Harbor answers 401 and Pulp 404 if the other repository is not there or
		// not to be read. The registry may still take the blob itself.
		u.c.log.WithFields(logrus.Fields{"digest": u.blob.Digest, "status": a.Status}).Info("mount refused, sending the blob")
		u.blob.MountFrom = ""
		return stepOpen, nil
	case a.Status != http.StatusAccepted:
		return stepOpen, protocol.Unexpected(a, time.Now())
	}
	u.c.pace.announced(s.lengths)
	u.sess, u.blob.Missing = &sessionHistory{session: s}, false
	u.emit(Event{Kind: Opened})
	u.keep(ctx)
	return u.proceed(), nil
}

// maxHangups is how many times in a row a registry may close the connection in the
// place of an answer to a POST, before the user is told what that may mean.
const maxHangups = 3

// hungUp counts POSTs to which the registry closed the connection. Until 2024 ECR
// did so for a repository that does not exist
// (https://github.com/aws/containers-roadmap/issues/1970). It may be a bad line as
// well, so the upload goes on.
func (u *upload) hungUp() {
	if u.hangups++; u.hangups == maxHangups && !u.c.saidHungUp.Swap(true) {
		u.warn(errors.New("the registry closes the connection instead of opening an upload; some do so if the repository does not exist"))
	}
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
	whole := untouched && (u.guest == nil || !u.guest.ranged())
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
	if err == nil || u.guest != nil {
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
	u.guest.broke(err)
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

// proved takes note that the registry went on with a session by our own count.
func (u *upload) proved() {
	if s := u.sess; s.trusted {
		s.trusted = false
		u.c.pace.countsAlone(s.noStatus)
	}
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
	case u.c.pace.dialect().NoStatus && !s.probing && s.refused == 0 && s.acked < u.blob.Size && s.acked >= u.guest.first() && u.rejected == 0:
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
	if offset < u.guest.first() {
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

// ask asks the registry for the offset.
func (u *upload) ask(ctx context.Context) (int64, error) {
	offset, err := u.sess.ask(ctx)
	if err == nil {
		u.sess.failures = 0
	}
	return offset, err
}

// commit asks the registry to make the session a blob (end-6).
func (u *upload) commit(ctx context.Context) (step, error) {
	u.emit(Event{Kind: Committing, Offset: u.sess.offset.bytes})
	a, err := u.sess.commit(ctx, u.blob.Digest, nil, 0, nil)
	if err != nil {
		u.guest.broke(err)
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
	if u.guest.first() > 0 {
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
	if u.guest != nil && u.guest.body == nil {
		size = -1 // only inferred
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

// drop gives up the session. The next step opens a new one.
func (u *upload) drop(why error) (step, error) {
	if err := u.guest.cannot(why); err != nil {
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

// finish ends an upload whose blob is at the registry.
func (u *upload) finish(k EventKind) step {
	u.forget()
	if k == Committed {
		u.c.pace.delivered()
	}
	u.c.pace.save()
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
