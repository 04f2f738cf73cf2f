// SPDX-License-Identifier: Apache-2.0

// Package figures turns the events of uploads into figures that can be added up:
// bytes sent, bytes not sent again, breaks and their causes, time lost. Metrics for
// Prometheus and for OpenTelemetry are both made of them, so that they agree.
package figures

import (
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// Change is what one event adds to the figures of a registry.
type Change struct {
	// Registry is the host, with its port if it has one.
	Registry string
	// Sent is the number of bytes of blobs that went out: see resume.Result.Sent.
	Sent int64
	// Saved is the number of bytes that the registry kept over a break or from an
	// earlier push, and that were not sent again.
	Saved int64
	// Cause is what broke a request, empty if none broke: see protocol.Cause.
	Cause string
	// RateLimited is set if a request waits because the registry asked for fewer of
	// them. Wait is how long.
	RateLimited bool
	Wait        time.Duration
	// Lost is the time from the first break of an upload until the upload went on or
	// ended.
	Lost time.Duration
}

// Tracker follows uploads by their events. The zero Tracker is ready to use. It is
// safe for concurrent use.
type Tracker struct {
	mu      sync.Mutex
	uploads map[Upload]*upload
}

// Upload tells uploads apart.
type Upload struct {
	Reference, Repository string
	Digest                digest.Digest
	Number                int64 // of a transport's uploads
}

type upload struct {
	sent   int64     // that was counted
	broken time.Time // zero while nothing is broken
	at     time.Time // of the last event
}

// maxUploads bounds the uploads that are followed. Those of other clients may end
// without an event; the one that has been silent for longest is forgotten.
const maxUploads = 8192

// UploadOf is the upload that an event belongs to; ok is false if it belongs to none.
func UploadOf(e resume.Event) (u Upload, ok bool) {
	switch e.Kind {
	case resume.EventPlanned, resume.EventPublished:
		return Upload{}, false
	}
	return Upload{e.Reference, e.Repository, e.Digest, e.Upload}, e.Digest != "" || e.Upload != 0
}

// Ends reports whether an event is the last of its upload.
func Ends(e resume.Event) bool {
	switch e.Kind {
	case resume.Existed, resume.Mounted, resume.Committed, resume.Failed:
		return true
	case resume.Settled: // the body of another client's PATCH is there; its commit is another request
		return e.Upload != 0 && e.Digest == "" && e.Size > 0 && e.Offset == e.Size
	}
	return false
}

// Registry is the host in the name of a repository.
func Registry(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	return host
}

// Record takes note of e.
func (t *Tracker) Record(e resume.Event) Change {
	c := Change{Registry: Registry(e.Repository)}
	switch e.Kind {
	case resume.Broken:
		c.Cause = protocol.Cause(e.Err)
	case resume.Waiting:
		if e.Err != nil && protocol.Classify(e.Err).Busy {
			c.RateLimited, c.Wait = true, e.Wait
		}
	case resume.Resumed:
		c.Saved = e.Offset
	case resume.Sent, resume.EventPlanned, resume.EventPublished:
		return c // Sent is provisional
	}
	key, ok := UploadOf(e)
	if !ok {
		return c
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.uploads[key]
	if u == nil {
		if Ends(e) && e.Sent == 0 {
			return c
		}
		if t.uploads == nil {
			t.uploads = map[Upload]*upload{}
		}
		if len(t.uploads) >= maxUploads {
			t.forgetOldest()
		}
		u = &upload{}
		t.uploads[key] = u
	}
	u.at = e.Time
	if e.Sent > u.sent {
		c.Sent = e.Sent - u.sent
		u.sent = e.Sent
	}
	switch {
	case e.Kind == resume.Broken && u.broken.IsZero():
		u.broken = e.Time
	case !u.broken.IsZero() && (Ends(e) || e.Kind == resume.Resumed || e.Kind == resume.Opened):
		c.Lost = max(e.Time.Sub(u.broken), 0)
		u.broken = time.Time{}
	}
	if Ends(e) {
		delete(t.uploads, key)
	}
	return c
}

func (t *Tracker) forgetOldest() {
	var oldest Upload
	var at time.Time
	for key, u := range t.uploads {
		if at.IsZero() || u.at.Before(at) {
			oldest, at = key, u.at
		}
	}
	delete(t.uploads, oldest)
}
