// SPDX-License-Identifier: Apache-2.0

// Package scripted is a container registry in memory that misbehaves on
// request. It is written from the OCI distribution-spec v1.1 and shares no code
// with the client, so that a misreading of the protocol cannot hide in both.
//
// By default it is a good registry of class "exact", as distribution 3 is: it
// keeps every byte of a broken PATCH, each answer carries a new Location, and a
// Location of another offset still answers status requests. Options turn it
// into the other dialects; Intercept breaks single requests.
//
// It holds no lock while it reads a body or sleeps, so it runs in a
// testing/synctest bubble (make it inside) as well as over a real server.
package scripted

import (
	"net/http"
	"time"
)

// Store is what happens to the bytes of a PATCH or PUT that broke.
type Store int

const (
	Keep     Store = iota // kept, byte exact
	Boundary              // dropped: the offset stays at the last acknowledged chunk
	Fragile               // the whole session is lost
)

// StatusVerbs are the methods that answer on an upload URL.
type StatusVerbs int

const (
	HeadAndGet    StatusVerbs = iota
	GetOnly                   // HEAD is 405, as on zot and olareg
	NoStatus                  // both are 400, as on ggcr's registry
	MissingStatus             // both are 404 although the session lives, as on ECR
)

// RangeStyle is how answers about a session give its size.
type RangeStyle int

const (
	ZeroBased     RangeStyle = iota // 0-N inclusive; 0-0 also when empty
	BytesPrefix                     // bytes=0-N
	OffByOne                        // N is the number of bytes
	EmptyMinusOne                   // 0--1 when empty
	NoRange                         // no such header
	Beyond                          // more than any blob can have
	Stuck                           // stays at the end of the first chunk
)

// LocationStyle is what the Location of a session looks like.
type LocationStyle int

const (
	Absolute        LocationStyle = iota
	Relative                      // path and query only
	MissingOnStatus               // status answers have none
	OtherHost                     // on Options.OtherHost
	Downgrade                     // http, whatever the request came by
)

// UploadPath is the path of upload locations.
type UploadPath int

const (
	BlobsUploads     UploadPath = iota // /v2/NAME/blobs/uploads/ID
	BlobsUpload                        // /v2/NAME/blobs/upload/ID, as on GHCR
	ArtifactsUploads                   // /artifacts-uploads/NAME/ID, as on Artifact Registry
)

// StorageStyle is where the bytes of a blob are.
type StorageStyle int

const (
	InRegistry  StorageStyle = iota // answered by the registry itself
	OtherOrigin                     // redirected to Options.OtherHost, as with S3 behind distribution
	SameOrigin                      // redirected to another path of the registry, as on Pulp
)

// Scheme is how requests are authorised.
type Scheme int

const (
	NoAuth Scheme = iota
	Basic
	Bearer // tokens from /token on the same host
)

// Auth asks for credentials.
type Auth struct {
	Scheme         Scheme
	User, Password string
	// TokenRequests is how many requests a bearer token is good for; 0 is any
	// number.
	TokenRequests int
}

// Options of a registry. The zero value is a good one.
type Options struct {
	Store     Store
	PartSize  int64 // with Keep: what is kept is rounded down to whole parts, as on S3
	Status    StatusVerbs
	Range     RangeStyle
	Location  LocationStyle
	Storage   StorageStyle
	OtherHost string // host:port for the styles OtherHost and OtherOrigin; serve the same Registry there
	Auth      Auth

	// LooseRange ignores Content-Range, as distribution 2 does.
	LooseRange bool
	// StaleIsGone answers 404 to every verb on a Location of another offset, as
	// distribution 2 does. Otherwise PATCH, PUT and DELETE on it are 416.
	StaleIsGone bool
	// OneLocation gives every answer of a session the same Location.
	OneLocation bool
	// SingleUse answers 404 to any request on a Location that a PATCH or PUT has
	// used, as Artifact Registry does.
	SingleUse bool
	// UploadPath is where upload locations are.
	UploadPath UploadPath
	// PatchStatus, when set, answers a PATCH that went well instead of 202.
	PatchStatus int
	// SaysOffset puts into the text of a 416 at which byte the session stands, as
	// ECR does.
	SaysOffset bool
	// MinPart, when set, answers 500 to the commit of a session that took a
	// smaller PATCH before its last, as ECR does.
	MinPart int64
	// NoPutBody, when set, answers this to a PUT with a body, as Artifactory 6
	// does with 404.
	NoPutBody int
	// NoEmpty, when set, answers this to the commit of an empty blob.
	NoEmpty int
	// NoMount, when set, answers this to a mount of a blob that is not there.
	// Otherwise a session is opened.
	NoMount int
	// WrongStart, when set, answers this to a Content-Range that begins elsewhere,
	// instead of 416.
	WrongStart int
	// WholeFirst takes a PATCH without Content-Range for the whole blob: the digest
	// of what is added to it later is refused, as on Pulp.
	WholeFirst bool
	// OnePatch refuses the second PATCH of a session.
	OnePatch bool
	// MaxSessions, when set, is how many sessions live at once: the oldest vanishes
	// when another one is opened.
	MaxSessions int
	// MaxBody, when set, answers 413 to larger bodies.
	MaxBody int64
	// HTML answers refusals of bodies for their size with a web page, as gateways
	// do.
	HTML bool
	// MaxRanged, when set, answers 416 to larger bodies with a Content-Range, as
	// GHCR does.
	MaxRanged int64
	// MinChunk, when set, is announced as OCI-Chunk-Min-Length.
	MinChunk int64
	// MaxChunk, when set, is announced as OCI-Chunk-Max-Length. Larger bodies get
	// 413.
	MaxChunk int64
	// EqualChunks refuses chunks of another size than the first of the session,
	// except for a smaller last one, with 416, Range and Location, as Cloudflare's
	// registry does.
	EqualChunks bool
	// EndsBodies, when set, answers a PATCH with a body of more than EndsAt bytes
	// with this status, as a gateway does whose time is up: once EndsAt bytes of
	// it have come in, or with EndsWhole all of it, and EndsAfter has passed. What
	// came in goes the way of Store.
	EndsBodies int
	EndsAt     int64
	EndsWhole  bool
	EndsAfter  time.Duration
	// SignsForGet signs the URLs of redirects to storage for GET, whatever the
	// method of the request. Otherwise they are good for its method alone.
	SignsForGet bool
	// AbsentTag, when set, answers this to a question for a manifest that is not
	// there, as virtual repositories of Artifactory do with 403.
	AbsentTag int
	// QueuesManifests, when set, answers 429 to the first PUT of a manifest, which
	// is there after this time, as on Pulp.
	QueuesManifests time.Duration
	// NoManifestDigest are the methods whose answers about a manifest have no
	// Docker-Content-Digest: GET on ECR.
	NoManifestDigest []string
	// UnknownBlob, when set, is the code for a manifest whose blobs are not there,
	// instead of MANIFEST_BLOB_UNKNOWN. HidesUnknownBlob leaves out which blob.
	UnknownBlob      string
	HidesUnknownBlob bool
	// UserAgent, when set, is the prefix every User-Agent must have.
	UserAgent string

	// Intercept is asked what to do with a request; the zero Action is to serve
	// it. Requests refused for want of authorisation do not reach it, except
	// Ping and Token. It may be called from several goroutines.
	Intercept func(Request) Action
}

// Kind of a request.
type Kind int

const (
	Other        Kind = iota
	Ping              // GET /v2/
	Token             // GET /token
	HeadBlob          // HEAD or GET of a blob
	Post              // opens a session, or mounts
	Patch             // a chunk
	Status            // HEAD or GET of a session
	Put               // commit
	Cancel            // DELETE of a session
	HeadManifest      // HEAD or GET of a manifest
	PutManifest
	Stored // HEAD or GET of a blob in storage
)

var kinds = [...]string{"other", "ping", "token", "head blob", "post", "patch", "status", "put", "cancel", "head manifest", "put manifest", "stored"}

func (k Kind) String() string { return kinds[k] }

// Request is one line of the log, and what Intercept is told. While
// intercepting Status and Body are 0.
type Request struct {
	Kind Kind
	// N counts from 1 the requests of this kind for the same thing: the
	// session of an upload, the digest or tag of a blob or manifest, the
	// repository of a POST. Only requests that would reach Intercept count.
	N int
	// Seq counts from 1 the requests of this kind.
	Seq int

	Method, Host string
	Path         string // with the query
	Repo         string
	Reference    string // digest, or tag of a manifest; empty before the commit
	Upload       string // session
	Session      int    // number of the session, from 1 in the order opened

	Start      int64 // of Content-Range, -1 without one
	Length     int64 // Content-Length, -1 without one
	Authorized bool  // an Authorization header was there
	Secure     bool  // it came by TLS

	Status int   // answered; 0 when the connection was broken instead
	Body   int64 // bytes received

	At time.Time // when it came in
	// Late counts the bytes of a PATCH that arrived after a later PATCH of the
	// same session had begun: two writers at once.
	Late int64
	// Truncated says that the body ended early by a polite close. A client that
	// gives a body up has to reset the connection, or the rest is delivered.
	Truncated bool
}

// Action is what to do with a request. Fields combine; what comes first in
// time wins.
type Action struct {
	// ForgetSession drops the session before acting on the request; on a POST
	// the session that was just opened.
	ForgetSession bool
	// DamageSession, on a request that ends in BreakBody or AfterReset, leaves the
	// session behind in a state that every later request to it gets 500 for, as
	// distribution 3 on S3 does if it notices the break while it assembles the
	// parts. A commit is not carried out.
	DamageSession bool
	// CutBack, when set, takes all but so many bytes from the session before
	// acting, as distribution on S3 does when it loses its place.
	CutBack int64
	// Restart gives the registry a new secret before it acts: it cannot read
	// the Locations it handed out so far, and no token is good any more.
	Restart bool
	// DelayBefore passes before anything else is done, the body included.
	DelayBefore time.Duration

	// Before answers with this status instead of acting.
	Before int
	// BeforeReset breaks the connection instead of acting.
	BeforeReset bool
	// HangUp closes the connection politely instead of acting.
	HangUp bool
	// BreakBody reads BodyLimit bytes of the body, then breaks the connection.
	// What was read goes the way of Options.Store.
	BreakBody bool
	BodyLimit int64

	// EndBody reads the body, then answers with this status instead of acting.
	// Where BodyLimit is above 0, it reads no more than that. What was read goes
	// the way of Options.Store.
	EndBody int

	// Partial, on a PATCH, takes BodyLimit bytes of the body and throws the rest
	// away. The answer is 202 and its Range is honest.
	Partial bool

	// DelayAfter passes between acting and answering.
	DelayAfter time.Duration
	// After acts but answers with this status.
	After int
	// AfterReset acts but breaks the connection instead of answering.
	AfterReset bool
	// SlowCommit, on a PUT, loses the answer and shows the blob only after this
	// time. Meanwhile session and blob are both 404.
	SlowCommit time.Duration

	// Header is added to the answers of Before and After, Body is their body.
	Header http.Header
	Body   []byte
}
