// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"sync"
	"time"
)

// Limiter spreads what all connections together send over time. Nil does not
// limit.
type Limiter struct {
	rate int64 // bytes per second

	mu   sync.Mutex
	next time.Time // when the bytes granted so far are paid for
}

// NewLimiter makes one for rate bytes per second, 1 or more.
func NewLimiter(rate int64) *Limiter { return &Limiter{rate: max(rate, 1)} }

// perSecond is how many grants fill a second: many, so that connections take
// turns and bytes are seen to move.
const perSecond = 20

// grant returns how many of n bytes may be sent now, at least one, after
// waiting for it; 0 once closed is.
func (l *Limiter) grant(n int64, closed <-chan struct{}) int64 {
	if l == nil {
		return n
	}
	n = min(n, max(l.rate/perSecond, 1))
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	at := l.next
	l.next = at.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	l.mu.Unlock()
	if wait := at.Sub(now); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-closed:
			return 0
		}
	}
	return n
}
