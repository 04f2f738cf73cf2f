// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
)

// The kinds of failure, to be matched with errors.Is. Every error of this
// package and of package pusher that comes from an exchange with a registry is
// exactly one of them.
var (
	// ErrInterrupted: the retry budget, a deadline, a cancelled context or the
	// link ended the work. Nothing is wrong with the blob; doing the same again
	// can succeed.
	ErrInterrupted = protocol.ErrInterrupted

	// ErrDenied: the registry or its token server answered 401 or 403.
	// Other credentials are needed.
	ErrDenied = protocol.ErrDenied

	// ErrEndpoint: the address leads to no registry that may be used: no such
	// host, a certificate that is not trusted, plain HTTP where HTTPS was
	// expected, a server that is no registry, an upload location that must not
	// be followed.
	ErrEndpoint = protocol.ErrEndpoint

	// ErrSource: the source cannot be read, is too short or too long, or its
	// bytes do not have the digest they are said to have.
	ErrSource = protocol.ErrSource

	// ErrRefused: the registry gave a final answer that is not about
	// credentials, for example that the name is invalid or that a digest does
	// not match although the source is good.
	ErrRefused = protocol.ErrRefused
)

// BudgetError is the end of Options.RetryFor or Options.Tries. It is of the kind
// ErrInterrupted. Its chain never matches context.DeadlineExceeded or
// context.Canceled, whatever broke the last attempt: those mean that the
// caller's own context ended.
type BudgetError struct {
	// Attempts counts the requests that failed.
	Attempts int
	// Since is the time without progress.
	Since time.Duration
	// RetryAfter is how long the registry asked to wait, if that is more than
	// the budget had left. 0 means that it did not ask.
	RetryAfter time.Duration
	// Err is the last failure.
	Err error
}

func (e *BudgetError) Error() string {
	text := fmt.Sprintf("no progress for %s (%d tries failed)", e.Since.Round(time.Second), e.Attempts)
	if e.RetryAfter > 0 {
		text = fmt.Sprintf("the registry asks to wait %s, longer than there is time for", e.RetryAfter.Round(time.Second))
	}
	return text + ": " + protocol.Text(e.Err)
}

// Unwrap returns the last failure.
func (e *BudgetError) Unwrap() error { return e.Err }

// ContentError is a registry's refusal to store a blob whose bytes arrived as
// they are at the source: it checks what blobs contain, as Nexus does, or has
// another rule against it. It is of the kind ErrRefused.
type ContentError struct {
	// Err is what the registry said.
	Err error
}

func (e *ContentError) Error() string {
	return "the registry refuses to store the blob, although its bytes are good: " + protocol.Text(e.Err)
}

// Unwrap returns what the registry said.
func (e *ContentError) Unwrap() error { return e.Err }

// MissingRepositoryError is a registry's refusal because the repository, or the
// project that it would be in, does not exist and is not created by a push. ECR and
// Artifact Registry say NAME_UNKNOWN. Its kind is that of Err: ErrRefused, or
// ErrDenied if the registry does not tell the two apart.
type MissingRepositoryError struct {
	// Repository is the full name, registry included.
	Repository string
	// Certain is false if the registry says that the repository may exist, without
	// the right to use it.
	Certain bool
	// Err is what the registry said.
	Err error
}

// Error returns what the registry said.
func (e *MissingRepositoryError) Error() string { return e.Err.Error() }

// Unwrap returns what the registry said.
func (e *MissingRepositoryError) Unwrap() error { return e.Err }

// Error is the failure of one blob, with what is known about it.
type Error struct {
	// Op is what was being done: "check", "open", "send", "status", "commit".
	Op string
	// Repository is the full name, registry included.
	Repository string
	// Digest is empty where the failure is not about one blob.
	Digest digest.Digest
	// Offset is the number of bytes, of Size, that the registry was last known
	// to hold in the upload session.
	Offset, Size int64
	// Attempts counts the requests that failed before this error was returned.
	Attempts int
	// Err is the cause. *transport.Error of go-containerregistry and the
	// syscall.Errno of a broken connection are reachable with errors.As, the
	// kinds of failure above with errors.Is.
	Err error
}

// Error says what broke. It never contains an upload location.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteByte(' ')
	if e.Digest != "" {
		fmt.Fprintf(&b, "blob %s at ", e.Digest)
	}
	b.WriteString(e.Repository)
	if e.Offset > 0 {
		fmt.Fprintf(&b, ", %d of %d bytes held", e.Offset, e.Size)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
