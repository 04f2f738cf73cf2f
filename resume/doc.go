// SPDX-License-Identifier: Apache-2.0

// Package resume delivers a blob to a repository of a container registry over
// connections that break, and lets other registry clients do so.
//
// There are two ways in. A [Client] delivers one blob:
//
//	c, err := resume.New(repo, resume.Options{Transport: authorized})
//	result, err := c.Upload(ctx, resume.Blob{Digest: digest, Size: size, Open: open})
//
// [NewTransport] makes an http.RoundTripper, over which the uploads of
// go-containerregistry, oras-go, containerd and others resume without knowing
// it:
//
//	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{})
//	...
//	err = remote.Write(ref, img, remote.WithTransport(rt))
//
// Both are the same engine. Package pusher delivers whole images with it.
//
// # The protocol
//
// The upload protocol of the distribution spec (v1.1, "Pushing blobs") has all
// that is needed to go on after a break, and few clients use it:
//
//	POST   /v2/NAME/blobs/uploads/    opens an upload session; its Location
//	PATCH  location                   appends bytes, at Content-Range
//	HEAD   location                   says in Range how much is held
//	PUT    location?digest=...        commits, and checks the digest
//
// An upload session is what POST opens. Its location is the newest URL that the
// registry gave for it: each answer may bring another. Its offset is how many
// bytes the registry holds.
//
// A Client sends all that is left in one PATCH. When the connection is reset,
// ends, stalls, or the answer is lost, it kills that connection, asks for the
// offset with HEAD, or with GET where that is what the registry answers, and
// sends the rest from there, on the location which that answer gave. It starts
// again at 0 only when the registry has lost the session. Some registries, and
// proxies before them, keep whole requests only, or nothing, or refuse large
// ones: that is found out by what they do, and bodies are sized by it. See
// [Class].
//
// # What it promises
//
//   - The digest, checked by the registry at the commit, is the only proof of
//     success. No offset is believed for more than where to continue.
//   - A commit in doubt is settled by asking for the blob, never by guessing.
//   - Trying goes on as long as there is progress, and for Options.RetryFor
//     without: an upload that moves is never given up.
//   - Every attempt reads from a reader of its own, since net/http may still be
//     reading the body of a request that has failed: see Blob.Open.
//   - Memory is flat, whatever the size of a blob. A file is sent by sendfile
//     where the system and the connection have it.
//   - Upload locations can be capabilities. They are never logged, are not part
//     of any error or event, get no credentials where they are on another host
//     than the registry, and are not followed from https to http. Records of a
//     [Store] carry them.
//   - Nothing is logged or printed unless Options.Logger is given, there are no
//     globals, and no goroutine outlives the call that started it for longer
//     than the caller's own reader makes it wait.
//
// # Units, errors, concurrency
//
// Offsets and sizes are in bytes; ranges are half-open, [offset, end).
//
// Errors are of type *[Error] and of one of the kinds [ErrInterrupted],
// [ErrDenied], [ErrEndpoint], [ErrSource] and [ErrRefused], each of which says
// what to do next: match them with errors.Is. The cause, down to the
// syscall.Errno of a broken connection, is in reach of errors.As.
//
// A Client, and what NewTransport returns, are safe for concurrent use.
// Progress comes as [Event] values, one at a time.
//
// # Compatibility
//
// The packages resume and pusher follow semantic versions. Within a major
// version nothing that is exported goes away or changes its type or meaning;
// structs get new fields, whose zero value is what was before, and new kinds of
// event and of error text may come: programs should pass over events they do
// not know and decide by the kind of an error. Literals of structs should name
// their fields. The interfaces [Store], [Lease] and [Dialects] get no further
// methods; what they are to do beyond will be asked for with interfaces of its
// own.
//
// What is kept on disk, the records of a FileStore and the file of
// [FileDialects], is read by every later version of the same major version.
// Where an older one meets what it does not know it starts again in its place.
// Both are hints: losing them costs bytes, not correctness.
package resume
