// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/tempfile"
	"github.com/rpush-go/rpush/internal/wire"
)

// DefaultSpoolLimit is the default of TransportOptions.SpoolLimit, in bytes.
const DefaultSpoolLimit int64 = 10 << 30

// TransportOptions are the options of NewTransport. The zero value works.
type TransportOptions struct {
	// External carries the transport's own requests to hosts that neither the
	// client's request nor its POST was sent to. It must add no credentials. nil
	// is a transport of this package's own that refuses to connect to private
	// addresses for a public registry.
	External http.RoundTripper

	// RetryFor, Tries, StallTimeout and AnswerTimeout limit one request of the
	// client, as the fields of Options with these names limit one upload.
	RetryFor                    time.Duration
	Tries                       int
	StallTimeout, AnswerTimeout time.Duration

	// Dialects keeps what the transport learns about hosts. nil keeps it for this
	// transport alone.
	Dialects Dialects

	// Store keeps the records of open upload sessions, so that the same bytes, sent
	// again from the first one to the same repository, continue an upload that a
	// client, or this process, left unfinished. Kept are bodies of more than 1 MiB:
	// of a PUT under their digest; of a PATCH by how they begin, if they are copied
	// to the spool. nil keeps nothing.
	Store Store

	// SpoolDir is the directory for copies of bodies that cannot be read again.
	// The files have no names and end with the request. Empty is a directory for
	// temporary files on disk: /var/tmp if it exists and TMPDIR is not set.
	SpoolDir string

	// SpoolLimit is how many bytes all copies of a transport may hold together.
	// Half of the disk's free space limits them too. A body that does not fit
	// passes through, and can be resumed only if none of it was lost. 0 is
	// DefaultSpoolLimit. A negative limit makes no copies.
	SpoolLimit int64

	// Logger gets a line for each break and each decision about an upload, and
	// each request at debug level. It never gets a location or a credential. nil
	// is silent.
	Logger logrus.FieldLogger

	// OnEvent is called for each event of an upload, never by two goroutines at
	// once. It must not block. A PATCH has no digest yet, and neither do its
	// events: Event.Upload tells uploads apart.
	OnEvent func(Event)

	// Random returns numbers in [0, 1) that spread the waits between tries. nil
	// is math/rand/v2. Several goroutines may call it at once.
	Random func() float64
}

// NewTransport makes the blob uploads of any registry client that lets its
// http.RoundTripper be chosen resumable. base carries all requests; nil is
// http.DefaultTransport.
//
//	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{})
//	...
//	err = remote.Write(ref, img, remote.WithTransport(rt))
//
// An upload that goes well passes through untouched. One that breaks is settled
// and continued by the engine that Client.Upload uses, and answered as if
// nothing had happened: a PATCH with 202, a PUT with 201. The client does not
// notice, except by the time.
//
// Covered are PATCH and PUT to an upload location, which is the Location of an
// answer to a POST or PATCH that went through this transport; it is never
// guessed from a path. Everything else passes through: the POST that opens a
// session, existence checks, manifests, pulls.
//
//   - The body is read on from its last 8 MiB, which are kept in memory if
//     Request.GetBody is set; or re-read from Request.GetBody; or from the file, if
//     it is an *os.File; else from a spool, within SpoolLimit. A file or pipe
//     is closed when the request is over for good, which may be some minutes
//     after an answer of 401.
//   - A new session is opened only in place of one whose POST went through this
//     transport, and whose first byte is the first of the body.
//   - The commit, a PUT without a body, whose answer is lost is settled by asking
//     for the blob, and answered with 201, Location and Docker-Content-Digest.
//   - Where a registry has proved that it keeps whole requests only, or refuses
//     large ones, bodies go in chunks from then on: see Class.
//
// Credentials stay the client's. Requests of this transport's own carry the
// headers of the request they are made for, to its scheme, host and port only,
// and those of the POST to the POST's. An answer of 401 goes back to the client;
// when it sends the request again the upload continues where it stood, even if
// the body was used up (go-containerregistry does that).
//
// An answer of 408, 429 or 5xx is waited out and settled as a break is, except
// 500 to a request with GetBody, whose client can try again by its own rules. A
// client that counts what is read of its bodies counts bytes twice only if they are
// re-read from Request.GetBody: after a lost session, for one.
//
// What cannot be recovered ends with the answer or the error that broke it, in
// an *Error: a body that is larger than the spool where less is held than went
// out; a session that is lost after its first request; a client that does not
// send its request again after a 401 (oras-go with a file half sent).
//
// NewTransport fails only if an option is out of its bounds.
//
// The result is safe for concurrent use, as base has to be, and has a method
// CloseIdleConnections. It speaks whatever base speaks, HTTP/2 included.
// Answers to uploads are read up to 4 MiB before they are handed on.
func NewTransport(base http.RoundTripper, o TransportOptions) (http.RoundTripper, error) {
	if base == nil {
		base = http.DefaultTransport
	}
	if o.SpoolLimit == 0 {
		o.SpoolLimit = DefaultSpoolLimit
	}
	if tell := o.OnEvent; tell != nil {
		var mu sync.Mutex
		o.OnEvent = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			tell(e)
		}
	}
	if o.Dialects == nil {
		o.Dialects = MemoryDialects()
	}
	c, err := New(name.Repository{}, Options{ // for its defaults and checks
		Transport: base, External: o.External,
		RetryFor: o.RetryFor, Tries: o.Tries, StallTimeout: o.StallTimeout, AnswerTimeout: o.AnswerTimeout,
		Dialects: o.Dialects, Store: o.Store, Logger: o.Logger, OnEvent: o.OnEvent, Random: o.Random,
	})
	if err != nil {
		return nil, err
	}
	return &transporter{
		base:   wire.Track(base),
		o:      c.o,
		store:  o.Store,
		seen:   map[string]*seen{},
		pacers: map[string]*pacer{},
		abroad: map[string]http.RoundTripper{},
		spools: tempfile.Options{Dir: o.SpoolDir, Quota: tempfile.NewQuota(o.SpoolLimit)},
	}, nil
}

// transporter is what NewTransport makes.
type transporter struct {
	base   *wire.Tracker
	o      Options
	store  Store // nil keeps nothing
	spools tempfile.Options

	uploads atomic.Int64

	mu     sync.Mutex
	seen   map[string]*seen // by location
	pacers map[string]*pacer
	abroad map[string]http.RoundTripper // to other hosts than a registry's
}

// seen is an upload session that went by.
type seen struct {
	location *url.URL
	// base is that of its repository, header that of the request which opened it.
	base   *url.URL
	header http.Header
	// opened: its POST went by, so that another may be made in its place.
	opened bool
	offset int64 // what the client knows it to hold
	used   time.Time
	kept   *Key // of the record of a body that was sent to it

	busy bool
	left *left
}

// left is a request that could not be brought to its end.
type left struct {
	method string
	length int64
	moved  bool // the session is not where the client believes it
	doubt  bool // a commit may have been carried out
	body   passed
	was    io.ReadCloser // the client's body, to know it again
	timer  *time.Timer
}

const (
	maxSeen = 4096
	// seenFor is how long a session that nobody uses is known. Registries purge
	// them after days.
	seenFor = 24 * time.Hour
	// keepFor is how long the body of a request that got 401 is kept.
	keepFor = 5 * time.Minute
)

// RoundTrip implements http.RoundTripper.
func (t *transporter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPatch || req.Method == http.MethodPut {
		if s := t.take(req.URL); s != nil {
			defer t.release(s)
			if g := t.newPassage(req, s); g != nil {
				return g.carry(req.Context())
			}
		}
	}
	resp, err := t.base.RoundTrip(req)
	learnt := err == nil && resp.StatusCode == http.StatusAccepted && t.learn(req, resp)
	if req.Method == http.MethodPatch && !learnt && (err != nil || resp.StatusCode < 400) {
		t.lose(req.URL) // it stands nobody knows where
	}
	return resp, err
}

// CloseIdleConnections closes what no request is using, where base can.
func (t *transporter) CloseIdleConnections() {
	t.base.CloseIdleConnections()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, rt := range t.abroad {
		closeIdle(rt)
	}
}

func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// learn takes note of a session that a request opened, or that is known only
// now because its POST did not go this way. It reports whether there is one.
func (t *transporter) learn(req *http.Request, resp *http.Response) bool {
	base, ok := repository(req.URL)
	s := &seen{base: base, header: req.Header.Clone(), opened: true}
	switch {
	case !ok:
		return false
	case req.Method == http.MethodPost && strings.HasSuffix(strings.TrimSuffix(req.URL.Path, "/"), uploads):
	case req.Method == http.MethodPatch:
		held, ranged := protocol.ParseRange(resp.Header)
		if !ranged || held.Ambiguous {
			return false
		}
		s.offset, s.opened = held.Bytes, false
	default:
		return false
	}
	l, err := protocol.ParseLocation(base, req.URL, resp.Header)
	if err != nil {
		return false
	}
	s.location = l.URL
	if req.Method == http.MethodPost {
		t.pacer(base).announced(protocol.ParseChunkLengths(resp.Header))
	}
	t.put(s)
	return true
}

const uploads = "/blobs/uploads"

// repository is the URL of the repository that a request for uploads is about.
func repository(u *url.URL) (*url.URL, bool) {
	i := strings.LastIndex(u.Path, uploads)
	if i < 0 {
		return nil, false
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path[:i+1]}, true
}

// locator is what a location and the request to it have in common: clients write
// the query again when they add the digest, and ports that go without saying.
func locator(u *url.URL) string {
	q := u.Query()
	q.Del("digest")
	return u.Scheme + "://" + strings.ToLower(protocol.HostPort(u)) + u.Path + "?" + q.Encode()
}

func (t *transporter) put(s *seen) {
	t.mu.Lock()
	var out []passed
	now := time.Now()
	var oldest string
	for k, o := range t.seen {
		switch {
		case o.busy:
		case now.Sub(o.used) > seenFor:
			out = append(out, t.forget(k))
		case oldest == "" || o.used.Before(t.seen[oldest].used):
			oldest = k
		}
	}
	if len(t.seen) >= maxSeen {
		out = append(out, t.forget(oldest))
	}
	s.used = now
	out = append(out, t.forget(locator(s.location)))
	t.seen[locator(s.location)] = s
	t.mu.Unlock()
	closeAll(out...)
}

// forget wants t.mu held. What it returns is to be closed without: the client's
// own code may run then, and call back.
func (t *transporter) forget(k string) passed {
	var b passed
	if s := t.seen[k]; s != nil && s.left != nil {
		b = s.left.take()
	}
	delete(t.seen, k)
	return b
}

func closeAll(bodies ...passed) {
	for _, b := range bodies {
		if b != nil {
			b.close()
		}
	}
}

func (t *transporter) done(s *seen) {
	var b passed
	t.mu.Lock()
	if k := locator(s.location); t.seen[k] == s {
		b = t.forget(k)
	}
	t.mu.Unlock()
	closeAll(b)
}

// lose forgets the session that a URL is the location of.
func (t *transporter) lose(u *url.URL) {
	t.mu.Lock()
	b := t.forget(locator(u))
	t.mu.Unlock()
	closeAll(b)
}

// take gives the session that a URL is the location of, to one request at a
// time.
func (t *transporter) take(u *url.URL) *seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.seen[locator(u)]
	if s == nil || s.busy || time.Since(s.used) > seenFor { // the next put forgets it
		return nil
	}
	s.busy = true
	return s
}

func (t *transporter) release(s *seen) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.busy, s.used = false, time.Now()
}

// leave keeps a request that was not brought to its end.
func (t *transporter) leave(s *seen, l *left) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.left = l
	if r, ok := l.body.(*remade); ok {
		r.close() // the client may wait for that before it makes another
	}
	if l.body != nil {
		l.timer = time.AfterFunc(keepFor, func() {
			var b passed
			t.mu.Lock()
			if s.left == l {
				b = l.take()
			}
			t.mu.Unlock()
			closeAll(b)
		})
	}
}

// rest takes what was left of a session's last request.
func (t *transporter) rest(s *seen) *left {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := s.left
	s.left = nil
	if l != nil && l.timer != nil {
		l.timer.Stop()
	}
	return l
}

func (l *left) take() passed {
	b := l.body
	l.body, l.was = nil, nil
	return b
}

func (l *left) end() { closeAll(l.take()) }

// pacer is shared by all that goes to a host.
func (t *transporter) pacer(base *url.URL) *pacer {
	host := base.Scheme + "://" + protocol.HostPort(base)
	t.mu.Lock()
	p := t.pacers[host]
	t.mu.Unlock()
	if p != nil {
		return p
	}
	made := newPacer(host, t.o.Dialects) // which reads what the client keeps
	t.mu.Lock()
	defer t.mu.Unlock()
	if p = t.pacers[host]; p != nil {
		return p
	}
	if len(t.pacers) >= maxSeen {
		clear(t.pacers)
	}
	t.pacers[host] = made
	return made
}

// external carries the transport's own requests to hosts that neither the
// client nor its POST addressed.
func (t *transporter) external(base *url.URL) http.RoundTripper {
	if t.o.External != nil {
		return t.o.External
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	host := protocol.HostPort(base)
	rt := t.abroad[host]
	if rt == nil {
		if len(t.abroad) >= maxSeen {
			clear(t.abroad)
		}
		rt = wire.New(wire.Options{Stall: t.o.StallTimeout}).External(host)
		t.abroad[host] = rt
	}
	return rt
}

// client is one for the repository of a session, over g.
func (t *transporter) client(s *seen, g *passage) (*Client, error) {
	reg, err := name.NewRegistry(s.base.Host, name.WeakValidation)
	if err != nil {
		return nil, err
	}
	path := strings.Trim(strings.TrimPrefix(s.base.Path, "/v2/"), "/")
	c := &Client{o: t.o, repo: reg.Repo(path), base: s.base, rt: g, external: g, pace: t.pacer(s.base), heard: g.hear, slowSource: true}
	c.log = t.o.Logger.WithFields(logrus.Fields{"repository": c.repo.Name(), "upload": g.number}).WithContext(g.req.Context())
	if tell := t.o.OnEvent; tell != nil {
		c.o.OnEvent = func(e Event) {
			e.Upload = g.number
			tell(e)
		}
	}
	c.answered.Store(true) // the POST was
	return c, nil
}
