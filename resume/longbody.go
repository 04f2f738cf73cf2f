// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Gateways end requests that take too long, or whose answer does: nginx and
// HAProxy with 408, 502 or 504, Cloudflare with 524. If the registry kept nothing
// of the body, the same body would end in the same way, again and again. It goes
// in chunks instead.

const (
	// slowBody is how long a request takes at least that a gateway ended for the
	// time it took. Timeouts are 30 s and more.
	slowBody = 20 * time.Second
	// quickEnds is how many requests in a row may be ended in less time before
	// large bodies are taken for the cause: a registry that is down as well.
	quickEnds = 2
)

// ended is a body that something on the way answered instead of the registry.
type ended struct {
	handed int64 // bytes of it that were handed to the connection
	took   time.Duration
}

// endedBy takes note of an answer to a body.
func (u *upload) endedBy(why *protocol.StatusError, handed int64, took time.Duration) {
	if s := u.sess; why.GaveUp() && why.After == 0 {
		s.ended = &ended{handed, took}
		s.cuts++
	}
}

// gaveUp draws the conclusion from a body of which the registry kept nothing, if a
// gateway ended it.
func (u *upload) gaveUp() {
	e := u.sess.ended
	if e == nil {
		return
	}
	u.sess.ended = nil
	u.timedOut++
	if e.took >= slowBody || u.timedOut >= quickEnds && e.handed >= 2*partSize {
		u.c.pace.noGain(e.handed)
	}
}

// noGain: a body of which handed bytes had gone out was of no use, because a
// gateway ended it, or because nothing inside a chunk counts any more. The next one
// is a quarter of that, so that it takes a quarter of the time. It is a trial until
// such a body has got through. A registry that seemed to take one PATCH per session
// is asked again: that one does not get through.
func (p *pacer) noGain(handed int64) {
	p.learn(func() {
		n := handed / 4
		if handed >= 2*partSize {
			n = max(n, partSize)
		}
		p.trial = limit(n)
		if p.d.Class == Monolithic {
			p.d.Class = Unproved
		}
	})
}

// inTime: a body of n bytes was answered well.
func (p *pacer) inTime(n int64) {
	p.learn(func() {
		if p.trial > 0 && n >= round(p.trial) {
			p.d.MaxTimed, p.trial = p.trial, 0
		}
	})
}
