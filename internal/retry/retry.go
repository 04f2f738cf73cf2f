// SPDX-License-Identifier: Apache-2.0

// Package retry is the one loop of the project that tries again.
package retry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Policy says how long to go on. For is required.
type Policy struct {
	// For is how long to go on without progress.
	For time.Duration
	// First replaces For, where it is shorter, until the registry has answered
	// for the first time.
	First time.Duration
	// Tries bounds how many attempts in a row may fail without progress; 0 does
	// not. Being asked to come back later is no failure.
	Tries int
	// Answered is set by whoever receives an answer of that registry.
	Answered *atomic.Bool
	// Random returns a number in [0, 1) for the jitter; nil is no jitter.
	Random func() float64
	// Failed, unless nil, is called for each failure that is not final, also
	// where the budget ends with it.
	Failed func(err error)
	// Waiting, unless nil, is called before each wait for another try.
	Waiting func(err error, wait time.Duration)
}

// The waits between tries that make no progress.
const (
	firstWait = 500 * time.Millisecond
	maxWait   = 30 * time.Second
	jitter    = 0.3
)

// Loop is one run of Do.
type Loop struct {
	p     Policy
	waits *backoff.ExponentialBackOff
	last  protocol.Verdict
	since time.Time // the first failure since there was progress
	tries int
	gains int
	row   int // tries without progress
	wait  time.Duration
}

// Progress tells the loop that something was gained: the budget starts again,
// and the next failure is followed by no wait at all.
func (l *Loop) Progress() {
	l.gains++
	l.row = 0
	l.since = time.Time{}
	l.waits.Reset()
}

// Gains is how often there was progress.
func (l *Loop) Gains() int { return l.gains }

// Tries is how many attempts have failed so far.
func (l *Loop) Tries() int { return l.tries }

// Do calls op until it returns nil, fails for good, or has made no progress
// for too long. It returns nil, the error of op where that is final, or an
// error that wraps protocol.ErrInterrupted and the last failure; where ctx
// ended it wraps the context's cause too. A failure is classified by
// protocol.Classify. op must be callable again after an error. Not safe for
// concurrent use by op.
func (p Policy) Do(ctx context.Context, op func(context.Context, *Loop) error) error {
	waits := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstWait),
		backoff.WithMaxInterval(maxWait),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0), // its randomness cannot be replayed
		backoff.WithMaxElapsedTime(0),      // the budget is counted here
	)
	l := &Loop{p: p, waits: waits}
	var final error
	err := backoff.RetryNotify(func() error {
		err := op(ctx, l)
		if err == nil {
			return nil
		}
		l.tries++
		if ctx.Err() != nil {
			return backoff.Permanent(err)
		}
		if l.last = l.judge(err); l.last.Class == protocol.Final {
			final = l.last.Err
			return backoff.Permanent(err)
		}
		if p.Failed != nil {
			p.Failed(l.last.Err)
		}
		return err
	}, backoff.WithContext(l, ctx), func(error, time.Duration) {
		if p.Waiting != nil {
			p.Waiting(l.last.Err, l.wait)
		}
	})
	switch {
	case err == nil:
		return nil
	case final != nil:
		return final
	case ctx.Err() != nil:
		cause := context.Cause(ctx)
		if l.last.Err != nil {
			cause = fmt.Errorf("%w (before that: %w)", cause, &notTheCallers{l.last.Err})
		}
		return protocol.Kind(protocol.ErrInterrupted, cause)
	default:
		return protocol.Kind(protocol.ErrInterrupted, &Exhausted{Tries: l.tries, Since: time.Since(l.since), Wait: l.wait, Err: &notTheCallers{l.last.Err}})
	}
}

// notTheCallers hides from errors.Is that an attempt may have failed because a
// context ended: a timeout of a request, for one. context.DeadlineExceeded and
// context.Canceled are kept for the caller's context.
type notTheCallers struct{ err error }

func (e *notTheCallers) Error() string { return e.err.Error() }

func (e *notTheCallers) Is(target error) bool {
	return target != context.DeadlineExceeded && target != context.Canceled && errors.Is(e.err, target)
}

func (e *notTheCallers) As(target any) bool { return errors.As(e.err, target) }

func (l *Loop) judge(err error) protocol.Verdict {
	v := protocol.Classify(err)
	if v.Class != protocol.Unknown && v.Class != protocol.Unreachable {
		return v
	}
	if l.answered() {
		v.Class = protocol.Break
	} else {
		v.Class, v.Err = protocol.Final, protocol.Kind(protocol.ErrEndpoint, v.Err)
	}
	return v
}

func (l *Loop) answered() bool { return l.p.Answered == nil || l.p.Answered.Load() }

// NextBackOff implements backoff.BackOff with the budget.
func (l *Loop) NextBackOff() time.Duration {
	budget := l.p.For
	if !l.answered() && l.p.First < budget {
		budget = l.p.First
	}
	now := time.Now()
	first := l.since.IsZero()
	if first {
		l.since = now
	}
	left := budget - now.Sub(l.since)
	if !l.last.Busy {
		l.row++
	}
	if l.p.Tries > 0 && l.row >= l.p.Tries {
		l.wait = 0
		return backoff.Stop
	}
	if left <= 0 || l.last.After > left {
		l.wait = l.last.After
		return backoff.Stop
	}
	l.wait = 0
	if !first || l.last.Busy {
		l.wait = l.waits.NextBackOff()
		if l.p.Random != nil {
			l.wait += time.Duration(float64(l.wait) * jitter * (l.p.Random() - 0.5))
		}
	}
	// One try at the very end of the budget rather than none.
	l.wait = min(max(l.wait, l.last.After), left)
	return l.wait
}

// Reset implements backoff.BackOff.
func (l *Loop) Reset() { l.waits.Reset() }

// Exhausted is the end of the budget. The fields are those of
// resume.BudgetError.
type Exhausted struct {
	Tries       int
	Since, Wait time.Duration
	Err         error
}

func (e *Exhausted) Error() string { return protocol.Text(e.Err) }

// Unwrap returns the last failure.
func (e *Exhausted) Unwrap() error { return e.Err }
