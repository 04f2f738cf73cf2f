// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
)

const (
	// keepEvery is how old a record may get where only the offset has changed,
	// which the registry knows better.
	keepEvery = 10 * time.Second
	// maxKeptFailures is how often nobody may say where an earlier upload stands,
	// before that is given up if the registry answers other questions.
	maxKeptFailures = 3
	// maxFailures is the same for a session of this process.
	maxFailures = 5
	// heldPause is between two looks at a blob that another push uploads.
	heldPause = 500 * time.Millisecond
)

func (c *Client) key(dgst digest.Digest) Key {
	return Key{Registry: c.base.Scheme + "://" + protocol.HostPort(c.base), Repository: c.repo.RepositoryStr(), Digest: dgst}
}

// reserve gets the right to the record of the blob. While another push has it,
// this one waits, as long as its budget is.
func (u *upload) reserve(ctx context.Context) (step, error) {
	store := u.c.o.Store
	if store == nil || u.blob.Size < u.c.o.KeepFrom {
		return stepBegin, nil
	}
	k := u.c.key(u.blob.Digest)
	until := time.Now().Add(u.c.o.RetryFor)
	for waited := false; ; waited = true {
		lease, err := reserveRecord(u.ctx, store, k)
		if err == nil {
			u.lease = lease
			break
		}
		if ctx.Err() != nil {
			return stepReserve, context.Cause(ctx)
		}
		if !errors.Is(err, ErrHeld) {
			u.unkept(err)
			break
		}
		u.blob.Missing = false // it is about to be there
		if !time.Now().Before(until) {
			u.warn(fmt.Errorf("%w, and does not end; uploading it as well", ErrHeld))
			break
		}
		if !waited {
			u.c.log.WithField("digest", u.blob.Digest).Info("another push uploads the blob, waiting for it")
			u.emit(Event{Kind: Held, Err: ErrHeld})
		}
		if err := sleep(ctx, min(heldPause, time.Until(until))); err != nil {
			return stepReserve, err
		}
	}
	if u.lease == nil {
		return stepBegin, nil
	}
	return stepRecall, nil
}

// recall makes a session of the record, if it is good for one and the blob is
// not there. It is settled by asking; an old connection of the process that
// wrote it may still be draining.
func (u *upload) recall(ctx context.Context) (step, error) {
	if u.origin.isForwarded() {
		// Another client has asked for the blob by itself, and may only be allowed to
		// push.
		if _, err := u.lease.load(ctx); errors.Is(err, ErrNoRecord) {
			return stepBegin, nil
		}
	}
	switch there, err := u.existed(ctx); {
	case err != nil:
		return stepRecall, err
	case there:
		return stepDone, nil
	}
	r, err := u.lease.load(ctx)
	if err == nil && (!r.valid(u.c.key(u.blob.Digest), u.blob.Size) || r.Expired(time.Now())) {
		err = errors.New("it is of another blob, or has expired")
	}
	var at *url.URL
	if err == nil {
		at, err = u.c.located(r)
	}
	if errors.Is(err, ErrNoRecord) {
		return stepBegin, nil
	}
	if err != nil {
		u.warn(fmt.Errorf("the record of an earlier upload is of no use, starting again: %w", err))
		u.forget()
		return stepBegin, nil
	}
	u.saved = r
	u.sess = u.c.recordedSession(u.subject(), &r, at, u.blob.Size)
	u.sess.firm = min(r.Acked, r.Offset)
	u.origin.onRecall()
	return stepSettle, nil
}

// existed ends the upload where the blob is there already, unless the caller
// has just asked.
func (u *upload) existed(ctx context.Context) (bool, error) {
	if u.blob.Missing || u.blob.Digest == "" {
		return false, nil
	}
	ask := u.arrived
	untouched := u.handed == 0 && u.res.Restarts == 0 && !u.origin.isForwarded()
	if untouched && !u.blob.FalselyFound {
		ask = func(ctx context.Context) (bool, error) { return u.c.exists(ctx, u.blob.Digest, u.blob.Size) }
	}
	exists, err := ask(ctx)
	if err != nil || !exists {
		u.blob.Missing = err == nil
		return false, err
	}
	// After a loss it is our own commit that was late.
	k := Committed
	if untouched {
		u.res.Existed, k = true, Existed
	}
	u.finish(k)
	return true, nil
}

// found takes note of where the registry stands with an upload that an earlier
// process left.
func (u *upload) found(said int64) {
	s := u.sess
	r := s.kept
	s.kept, u.res.Continued = nil, min(said, u.blob.Size)
	if said == r.Offset && said < u.blob.Size {
		s.idle = min(r.Idle+1, maxIdle)
		u.c.pace.stoodStill(s.idle)
	} else if said > r.Offset {
		u.c.pace.wentOn(said - r.Offset)
	}
}

// leadsNowhere judges a failure to ask where a session stands. Another host than
// the registry may be gone for good since an earlier process, and a registry may
// have damaged what it stores of this one session.
func (u *upload) leadsNowhere(ctx context.Context, err error) bool {
	s, v := u.sess, protocol.Classify(err)
	most := maxFailures
	if s.kept != nil {
		most = maxKeptFailures
		if v.Class != protocol.Break {
			return true
		}
	} else if !isDamaged(err) {
		return false
	}
	if v.After > 0 {
		return false
	}
	if s.failures++; s.failures < most {
		return false
	}
	_, err = u.c.exists(ctx, u.blob.Digest, u.blob.Size)
	return err == nil // the registry answers everything else
}

// isDamaged tells an answer to a status request that may be about this session
// alone. Distribution 3 on S3 gives 500 for ever to a session whose PATCH or
// commit ended while it assembled the parts.
func isDamaged(err error) bool {
	var answered *protocol.StatusError
	return errors.As(err, &answered) && answered.Status == http.StatusInternalServerError
}

// expired forgets a session of an earlier process that the registry does not
// know any more. If all of it had been sent the registry may just be
// assembling the blob, for a commit that nobody waits for.
func (u *upload) expired(lost error) (step, error) {
	r := u.sess.kept
	if since := time.Since(r.Updated); r.Offset == u.blob.Size && 0 <= since && since < u.patience() {
		u.sess.kept, u.doubt = nil, r.Updated
		return stepResolve, nil
	}
	return u.drop(lost)
}

// keep writes down what is settled. Where the location has changed it is
// durable before anything else is sent: the old one is worth nothing to some
// registries, such as distribution 2.
func (u *upload) keep(ctx context.Context) {
	s := u.sess
	if s == nil || !s.offset.isSettled() {
		return
	}
	if u.origin.keep(u) || u.lease == nil {
		return
	}
	r := Record{
		Key: u.c.key(u.blob.Digest), Reference: u.c.o.Reference,
		Location: s.location.String(), Size: u.blob.Size, Offset: s.offset.bytes, Acked: s.acked, Idle: s.idle,
		MinChunk: s.lengths.Min, MaxChunk: s.lengths.Max, Part: s.part,
		Opened: s.opened.UTC().Truncate(time.Second), Updated: time.Now().UTC().Truncate(time.Second),
	}
	old := u.saved
	if age := r.Updated.Sub(old.Updated); r.Location == old.Location && r.Idle == old.Idle && r.Offset < r.Size && 0 <= age && age < keepEvery {
		return
	}
	if err := u.lease.save(ctx, r); err != nil {
		u.unkept(err)
		return
	}
	u.saved = r
	u.c.pace.save() // the next process starts with chunks of this size
}

// forget removes the record of a session that is no more.
func (u *upload) forget() {
	if u.lease == nil {
		return
	}
	u.saved = Record{}
	if err := u.lease.remove(u.ctx); err != nil {
		u.unkept(err)
	}
}

// release ends the lease. What arrived for a bad source, or is refused, is not
// worth continuing.
func (u *upload) release(err error) {
	if u.lease == nil {
		return
	}
	// The source of another client's request fails when the client ends.
	if errors.Is(err, ErrSource) && !u.origin.isForwarded() || errors.Is(err, ErrRefused) {
		u.forget()
	}
	u.res.Kept = u.saved.Location != ""
	if err := u.lease.release(u.ctx); err != nil {
		u.unkept(err)
	}
	u.lease = nil
}

// unkept says once that nothing is kept.
func (u *upload) unkept(err error) {
	if !errors.Is(err, ErrLeaseLost) && !u.c.saidUnkept.Swap(true) {
		u.warn(fmt.Errorf("this upload may not be continued by a later run, its record cannot be kept: %w", err))
	}
}

// forget drops the record of a blob that is there: the process that uploaded it
// may have ended before it could.
func (c *Client) forget(ctx context.Context, dgst digest.Digest, size int64) {
	if c.o.Store != nil && (size < 0 || size >= c.o.KeepFrom) {
		_ = c.o.Store.Forget(ctx, c.key(dgst)) // it would expire
	}
}

// Check asks the registry where the upload session of a record stands. alive is
// false where the registry no longer knows it. A record that is not of this
// client's registry and repository is an error of the kind ErrEndpoint.
func (c *Client) Check(ctx context.Context, r Record) (offset int64, alive bool, err error) {
	s, err := c.recorded(r)
	if err != nil {
		return 0, false, err
	}
	err = c.retry(ctx, subject{digest: r.Digest, size: r.Size}, func(ctx context.Context, _ *retry.Loop) error {
		offset, err = s.ask(ctx)
		return err
	})
	switch {
	case errors.Is(err, errLost):
		return 0, false, nil
	case err != nil:
		return 0, false, c.failure("status", r.Digest, r.Offset, r.Size, 0, err)
	}
	return min(offset, r.Size), true, nil
}

// Cancel ends the upload session of a record at the registry
// (distribution-spec v1.1, end-14). A session that is not there is no error. A
// record that is not of this client's registry and repository is an error of
// the kind ErrEndpoint.
func (c *Client) Cancel(ctx context.Context, r Record) error {
	s, err := c.recorded(r)
	if err != nil {
		return err
	}
	err = c.retry(ctx, subject{digest: r.Digest, size: r.Size}, func(ctx context.Context, _ *retry.Loop) error {
		// It may take the newest location only, as distribution 3 does.
		switch _, err := s.ask(ctx); {
		case errors.Is(err, errLost):
			return nil
		case err != nil:
			return err
		}
		a, err := s.cancel(ctx)
		if err == nil && a.Status/100 != 2 && a.Status != http.StatusNotFound {
			err = protocol.Unexpected(a, time.Now())
		}
		return err
	})
	if err != nil {
		return c.failure("cancel", r.Digest, r.Offset, r.Size, 0, err)
	}
	return nil
}

// located returns the location of a record, which may be anybody's work. It is
// an error unless the record is about this client's registry and repository,
// and the location is at that registry, in the same scheme, and that of an
// upload; or where this client saw the registry put uploads.
func (c *Client) located(r Record) (*url.URL, error) {
	if k := c.key(r.Digest); r.Key != k {
		return nil, fmt.Errorf("the upload goes to %s/%s, not to %s/%s", r.Registry, r.Repository, k.Registry, k.Repository)
	}
	l, err := protocol.ParseLocation(c.base, c.base, http.Header{"Location": {r.Location}})
	if err != nil {
		return nil, err
	}
	if _, seen := c.places.Load(place(l.URL)); seen && !strings.Contains(l.URL.Path, "/.") {
		return l.URL, nil
	}
	switch {
	case !protocol.SameOrigin(c.base, l.URL):
		return nil, errors.New("its location is not at the registry")
	case !protocol.IsUpload(l.URL):
		return nil, errors.New("its location is not that of an upload")
	}
	return l.URL, nil
}

// place is where an upload location is: its origin and its path without the
// last segment.
func place(u *url.URL) string {
	path := u.EscapedPath()
	return u.Scheme + "://" + protocol.HostPort(u) + path[:strings.LastIndexByte(path, '/')+1]
}

// recordedSession makes a session of a record. Its offset has to be asked for: an old
// connection of the process that wrote the record may still be draining. sent is the
// end of the bytes that the process may have sent.
func (c *Client) recordedSession(blob subject, r *Record, at *url.URL, sent int64) *sessionHistory {
	s := &session{
		c: c, blob: blob, location: at, opened: r.Opened,
		lengths: protocol.ChunkLengths{Min: r.MinChunk, Max: r.MaxChunk},
		offset:  offset{state: draining}, acked: r.Acked, sent: sent,
	}
	c.pace.announced(s.lengths)
	return &sessionHistory{session: s, kept: r, recorded: true, broken: true, part: r.Part}
}

// recorded makes a session of a record only to ask for it, if its location may be used.
func (c *Client) recorded(r Record) (*session, error) {
	at, err := c.located(r)
	if err != nil {
		return nil, c.failure("status", r.Digest, r.Offset, r.Size, 0, protocol.Kind(protocol.ErrEndpoint, err))
	}
	return &session{c: c, blob: subject{digest: r.Digest, size: r.Size}, location: at, acked: r.Acked}, nil
}
