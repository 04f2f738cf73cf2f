// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// total adds changes up.
type total struct {
	sent, saved int64
	lost, wait  time.Duration
	causes      map[string]int
	limits      int
}

func add(t *Tracker, events ...resume.Event) total {
	sum := total{causes: map[string]int{}}
	for _, e := range events {
		c := t.Record(e)
		sum.sent, sum.saved, sum.lost, sum.wait = sum.sent+c.Sent, sum.saved+c.Saved, sum.lost+c.Lost, sum.wait+c.Wait
		if c.Cause != "" {
			sum.causes[c.Cause]++
		}
		if c.RateLimited {
			sum.limits++
		}
	}
	return sum
}

var t0 = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func at(seconds int, k resume.EventKind, offset, sent int64, err error) resume.Event {
	return resume.Event{
		Time: t0.Add(time.Duration(seconds) * time.Second), Kind: k, Repository: "reg.example:5000/team/app",
		Digest: digest.FromString("a"), Size: 100, Offset: offset, Sent: sent, Err: err,
	}
}

// Two breaks at once are one loss of time. A lost session is one until the next is
// open. What Sent events say counts for nothing.
func TestRecord(t *testing.T) {
	var tracker Tracker
	reset := &wire.Error{Err: syscall.ECONNRESET}
	got := add(&tracker,
		at(0, resume.Opened, 0, 0, nil),
		at(1, resume.Sent, 90, 0, nil),
		at(2, resume.Broken, 0, 0, reset),
		at(4, resume.Broken, 0, 0, &wire.Error{Err: io.EOF}),
		at(5, resume.Settled, 40, 40, nil),
		at(6, resume.Resumed, 40, 40, nil),
		at(7, resume.Broken, 40, 40, reset),
		at(8, resume.Lost, 0, 60, nil),
		at(9, resume.Opened, 0, 60, nil),
		at(10, resume.Settled, 100, 160, nil),
		at(11, resume.Committed, 100, 160, nil),
	)
	if got.sent != 160 || got.saved != 40 || got.lost != 6*time.Second || got.causes["reset"] != 2 || got.causes["closed"] != 1 {
		t.Errorf("%+v", got)
	}
	if len(tracker.uploads) != 0 {
		t.Errorf("%d uploads are followed after the last event", len(tracker.uploads))
	}
	if c := tracker.Record(at(0, resume.Opened, 0, 0, nil)); c.Registry != "reg.example:5000" {
		t.Errorf("registry %q", c.Registry)
	}
}

// The blob of an upload that failed may be uploaded again, which counts anew.
func TestRecordAfterFailure(t *testing.T) {
	var tracker Tracker
	got := add(&tracker,
		at(0, resume.Opened, 0, 0, nil),
		at(1, resume.Broken, 0, 0, io.EOF),
		at(9, resume.Failed, 0, 30, io.EOF),
		at(10, resume.Resumed, 20, 0, nil),
		at(12, resume.Committed, 100, 80, nil),
	)
	if got.sent != 110 || got.saved != 20 || got.lost != 8*time.Second {
		t.Errorf("%+v", got)
	}
}

// Waiting for a rate limit is no break, and waiting for anything else is no rate
// limit.
func TestRateLimit(t *testing.T) {
	var tracker Tracker
	busy := at(0, resume.Waiting, 0, 0, protocol.Unexpected(&wire.Answer{Status: 429}, t0))
	busy.Wait = 9 * time.Second
	again := at(0, resume.Waiting, 0, 0, io.EOF)
	again.Wait = time.Second
	if got := add(&tracker, busy, again); got.limits != 1 || got.wait != 9*time.Second || len(got.causes) != 0 {
		t.Errorf("%+v", got)
	}
}

// A PATCH of another client has no digest and ends when all of its body is there.
func TestForeignUploads(t *testing.T) {
	var tracker Tracker
	event := func(number int64, k resume.EventKind, offset, sent int64) resume.Event {
		e := at(0, k, offset, sent, nil)
		e.Digest, e.Upload = "", number
		return e
	}
	got := add(&tracker, event(1, resume.Settled, 50, 50), event(2, resume.Settled, 100, 100), event(1, resume.Settled, 100, 100))
	if got.sent != 200 || len(tracker.uploads) != 0 {
		t.Errorf("%+v, %d uploads are left", got, len(tracker.uploads))
	}
	for n := range int64(maxUploads + 10) {
		tracker.Record(event(n+10, resume.Settled, 50, 50))
	}
	if n := len(tracker.uploads); n != maxUploads {
		t.Errorf("%d uploads are followed, at most %d were to be", n, maxUploads)
	}
}
