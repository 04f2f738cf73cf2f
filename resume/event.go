// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// EventKind says what happened.
type EventKind string

// What can happen to an image. Only package pusher emits these events.
const (
	// EventPlanned: it is known what the image consists of; see Event.Total. It
	// comes before the first event of a blob, unless the image is made while it is
	// pushed. It may come again with better figures.
	EventPlanned EventKind = "planned"
	// EventPublished: the registry has the manifest with Digest, whether this push
	// wrote it or found it. Tag is the tag that it has it under; empty is its
	// digest. A manifest with several tags has an event for each.
	EventPublished EventKind = "published"
)

// What can happen to a blob, in the order in which it usually does.
const (
	// Existed: the registry had the blob already. Nothing is sent.
	Existed EventKind = "existed"
	// Mounted: the registry took the blob from another of its repositories.
	Mounted EventKind = "mounted"
	// Held: another push uploads the same blob to the same repository; this one
	// waits for it. See Store.
	Held EventKind = "held"
	// Opened: an upload session is open.
	Opened EventKind = "opened"
	// Sent: bytes were handed to the connection. Offset is provisional: a
	// break takes it back to the last settled one.
	Sent EventKind = "sent"
	// Settled: the registry said that it holds the bytes up to Offset.
	Settled EventKind = "settled"
	// Broken: a request broke, Err says how and Conn on which connection.
	// Bytes after the last settled offset may be lost.
	Broken EventKind = "broken"
	// Waiting: the next try comes after Wait; Err is what is waited out.
	Waiting EventKind = "waiting"
	// Resumed: the upload continues at Offset in the same session.
	Resumed EventKind = "resumed"
	// Lost: the registry no longer knows the session; a new one starts at 0.
	Lost EventKind = "lost"
	// Committing: all bytes are held, the registry was asked to commit.
	Committing EventKind = "committing"
	// Committed: the registry has the blob under its digest.
	Committed EventKind = "committed"
	// Failed: the upload ended without the blob at the registry, Err is what Upload
	// returns.
	Failed EventKind = "failed"
	// Warned: something the user should know and can mend; Err says what.
	Warned EventKind = "warned"
)

// Event is one step in the life of a blob or an image, or of a request that
// concerns neither. Fields that mean nothing for the Kind are zero.
type Event struct {
	Time time.Time
	Kind EventKind
	// Context is that of the call or the request during which the event happened,
	// or one derived from it. It may have ended. It is for values, such as the span
	// of a trace.
	Context context.Context
	// Reference is what is being pushed, fully spelled out: Options.Reference, or
	// the reference given to package pusher. Empty is not known.
	Reference string
	// Total is what the whole image consists of. It is in every event of package
	// pusher as soon as it is known.
	Total Total
	// Repository is the full name, registry included.
	Repository string
	// Digest is that of the blob, or of the manifest of an EventPublished. It is
	// empty for an event that concerns neither, and for a PATCH on a transport of
	// NewTransport, which does not know it yet.
	Digest digest.Digest
	// MediaType of the manifest, and Tag that it was published under; only in an
	// EventPublished. An empty Tag is the digest.
	MediaType, Tag string
	// Upload numbers the requests that a transport of NewTransport carries, from
	// 1; 0 for a Client's uploads, which their digest tells apart.
	Upload int64
	// Size of the blob or the manifest, and Offset in it, in bytes.
	Size, Offset int64
	// Sent is Result.Sent of the upload so far, in bytes: in Opened, Settled, Resumed,
	// Lost, Committing, Committed and Failed. What a break cost is in it as soon as the
	// registry has said where the upload stands.
	Sent int64
	// Wait is the pause before the next try.
	Wait time.Duration
	// Conn is the connection a Broken event is about; nil where none was made.
	Conn *Conn
	Err  error
}

// Total is what an image consists of, each digest counted once. An image is
// delivered when as many blobs have existed, been mounted or been committed, and
// as many manifests have been published. The zero Total is not known.
type Total struct {
	// Blobs and Manifests count what is delivered. Layers that clients fetch from
	// elsewhere are not counted unless they are delivered.
	Blobs, Manifests int
	// Bytes is the sum of the sizes of the blobs. It is 0 until it is known: layers
	// that are compressed while they are pushed have no size before.
	Bytes int64
}

// Conn is what a registry's administrator needs to find one connection in the
// logs of the hosts on the way.
type Conn struct {
	// Local and Remote are host:port as this machine sees them.
	Local, Remote string
	// Age is the time from dialling to the break.
	Age time.Duration
	// Sent and Received count the bytes on the connection, headers and TLS
	// included.
	Sent, Received int64
	// RequestID is the request id the registry or a proxy gave in an answer;
	// often empty.
	RequestID string
}
