// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

// Progress turns the events of pushes into the updates that remote.WithProgress of
// go-containerregistry sends, for programs with a display of those:
//
//	updates := make(chan v1.Update, 1)
//	progress := pusher.NewProgress(updates)
//	p, err := pusher.New(pusher.Options{OnEvent: progress.Event})
//	...
//	_, err = p.Push(ctx, ref, img)
//	progress.Close(err)
//
// Complete counts the bytes of blobs, also of those that the registry had, never
// more than Total. It goes back when bytes were lost with a connection. It is safe
// for concurrent use.
type Progress struct {
	updates chan<- v1.Update

	mu     sync.Mutex
	totals map[string]int64 // by reference
	blobs  map[blobOf]extent
	last   v1.Update
	closed bool
}

// blobOf is a blob on its way to a reference.
type blobOf struct {
	reference string
	digest    digest.Digest
}

// extent is how much of a blob the registry holds, and how much was sent.
type extent struct{ settled, sent int64 }

// NewProgress returns a Progress that sends to updates. An update that does not fit
// into the channel is left out, the next one has its bytes: a channel needs a
// buffer of 1 or more, and whoever receives cannot slow a push down.
func NewProgress(updates chan<- v1.Update) *Progress {
	return &Progress{updates: updates, totals: map[string]int64{}, blobs: map[blobOf]extent{}}
}

// Event is an Options.OnEvent.
func (p *Progress) Event(e resume.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if e.Total.Bytes > 0 {
		p.totals[e.Reference] = e.Total.Bytes
	}
	if e.Digest != "" && e.Kind != resume.EventPublished {
		k := blobOf{e.Reference, e.Digest}
		p.blobs[k] = p.blobs[k].after(e)
	}
	p.last = v1.Update{Total: 0}
	for _, n := range p.totals {
		p.last.Total += n
	}
	for _, b := range p.blobs {
		p.last.Complete += b.sent
	}
	p.last.Complete = min(p.last.Complete, p.last.Total)
	select {
	case p.updates <- p.last:
	default:
	}
}

// after is what is there of a blob after an event.
func (x extent) after(e resume.Event) extent {
	switch e.Kind {
	case resume.Existed, resume.Mounted, resume.Committed:
		return extent{e.Size, e.Size}
	case resume.Settled, resume.Resumed:
		return extent{e.Offset, e.Offset}
	case resume.Sent:
		x.sent = e.Offset
	case resume.Broken:
		x.sent = x.settled
	case resume.Opened, resume.Lost:
		return extent{}
	}
	return x
}

// Close sends the last update, with err in it unless that is nil, and closes the
// channel, as remote.WithProgress does. Unlike Event it waits for room in the
// channel. A second Close does nothing.
func (p *Progress) Close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.last.Error = err
	p.updates <- p.last
	close(p.updates)
}
