// SPDX-License-Identifier: Apache-2.0

package resume

import "context"

const (
	// vanishes is how many sessions have to vanish beside others before their
	// number is blamed: one may be chance.
	vanishes = 2
	// raiseAfter is how many blobs, for each that may be open at once, have to
	// arrive before one more may be.
	raiseAfter = 8
)

// enter waits until one more upload may have a session open. It reports whether
// that took a wait. leave must follow.
func (p *pacer) enter(ctx context.Context) (waited bool, err error) {
	for {
		p.mu.Lock()
		if p.d.Parallel == 0 || p.open < p.d.Parallel {
			p.open++
			p.mu.Unlock()
			return waited, nil
		}
		if p.left == nil {
			p.left = make(chan struct{})
		}
		left := p.left
		p.mu.Unlock()
		select {
		case <-left:
			waited = true
		case <-ctx.Done():
			return waited, context.Cause(ctx)
		}
	}
}

// leave ends what enter began.
func (p *pacer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.wake()
}

// wake has those that wait look again. It wants p.mu held.
func (p *pacer) wake() {
	if p.left != nil {
		close(p.left)
		p.left = nil
	}
}

// vanished: a session is gone, and no break explains it. Storage that keeps few
// sessions drops them when others are opened. It reports whether fewer are opened
// from now on.
func (p *pacer) vanished() (fewer bool) {
	p.learn(func() {
		if p.open < 2 {
			return
		}
		p.arrived = 0
		if p.gaps++; p.gaps >= vanishes {
			p.gaps, fewer = 0, true
			p.d.Parallel, p.hint.Parallel = max(p.open/2, 1), 0
		}
	})
	return fewer
}

// delivered: a blob has arrived. After enough of them one more may be open at
// once: what made sessions vanish may be over.
func (p *pacer) delivered() {
	p.learn(func() {
		if p.d.Parallel == 0 {
			return
		}
		if p.arrived++; p.arrived >= raiseAfter*p.d.Parallel {
			p.arrived = 0
			if p.d.Parallel++; p.d.Parallel > mostParallel {
				p.d.Parallel = 0
			}
			p.wake()
		}
	})
}

// mostParallel is how many uploads at once need no limit.
const mostParallel = 16
