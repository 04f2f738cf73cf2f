// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

const (
	// rateWindow is how far back the rate looks.
	rateWindow = 10 * time.Second
	// maxBreaks bounds how many breaks are kept one by one. All are counted.
	maxBreaks = 1000
)

// tally adds up what the events of a call's pushes say. It has no clock: who
// calls it says what time it is. Not safe for concurrent use.
type tally struct {
	reference string // the image that is pushed now
	total     resume.Total
	done      map[digest.Digest]int64 // blobs that the registry has, with their sizes
	published map[digest.Digest]bool  // manifests
	running   map[digest.Digest]*upload
	begun     int // uploads that have begun, in order

	moved   int64 // bytes that went out, those sent again included
	movedAt time.Time
	samples []moment

	// Of all images of the call:
	breaks, resets, resumes, lost int
	list                          []brokenRequest
}

// upload is one that has begun and not ended.
type upload struct {
	number     int
	size       int64
	at         int64 // how far it is; what is above settled may have to be sent again
	settled    int64 // what the registry has confirmed
	state      uploadState
	wait       time.Duration
	err        error     // what is waited out
	committing time.Time // zero before
}

type uploadState string

const (
	stateSending    uploadState = ""
	stateReset      uploadState = "reset, resuming"
	stateLost       uploadState = "lost, starting again"
	stateWaiting    uploadState = "waiting"
	stateCommitting uploadState = "committing"
)

// moment is how much had moved at one time.
type moment struct {
	at    time.Time
	moved int64
}

// brokenRequest is what --output json and --report say of a break.
type brokenRequest struct {
	Time       time.Time     `json:"time"`
	Reference  string        `json:"reference,omitempty"`
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest,omitempty"`
	Cause      string        `json:"cause"`
	Local      string        `json:"local,omitempty"`
	Peer       string        `json:"peer,omitempty"`
	Offset     int64         `json:"offset"`
	Size       int64         `json:"size,omitempty"`
	Age        float64       `json:"connectionSeconds"`
	Sent       int64         `json:"connectionSent"`
	Received   int64         `json:"connectionReceived"`
	RequestID  string        `json:"requestID,omitempty"`
}

func newTally(now time.Time) *tally {
	t := &tally{movedAt: now, samples: []moment{{now, 0}}}
	t.next("")
	return t
}

// next begins with another image.
func (t *tally) next(reference string) {
	t.reference, t.total = reference, resume.Total{}
	t.done, t.published, t.running = map[digest.Digest]int64{}, map[digest.Digest]bool{}, map[digest.Digest]*upload{}
}

// record takes note of e.
func (t *tally) record(e resume.Event, now time.Time) {
	if e.Reference != t.reference && e.Reference != "" {
		t.next(e.Reference)
	}
	if e.Total != (resume.Total{}) {
		t.total = e.Total
	}
	if e.Kind == resume.Broken {
		t.broke(e)
	}
	if e.Kind == resume.EventPublished {
		t.published[e.Digest] = true
	}
	if e.Digest == "" || e.Kind == resume.EventPublished || e.Kind == resume.EventPlanned {
		return
	}
	u := t.running[e.Digest]
	switch e.Kind {
	case resume.Existed, resume.Mounted:
		t.finished(e)
		return
	case resume.Committed:
		if u != nil {
			t.move(u, u.size, now)
		}
		t.finished(e)
		return
	case resume.Opened, resume.Sent, resume.Settled, resume.Resumed, resume.Committing, resume.Lost:
		if u == nil {
			t.begun++
			u = &upload{number: t.begun, size: e.Size}
			if e.Kind == resume.Settled || e.Kind == resume.Resumed {
				u.at = e.Offset // an earlier push sent it
			}
			t.running[e.Digest] = u
		}
	default:
		if u == nil { // a check, which is no upload
			return
		}
	}

	switch e.Kind {
	case resume.Sent:
		t.move(u, max(e.Offset, u.at), now)
		u.state = stateSending
	case resume.Settled:
		t.move(u, e.Offset, now)
		u.settled = e.Offset
	case resume.Resumed:
		t.resumes++
		t.move(u, e.Offset, now)
		u.settled, u.committing = e.Offset, time.Time{}
	case resume.Broken:
		u.state, u.committing = stateReset, time.Time{}
	case resume.Waiting:
		if u.wait, u.err = e.Wait, e.Err; e.Wait >= time.Second {
			u.state = stateWaiting
		}
	case resume.Lost:
		t.lost++
		u.at, u.settled, u.state, u.committing = 0, 0, stateLost, time.Time{}
	case resume.Opened:
		u.at, u.settled = 0, 0
	case resume.Committing:
		u.state, u.committing = stateCommitting, now
	}
}

// move takes an upload to an offset. Going back, other than to the start in a new
// session, means that the last bytes never went out.
func (t *tally) move(u *upload, to int64, now time.Time) {
	if to > u.at {
		t.movedAt = now
	}
	t.moved += to - u.at
	u.at = to
}

func (t *tally) finished(e resume.Event) {
	delete(t.running, e.Digest)
	t.done[e.Digest] = e.Size
}

func (t *tally) broke(e resume.Event) {
	t.breaks++
	if isReset(e) {
		t.resets++
	}
	if len(t.list) == maxBreaks {
		return
	}
	b := brokenRequest{
		Time: e.Time.UTC(), Reference: e.Reference, Repository: e.Repository, Digest: e.Digest,
		Cause: causeWords(e.Err), Offset: e.Offset, Size: e.Size,
	}
	if c := e.Conn; c != nil {
		b.Local, b.Peer, b.RequestID = c.Local, c.Remote, c.RequestID
		b.Age, b.Sent, b.Received = roundSeconds(c.Age), c.Sent, c.Received
	}
	t.list = append(t.list, b)
}

// isReset reports whether a connection broke: there was one, and it ended without
// an answer.
func isReset(e resume.Event) bool {
	return e.Conn != nil && (errors.Is(e.Err, syscall.ECONNRESET) || errors.Is(e.Err, syscall.EPIPE) || errors.Is(e.Err, errWindowsReset) ||
		errors.Is(e.Err, io.EOF) || errors.Is(e.Err, io.ErrUnexpectedEOF))
}

// errWindowsReset is WSAECONNRESET; no other system has an errno of this value.
const errWindowsReset = syscall.Errno(10054)

// have is how many bytes of the image the registry has or is getting.
func (t *tally) have() (n int64) {
	for _, size := range t.done {
		n += size
	}
	for _, u := range t.running {
		n += u.at
	}
	return n
}

// size is the sum of all blobs, fixed from the start; 0 is not known yet.
func (t *tally) size() int64 { return t.total.Bytes }

// percent of the image, and -1 while its size is not known.
func (t *tally) percent() int {
	if t.size() <= 0 {
		return -1
	}
	p := int(100 * float64(t.have()) / float64(t.size()))
	if p >= 100 && (len(t.running) > 0 || len(t.published) < t.total.Manifests) {
		return 99 // it is not there before its manifest is
	}
	return min(p, 100)
}

// sampled takes note of how much has moved by now, and returns the rate over the
// window in bytes a second.
func (t *tally) sampled(now time.Time) float64 {
	t.samples = append(t.samples, moment{now, t.moved})
	for len(t.samples) > 2 && now.Sub(t.samples[1].at) >= rateWindow {
		t.samples = t.samples[1:]
	}
	first := t.samples[0]
	if took := now.Sub(first.at).Seconds(); took > 0 {
		return max(float64(t.moved-first.moved)/took, 0)
	}
	return 0
}

// left is the time left at a rate; ok is false if nobody can tell.
func (t *tally) left(rate float64) (time.Duration, bool) {
	if rate < 1 || t.size() == 0 {
		return 0, false
	}
	s := float64(max(t.size()-t.have(), 0)) / rate
	if s > 1e6 {
		return 0, false
	}
	return time.Duration(s * float64(time.Second)), true
}

// uploads are those that run, in the order in which they began.
func (t *tally) uploads() []digest.Digest {
	ds := make([]digest.Digest, 0, len(t.running))
	for d := range t.running {
		ds = append(ds, d)
	}
	slices.SortFunc(ds, func(a, b digest.Digest) int { return t.running[a].number - t.running[b].number })
	return ds
}

func roundSeconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}
