// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"sync"
	"time"
)

// pacer shares one rate between all connections. A nil pacer has no limit.
type pacer struct {
	rate int64
	mu   sync.Mutex
	next time.Time // when the link is free again
	last time.Time // when it was last seen in use
}

// A link unused for idle saves up nothing. One in use makes good what late
// timers cost it, up to credit.
const (
	idle   = 20 * time.Millisecond
	credit = 250 * time.Millisecond
)

// slice cuts n to what goes out in about 4 ms, so that the flow is even.
func (p *pacer) slice(n int) int {
	if p == nil {
		return n
	}
	return min(n, int(max(p.rate/250, 512)))
}

// wait returns when n more bytes have had their time on the link.
func (p *pacer) wait(n int, done <-chan struct{}) bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	now := time.Now()
	if behind := now.Sub(p.next); behind > credit || behind > 0 && now.Sub(p.last) > idle {
		p.next = now
	}
	p.last = now
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	d := p.next.Sub(now)
	p.mu.Unlock()
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
		return false
	}
	p.mu.Lock()
	p.last = time.Now()
	p.mu.Unlock()
	return true
}

// hold is how many upstream bytes may still pass. The zero value sets no limit.
type hold struct {
	mu      sync.Mutex
	limited bool
	left    int64
	changed chan struct{} // closed by the next change; nil if nobody waits
}

// set limits what passes from now on to n bytes; a negative n is no limit.
func (h *hold) set(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limited, h.left = n >= 0, n
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// take waits until a byte may pass and returns how many of n may, or 0 if done
// is closed before.
func (h *hold) take(n int, done <-chan struct{}) int {
	for {
		h.mu.Lock()
		if !h.limited {
			h.mu.Unlock()
			return n
		}
		if k := min(int64(n), h.left); k > 0 {
			h.left -= k
			h.mu.Unlock()
			return int(k)
		}
		if h.changed == nil {
			h.changed = make(chan struct{})
		}
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-changed:
		case <-done:
			return 0
		}
	}
}

// giveBack returns n bytes that were taken and did not pass.
func (h *hold) giveBack(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left += int64(n); n > 0 && h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}
