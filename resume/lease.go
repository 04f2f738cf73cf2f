// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rpush-go/rpush/internal/wire"
)

const (
	// storeTimeout is how long one call of a store may take.
	storeTimeout = 30 * time.Second
	// releaseTimeout is how long it may take after the upload has ended.
	releaseTimeout = 10 * time.Second
)

// heldLease is a lease that is renewed until it is released. ctx ends, with the
// cause ErrLeaseLost, if the lease is lost. Requests with ctx check before each write
// that it is not: if the process was stopped and goes on, the timer below may be
// late. It is safe for concurrent use. nil is no lease.
type heldLease struct {
	ctx   context.Context
	end   context.CancelCauseFunc
	lasts time.Duration
	until atomic.Pointer[time.Time]

	mu     sync.Mutex // held during each call of lease
	lease  Lease
	renew  *time.Timer
	expiry *time.Timer
}

// reserveRecord gets the lease of k from a store. ctx is that of the upload. The result
// is nil if the store keeps nothing.
func reserveRecord(ctx context.Context, store Store, k Key) (*heldLease, error) {
	began := time.Now()
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	lease, err := store.Reserve(call, k)
	if err != nil || lease == nil {
		return nil, err
	}
	h := &heldLease{lease: lease, lasts: LeaseFor}
	if timed, ok := lease.(TimedLease); ok {
		h.lasts = timed.Lasts()
	}
	h.ctx, h.end = context.WithCancelCause(wire.CheckedBy(ctx, h.check))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.renew = time.AfterFunc(h.renewEvery(), h.extend)
	h.expiry = time.AfterFunc(h.lasts-time.Since(began), h.expire)
	h.goesOnFrom(began)
	return h, nil
}

func (h *heldLease) renewEvery() time.Duration { return h.lasts / (LeaseFor / LeaseRenewEvery) }

// goesOnFrom notes when a lease ends that the store gave or renewed, in a call that
// began then.
func (h *heldLease) goesOnFrom(began time.Time) {
	until := began.Add(h.lasts)
	h.until.Store(&until)
}

// extend renews the lease, now and again later.
func (h *heldLease) extend() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(h.ctx, storeTimeout)
	defer cancel()
	switch err := h.lease.Renew(ctx); {
	case errors.Is(err, ErrLeaseLost):
		h.lose()
		return
	case err == nil && h.ctx.Err() == nil && h.expiry.Stop():
		h.expiry.Reset(h.lasts - time.Since(began))
		h.goesOnFrom(began)
	}
	if h.ctx.Err() == nil {
		h.renew.Reset(h.renewEvery())
	}
}

func (h *heldLease) lose() { h.end(ErrLeaseLost) }

func (h *heldLease) expire() { h.end(errLeaseOver) }

// errLeaseOver is an ErrLeaseLost: nobody else may have reserved the record yet.
var errLeaseOver error = leaseOver{}

type leaseOver struct{}

func (leaseOver) Error() string {
	return "the lease of an upload ended before it was renewed; asking whether another push has it"
}

func (leaseOver) Is(target error) bool { return target == ErrLeaseLost }

// isLost reports whether somebody else has the record, or may have it.
func (h *heldLease) isLost() bool { return h != nil && errors.Is(h.check(), ErrLeaseLost) }

// check returns ErrLeaseLost if the lease is lost or over, by either clock: the
// monotonic one counts while the process is stopped, but not while the machine sleeps,
// and the other one may be set back.
func (h *heldLease) check() error {
	now, until := time.Now(), *h.until.Load()
	if !now.Before(until) || !now.Round(0).Before(until.Round(0)) {
		h.expire()
	}
	return context.Cause(h.ctx)
}

// call calls a method of the lease, unless the lease is lost.
func (h *heldLease) call(ctx context.Context, f func(context.Context) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isLost() {
		return ErrLeaseLost
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := f(ctx)
	if errors.Is(err, ErrLeaseLost) {
		h.lose()
	}
	return err
}

func (h *heldLease) load(ctx context.Context) (r Record, err error) {
	err = h.call(ctx, func(ctx context.Context) (err error) {
		r, err = h.lease.Load(ctx)
		return err
	})
	return r, err
}

func (h *heldLease) save(ctx context.Context, r Record) error {
	return h.call(ctx, func(ctx context.Context) error { return h.lease.Save(ctx, r) })
}

// remove removes the record, also after ctx has ended.
func (h *heldLease) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return h.call(ctx, h.lease.Remove)
}

var errReleased = errors.New("released")

// release gives the lease back, also after ctx has ended. It is called once.
func (h *heldLease) release(ctx context.Context) error {
	h.end(errReleased) // and a call of Renew with it
	h.mu.Lock()
	defer h.mu.Unlock()
	h.renew.Stop()
	h.expiry.Stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return h.lease.Release(ctx)
}

// whileHeld is ctx, or a context that also ends when the upload's lease is lost.
func (u *upload) whileHeld(ctx context.Context) context.Context {
	if h := u.held(); h != nil {
		return h.ctx
	}
	return ctx
}

// held is the lease of the record that the upload is written down in, or nil.
func (u *upload) held() *heldLease {
	if h := u.origin.lease(); h != nil {
		return h
	}
	return u.lease
}

// relinquish gives up the session of a record that somebody else has now: it may
// have two writers otherwise. The next step waits for the other push, if there is
// one, and asks for the blob before anything is sent again.
func (u *upload) relinquish() (step, error) {
	h, next := u.held(), stepReserve
	lost := h.check()
	if u.origin.giveUpLease() {
		next = stepOpen
	} else {
		u.lease = nil
	}
	_ = h.release(u.ctx)
	u.warn(lost)
	u.leave()
	if err := u.origin.replaceSession(lost); err != nil {
		return next, err
	}
	u.origin.onRecall() // a client's own session is the other push's now
	u.sess, u.saved, u.blob.Missing, u.res.Continued = nil, Record{}, false, 0
	return next, nil
}
