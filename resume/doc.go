// Package resume delivers a blob to a repository of a container registry over
// connections that break.
//
// The upload protocol of the distribution spec (v1.1, "Pushing blobs") has all
// that is needed to go on after a break, and few clients use it:
//
//	POST   /v2/NAME/blobs/uploads/    opens an upload session; its Location
//	PATCH  location                   appends bytes, at Content-Range
//	HEAD   location                   says in Range how much is held
//	PUT    location?digest=...        commits, and checks the digest
//
// A Client sends all that is left in one PATCH. When the connection is reset,
// ends, stalls, or the answer is lost, it kills that connection, asks for the
// offset with HEAD, or with GET where that is what the registry answers, and
// sends the rest from there, on the Location which that answer gave. It starts
// again at 0 only when the registry has lost the session. It never believes an
// offset for more than where to continue: the digest, checked by the registry
// at the commit, is the only proof of success, and a commit in doubt is settled
// by asking for the blob.
//
// Offsets and sizes are in bytes; ranges are half-open, [offset, end).
//
// Every attempt reads from a reader of its own, since net/http may still be
// reading the body of a request that has failed: see Blob.Open.
//
// Trying goes on as long as there is progress, and for Options.RetryFor
// without. Errors are of type *Error and of one of the kinds ErrInterrupted,
// ErrDenied, ErrEndpoint, ErrSource and ErrRefused, each of which says what to
// do next.
//
// Upload locations can be capabilities. They are never logged, are not part of
// any error or event, get no credentials where they are on another host than
// the registry, and are not followed from https to http.
package resume
