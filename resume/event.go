package resume

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// EventKind says what happened to a blob.
type EventKind string

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
	// Warned: something the user should know and can mend; Err says what.
	Warned EventKind = "warned"
)

// Event is one step in the life of a blob, or of a request that concerns no
// blob. Fields that mean nothing for the Kind are zero.
type Event struct {
	Time time.Time
	Kind EventKind
	// Repository is the full name, registry included.
	Repository string
	// Digest is empty for an event that concerns no blob, and for a PATCH on a
	// transport of NewTransport, which does not know it yet.
	Digest digest.Digest
	// Upload numbers the requests that a transport of NewTransport carries, from
	// 1; 0 for a Client's uploads, which their digest tells apart.
	Upload int64
	// Size of the blob and Offset in it, in bytes.
	Size, Offset int64
	// Wait is the pause before the next try.
	Wait time.Duration
	// Conn is the connection a Broken event is about; nil where none was made.
	Conn *Conn
	Err  error
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
