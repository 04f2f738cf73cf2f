// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"sync"
	"time"
)

const (
	// chunkRate is how many requests a minute go to a registry that limits bodies
	// with a Content-Range. GHCR is the one that is known; it allows 2000.
	chunkRate = 1800
	// leastRate and mostRate bound what is measured, in requests a minute: less may
	// be the doing of another client, and more needs no pace.
	leastRate = 60
	mostRate  = 6000
	// burst is the share of a known limit that may go at once: an eighteenth. With
	// pacer.turn's nine tenths, that is 0.95 of the limit in the first minute.
	burst = 18
	// longestPause bounds how long all requests wait for one that was refused.
	longestPause = 5 * time.Minute
)

// requestRate paces the requests of a client to a registry that limits how many
// it takes in a minute. Its zero value does not wait.
type requestRate struct {
	mu     sync.Mutex
	pace   int           // requests a minute, as measured when the registry refused one; 0 is any number
	since  time.Time     // when pace was set or raised
	next   time.Time     // when the next request may go, without a burst
	pause  time.Time     // when the next request may go after a refusal
	second [minute]int64 // requests in each of the last seconds,
	stamp  [minute]int64 // which are these
}

const minute = 60

// take reserves the next request at now, and returns how long it has to wait.
// known is a limit in requests a minute from elsewhere, 0 if there is none. Some
// requests may go at once under a known limit, until one is refused.
func (r *requestRate) take(now time.Time, known int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A rate that was only measured is tried out again: an eighth more a minute.
	for r.pace > 0 && now.Sub(r.since) >= time.Minute {
		r.since = r.since.Add(time.Minute)
		if r.pace += r.pace/8 + 1; r.pace > mostRate {
			r.pace = 0
		}
	}
	pace, ahead := r.pace, time.Duration(0)
	if known > 0 && pace == 0 { // nothing was refused lately: a small push need not wait
		ahead = time.Minute / time.Duration(known) * time.Duration(known/burst)
	}
	if known > 0 && (pace == 0 || known < pace) {
		pace = known
	}
	at := now
	for _, t := range []time.Time{r.next.Add(-ahead), r.pause} {
		if t.After(at) {
			at = t
		}
	}
	if pace > 0 {
		if r.next.Before(at) {
			r.next = at
		}
		r.next = r.next.Add(time.Minute / time.Duration(pace))
	}
	s := at.Unix()
	if i := s % minute; r.stamp[i] == s {
		r.second[i]++
	} else {
		r.stamp[i], r.second[i] = s, 1
	}
	return at.Sub(now)
}

// refused: the registry refused a request because of their number, and asked to
// wait. Every request waits. It reports false if the refusal is about requests
// that went out before an earlier one was known.
func (r *requestRate) refused(now time.Time, wait time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if until := now.Add(min(wait, longestPause)); until.After(r.pause) {
		r.pause = until
	}
	if r.next.Before(r.pause) {
		r.next = r.pause
	}
	if !r.since.IsZero() && now.Sub(r.since) < time.Minute/2 {
		return false
	}
	var n int64
	for i, s := range r.stamp {
		if age := now.Unix() - s; age >= 0 && age < minute {
			n += r.second[i]
		}
	}
	r.pace, r.since = int(min(max(n*3/4, leastRate), mostRate)), now.Add(min(wait, longestPause))
	return true
}
