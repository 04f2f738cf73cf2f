// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// schemaVersion is that of everything rpush prints as JSON. It goes up if a field
// goes away or changes its meaning; fields may be added.
const schemaVersion = 1

// logObject is one line of --log-format json. docs/json.md has its schema.
type logObject struct {
	Schema int       `json:"schema"`
	Time   time.Time `json:"time"`
	// Event is message, progress, or a kind of resume.Event.
	Event string `json:"event"`

	Level string `json:"level,omitempty"` // of a message: info or error
	Text  string `json:"text,omitempty"`

	Reference  string  `json:"reference,omitempty"`
	Repository string  `json:"repository,omitempty"`
	Digest     string  `json:"digest,omitempty"`
	MediaType  string  `json:"mediaType,omitempty"`
	Tag        string  `json:"tag,omitempty"`
	Size       int64   `json:"size,omitempty"`
	Offset     int64   `json:"offset,omitempty"`
	Wait       float64 `json:"waitSeconds,omitempty"`
	Cause      string  `json:"cause,omitempty"`
	Local      string  `json:"local,omitempty"`
	Peer       string  `json:"peer,omitempty"`
	RequestID  string  `json:"requestID,omitempty"`

	Bytes      int64   `json:"bytes,omitempty"`
	TotalBytes int64   `json:"totalBytes,omitempty"`
	TotalBlobs int     `json:"totalBlobs,omitempty"`
	Blobs      int     `json:"blobs,omitempty"`
	Rate       float64 `json:"bytesPerSecond,omitempty"`
	Left       float64 `json:"secondsLeft,omitempty"`
	Breaks     int     `json:"breaks,omitempty"`
}

func eventObject(e resume.Event) *logObject {
	if e.Kind == resume.Sent {
		return nil // too many
	}
	o := &logObject{
		Time: e.Time.UTC(), Event: string(e.Kind), Reference: e.Reference, Repository: e.Repository, Digest: string(e.Digest),
		MediaType: e.MediaType, Tag: e.Tag, Size: e.Size, Offset: e.Offset, Wait: roundSeconds(e.Wait),
	}
	if e.Kind == resume.EventPlanned {
		o.TotalBytes, o.TotalBlobs = e.Total.Bytes, e.Total.Blobs
	}
	if e.Err != nil {
		if o.Cause = protocol.Text(e.Err); e.Kind == resume.Broken {
			o.Cause = causeWords(e.Err)
		}
	}
	if e.Conn != nil {
		o.Local, o.Peer, o.RequestID = e.Conn.Local, e.Conn.Remote, e.Conn.RequestID
	}
	return o
}

func progressObject(t *tally, rate float64, now time.Time) *logObject {
	o := &logObject{
		Time: now.UTC(), Event: "progress", Reference: t.reference, Bytes: t.have(), TotalBytes: t.size(),
		TotalBlobs: t.total.Blobs, Blobs: len(t.done), Rate: float64(int64(rate)), Breaks: t.breaks,
	}
	if left, ok := t.left(rate); ok {
		o.Left = roundSeconds(left)
	}
	return o
}
