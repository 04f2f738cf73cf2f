// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"testing"
	"time"
)

// An image of 50 GB in chunks of 4 MiB, from four blobs at once on a line that
// would carry more, stays below GHCR's 2000 requests in every minute.
func TestChunkRate(t *testing.T) {
	p := newPacer("h", MemoryDialects())
	p.d.MaxRanged = 4 << 20
	now := time.Unix(1_000_000, 0)
	var sent []time.Time
	for len(sent) < 50_000_000_000/(4<<20) {
		for range 4 {
			sent = append(sent, now.Add(p.turn(now)))
		}
		now = now.Add(40 * time.Millisecond)
	}
	for i := range sent[2000:] {
		if d := sent[i+2000].Sub(sent[i]); d < time.Minute {
			t.Fatalf("2001 requests within %s", d)
		}
	}
}

// The requests of a small push to GHCR do not wait. After a refusal they do.
func TestBurst(t *testing.T) {
	p := newPacer("h", MemoryDialects())
	p.d.MaxRanged = 4 << 20
	now := time.Unix(1_000_000, 0)
	for range 100 {
		if wait := p.turn(now); wait != 0 {
			t.Fatalf("a wait of %s in a small push", wait)
		}
	}
	p.turn(now)
	if wait := p.turn(now); wait == 0 || wait > time.Second {
		t.Errorf("after the burst: a wait of %s", wait)
	}
	now = now.Add(time.Hour)
	p.tooMany(now, 10*time.Millisecond, 2000)
	for i := range 10 {
		if wait := p.turn(now); wait < time.Duration(i)*time.Minute/1800 {
			t.Errorf("request %d after a refusal waits %s", i, wait)
		}
	}
}

func TestMeasuredRate(t *testing.T) {
	var r requestRate
	now := time.Unix(1_000_000, 0)
	for range 400 { // 4 a second
		if wait := r.take(now, 0); wait != 0 {
			t.Fatalf("a wait of %s before anything was refused", wait)
		}
		now = now.Add(250 * time.Millisecond)
	}
	if !r.refused(now, 10*time.Second) || r.refused(now, 10*time.Second) {
		t.Error("one refusal of many at once has to count")
	}
	if wait := r.take(now, 0); wait != 10*time.Second {
		t.Errorf("the next request waits %s, want 10s", wait)
	}
	for _, want := range []int{177, 200, 226} { // three quarters of 236, then an eighth more a minute
		if r.take(now.Add(10*time.Second), 0); r.pace != want {
			t.Errorf("%d requests a minute, want %d", r.pace, want)
		}
		now = now.Add(time.Minute)
	}
	for range 60 {
		now = now.Add(time.Minute)
		r.take(now, 0)
	}
	if wait := r.take(now.Add(time.Hour), 0); wait != 0 || r.pace != 0 {
		t.Errorf("an hour later: a wait of %s, %d requests a minute", wait, r.pace)
	}
	r.refused(now, time.Hour)
	if wait := r.take(now, 0); wait > longestPause {
		t.Errorf("a pause of %s", wait)
	}
}
