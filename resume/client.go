// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
)

// The defaults of Options.
const (
	DefaultRetryFor      = 10 * time.Minute
	DefaultStallTimeout  = time.Minute
	DefaultAnswerTimeout = 15 * time.Minute
	DefaultKeepFrom      = 1 << 20

	// FirstAnswerFor is the budget until a registry has answered for the first
	// time, where RetryFor is not shorter: a wrong address must not take ten
	// minutes to be found.
	FirstAnswerFor = 30 * time.Second
)

// Options of a Client. The zero value works, without credentials.
type Options struct {
	// PlainHTTP speaks http instead of https.
	PlainHTTP bool

	// Transport carries requests to the registry's own scheme, host and port,
	// and adds their credentials. It must not retry, and must pass the request's
	// context on, so that what each connection carried is known. nil is a
	// transport of this package's own without credentials, whose connections can
	// be killed for real and keep sendfile.
	Transport http.RoundTripper

	// External carries requests to upload locations on any other scheme, host
	// or port. It must add no credentials. nil is a transport of this package's
	// own that refuses to connect to private addresses for a public registry.
	External http.RoundTripper

	// RetryFor is how long to go on without progress: without the registry
	// holding more of the blob than ever before in this run. It is looked at
	// between requests only and never ends one that moves bytes. 0 is
	// DefaultRetryFor; negative is no second try.
	RetryFor time.Duration

	// Reached says that the registry has answered this program before, so that
	// RetryFor applies from the first request, not FirstAnswerFor.
	Reached bool

	// Tries is how many times in a row something may fail without progress; 0
	// leaves it to RetryFor alone. An answer that asks to come back later, such as
	// 429, is not counted.
	Tries int

	// StallTimeout is how long connecting, sending, or a request without a body
	// may make no progress before it counts as broken. 0 is
	// DefaultStallTimeout.
	StallTimeout time.Duration

	// AnswerTimeout is how long the registry may think about a body it has
	// received, or a commit. 0 is DefaultAnswerTimeout.
	AnswerTimeout time.Duration

	// UserAgent is set by the transports of this package's own. Empty is
	// "rpush".
	UserAgent string

	// Dialects keeps what is learnt about hosts; nil is for this client alone.
	Dialects Dialects

	// Store keeps the records of open upload sessions, from which a later Upload
	// of the same blob continues, and makes a second upload of it wait for the
	// first. nil keeps nothing.
	Store Store
	// KeepFrom is the size in bytes from which on uploads are kept: below, a
	// record costs more than it can save. Smaller blobs, if they are also smaller
	// than DefaultKeepFrom, go in the body of the commit: two requests instead of
	// three, and nothing to resume. 0 is DefaultKeepFrom.
	KeepFrom int64
	// Reference is written into records for people to read, and is in each event.
	Reference string

	// Logger gets one line for every break and everything else worth knowing,
	// and every request at debug level; never a location or a credential. nil
	// is silent.
	Logger logrus.FieldLogger

	// OnEvent is called for every event, never by two goroutines at once, and
	// must not block. Sent events come at most every 100 ms for a blob.
	OnEvent func(Event)

	// Random returns numbers in [0, 1) that spread the waits between tries; nil
	// is math/rand/v2. It is called by several goroutines.
	Random func() float64
}

// Client delivers blobs to one repository. It is safe for concurrent use; each
// blob must be uploaded by one call at a time.
type Client struct {
	o        Options
	repo     name.Repository
	base     *url.URL // scheme://host/v2/name/
	rt       http.RoundTripper
	external http.RoundTripper
	log      *logrus.Entry

	answered   atomic.Bool // the registry has answered something
	pace       *pacer
	saidMended atomic.Bool
	saidHungUp atomic.Bool
	saidUnkept atomic.Bool
	places     sync.Map // where the registry was seen to put uploads, as place says
	// heard, unless nil, is told every answer.
	heard func(*wire.Answer)
	// slowSource: bodies are another client's, who may take their time.
	slowSource bool

	events sync.Mutex

	own *wire.Transport // nil if the caller gave both transports
	ext *wire.External
}

// New makes a client for repo. It does not touch the network. The scheme comes
// from Options.PlainHTTP alone, whatever repo's Scheme method says.
func New(repo name.Repository, o Options) (*Client, error) {
	if o.StallTimeout < 0 || o.AnswerTimeout < 0 {
		return nil, errors.New("resume: a timeout is negative")
	}
	if o.RetryFor == 0 {
		o.RetryFor = DefaultRetryFor
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = DefaultAnswerTimeout
	}
	if o.KeepFrom == 0 {
		o.KeepFrom = DefaultKeepFrom
	}
	if o.UserAgent == "" {
		o.UserAgent = "rpush"
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Logger == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		o.Logger = l
	}
	scheme := "https"
	if o.PlainHTTP {
		scheme = "http"
	}
	c := &Client{
		o:        o,
		repo:     repo,
		base:     &url.URL{Scheme: scheme, Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/"},
		rt:       o.Transport,
		external: o.External,
		log:      o.Logger.WithField("repository", repo.Name()),
	}
	c.answered.Store(o.Reached)
	if o.Dialects == nil {
		o.Dialects = MemoryDialects()
	}
	c.pace = newPacer(scheme+"://"+protocol.HostPort(c.base), o.Dialects)
	if c.rt != nil {
		c.rt = wire.Tracked(c.rt)
	}
	if c.external != nil {
		c.external = wire.Tracked(c.external)
	}
	if c.rt == nil || c.external == nil {
		c.own = wire.New(wire.Options{UserAgent: o.UserAgent, Stall: o.StallTimeout})
		c.ext = c.own.External(protocol.HostPort(c.base))
		if c.rt == nil {
			c.rt = c.own
		}
		if c.external == nil {
			c.external = c.ext
		}
	}
	return c, nil
}

// CloseIdleConnections closes the connections of the client's own transports
// that no request is using. Idle connections close by themselves after 90
// seconds. It does not affect Options.Transport and Options.External. It is safe
// for concurrent use.
func (c *Client) CloseIdleConnections() {
	if c.own != nil {
		c.own.CloseIdleConnections()
		c.ext.CloseIdleConnections()
	}
}

// Exists asks whether the registry holds the blob (distribution-spec v1.1,
// end-2). A failed check is tried again and is never taken for "no". A redirect to
// another origin, which registries with object storage answer, counts as yes. A
// redirect within the registry's own origin is followed with HEAD; if it leads on
// to another origin, that one is asked without credentials, and counts as yes if
// its answer is about a blob of the given size. A size that contradicts the given one
// counts as no, unless the given one is negative.
func (c *Client) Exists(ctx context.Context, dgst digest.Digest, size int64) (bool, error) {
	var exists bool
	err := c.retry(ctx, subject{digest: dgst, size: max(size, 0)}, func(ctx context.Context, _ *retry.Loop) (err error) {
		exists, err = c.exists(ctx, dgst, size)
		return err
	})
	if err != nil {
		return false, c.failure("check", dgst, 0, max(size, 0), 0, err)
	}
	if exists {
		c.forget(ctx, dgst, size)
		c.emit(ctx, Event{Kind: Existed, Digest: dgst, Size: max(size, 0)})
	}
	return exists, nil
}

// exists asks for the blob. A redirect to another origin counts as yes.
func (c *Client) exists(ctx context.Context, dgst digest.Digest, size int64) (bool, error) {
	f, err := c.find(ctx, http.MethodHead, dgst, false)
	switch {
	case f.left && f.stayed && ctx.Err() == nil:
		// What another page of the registry leads to may be storage, as on Pulp, or
		// a sign-in. Whatever it fails to prove costs no more than sending the blob.
		return err == nil && size > 0 && f.proves(dgst, size), nil
	case err != nil || f.left:
		return err == nil, err
	}
	return c.judge(f, dgst, size)
}

// arrived is exists for a blob that has been sent. A success follows from a yes,
// so a redirect counts only if its target proves to be the blob.
//
// Object storage signs a URL for one method: S3 answers 403 to a GET of a URL
// that a registry signed for HEAD. The target of HEAD is therefore asked with
// HEAD. If that proves nothing, the registry is asked for a URL to GET.
//
// likely is the size that the blob has if size is negative: it tells the blob from
// other pages of the registry.
func (c *Client) arrived(ctx context.Context, dgst digest.Digest, size, likely int64) (bool, error) {
	f, err := c.find(ctx, http.MethodHead, dgst, true)
	switch {
	case err != nil:
		return false, err
	case f.redirected && !f.left && size < 0 && f.proves(dgst, likely):
		return true, nil
	case !f.redirected || !f.left && f.Status == http.StatusNotFound:
		return c.judge(f, dgst, size)
	case f.proves(dgst, size):
		return true, nil
	}
	return c.arrivedByGET(ctx, dgst, size, false)
}

// arrivedByGET is arrived where HEAD proves nothing. If certain is true, 404 from
// where the blob is stored means that it is not there.
func (c *Client) arrivedByGET(ctx context.Context, dgst digest.Digest, size int64, certain bool) (bool, error) {
	f, err := c.find(ctx, http.MethodGet, dgst, true, sizeRange(size)...)
	switch {
	case err != nil:
		return false, err
	case f.proves(dgst, size):
		return true, nil
	case f.Status == http.StatusNotFound && (certain || !f.left):
		return false, nil
	case !f.redirected && f.Status != http.StatusOK && f.Status != http.StatusPartialContent, f.redirected && !f.left:
		return c.judge(f, dgst, size)
	case f.Status != http.StatusOK && f.Status != http.StatusPartialContent:
		return false, protocol.Transient(fmt.Errorf("the registry leads to where the blob is stored, and the answer there is of status %d", f.Status))
	}
	return false, protocol.Transient(errors.New("the registry leads to where the blob is stored, and something else is there"))
}

// sizeRange asks for one byte, with which the size of the whole comes.
func sizeRange(size int64) []string {
	if size == 0 { // nothing has no first byte
		return nil
	}
	return []string{"Range", "bytes=0-0"}
}

// finding is the answer to a request for a blob, after its redirects.
type finding struct {
	*wire.Answer
	redirected bool
	stayed     bool // a redirect led to another path of the registry
	left       bool // the last redirect led to another origin than the registry's
}

// find asks for the blob and follows redirects with the same method. One from the
// blob itself to another origin is followed only if abroad is true; credentials
// never go there.
// header is a list of names and values.
func (c *Client) find(ctx context.Context, method string, dgst digest.Digest, abroad bool, header ...string) (f finding, err error) {
	at := c.url("blobs/" + dgst.String())
	for range maxRedirects + 1 {
		req := request(method, at, nil, 0)
		req.Header.Set("Accept-Encoding", "identity")
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		f.Answer, err = c.send(ctx, req, c.quick(), nil)
		switch {
		case err == nil:
		case !f.redirected || ctx.Err() != nil || protocol.Classify(err).Class == protocol.Break:
			return f, err
		default:
			return f, protocol.Transient(fmt.Errorf("asking where the blob is stored: %w", protocol.Plain(err)))
		}
		to := redirect(at, f.Answer)
		if to == nil {
			return f, c.ratherLimited(ctx, at, f.Answer)
		}
		f.redirected, f.left = true, !protocol.SameOrigin(c.base, to)
		if f.left && !abroad && !f.stayed {
			return f, nil
		}
		l, err := protocol.ParseLocation(c.base, at, f.Header)
		if err != nil {
			return f, protocol.Transient(fmt.Errorf("asking where the blob is stored: %w", protocol.Plain(err)))
		}
		at, f.left = l.URL, !protocol.SameOrigin(c.base, l.URL)
		f.stayed = f.stayed || !f.left
	}
	return f, protocol.Transient(errors.New("the registry redirects the check for the blob again and again"))
}

// ratherLimited returns the rate limit that a 403 to HEAD is. The answer to HEAD
// has no body, and GHCR says in the body alone whether its 403 is a denial or a
// rate limit. So the registry is asked again with GET.
func (c *Client) ratherLimited(ctx context.Context, at *url.URL, a *wire.Answer) error {
	if a.Status != http.StatusForbidden || a.Request.Method != http.MethodHead || !protocol.SameOrigin(c.base, at) ||
		protocol.Unexpected(a, time.Now()).Limited {
		return nil
	}
	req := request(http.MethodGet, at, nil, 0)
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("Range", "bytes=0-0")
	a, err := c.send(ctx, req, c.quick(), nil)
	if err != nil {
		return err
	}
	if se := protocol.Unexpected(a, time.Now()); a.Status == http.StatusForbidden && protocol.Classify(se).Class == protocol.Break {
		return se
	}
	return nil
}

// proves reports whether the answer can only be the blob's: it is about the
// digest, and of the given size unless that is negative.
func (f finding) proves(dgst digest.Digest, size int64) bool {
	total, ok := contentLength(f.Header)
	switch f.Status {
	case http.StatusOK:
	case http.StatusPartialContent:
		var part protocol.Part
		part, ok = protocol.ParsePart(f.Header)
		total, ok = part.Total, ok && part.Start == 0
	default:
		return false
	}
	if size <= 0 && f.redirected && !f.left && f.Header.Get("Docker-Content-Digest") == "" {
		// Nothing in the answer tells the blob from any other page of the registry.
		return false
	}
	return protocol.IsBlob(f.Header, dgst) && (size < 0 || ok && total == size)
}

// judge says whether the registry's own answer means that it holds the blob.
func (c *Client) judge(f finding, dgst digest.Digest, size int64) (bool, error) {
	switch {
	case f.Status == http.StatusNotFound:
		return false, nil
	case f.redirected:
		// To another path of the registry: the blob, as on Pulp and Artifact
		// Registry, or a login page.
		if se := protocol.Unexpected(f.Answer, time.Now()); f.Status != http.StatusOK && protocol.Classify(se).Class == protocol.Break {
			return false, se
		}
		return f.proves(dgst, size), nil
	case f.Status != http.StatusOK:
		return false, protocol.Unexpected(f.Answer, time.Now())
	}
	// A server that says 200 to everything must not make a push a success.
	if !protocol.IsBlob(f.Header, dgst) {
		c.log.WithField("digest", dgst).Warn("the answer to a check is not about the blob; sending it")
		return false, nil
	}
	if got, ok := contentLength(f.Header); ok && size >= 0 && got != size && f.Header.Get("Content-Encoding") == "" {
		c.log.WithFields(logrus.Fields{"digest": dgst, "size": size, "claimed": got}).
			Warn("the registry claims to have the blob with another size; sending it")
		return false, nil
	}
	return true, nil
}

// redirect is where an answer leads to, nil if nowhere else: a redirect to the
// same path is one to another name or scheme of the registry.
func redirect(asked *url.URL, a *wire.Answer) *url.URL {
	switch a.Status {
	case http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect:
		to, err := asked.Parse(a.Header.Get("Location"))
		if err == nil && a.Header.Get("Location") != "" && to.Path != asked.Path {
			return to
		}
	}
	return nil
}

// Do sends a request that may be sent more than once, such as a manifest,
// with the same limits and retries as a blob's. Its URL is taken relative to
// that of the repository ("manifests/latest"); a body needs GetBody, as
// http.NewRequest makes it. The answer's body has been read, up to 4 MiB, and
// needs no Close. Answers that are worth another try, 401 and 403 become
// errors, every other status is the caller's to judge. A GET follows redirects
// to where the registry stores things, without credentials there, and what it
// got is whole. Failures are of type *Error with op as their Op.
func (c *Client) Do(ctx context.Context, op string, req *http.Request) (*http.Response, error) {
	return c.DoUnless(ctx, op, req, nil, nil)
}

// DoUnless is Do for a request that may be carried out although its answer is
// lost, or is 429 because it waits in a queue (Pulp). Before req is sent again,
// check is sent once, and its answer is the result if done accepts it. check has no
// body.
func (c *Client) DoUnless(ctx context.Context, op string, req, check *http.Request, done func(*http.Response) bool) (*http.Response, error) {
	for _, r := range []*http.Request{req, check} {
		if r != nil && !protocol.SameOrigin(c.base, c.base.ResolveReference(r.URL)) {
			return nil, errors.New("resume: Do sends to the client's own registry only")
		}
	}
	var out *http.Response
	err := c.retry(ctx, subject{}, func(ctx context.Context, l *retry.Loop) (err error) {
		if check != nil && l.Tries() > 0 {
			switch out, err = c.once(ctx, check); {
			case err == nil && done(out):
				return nil
			case err != nil && protocol.Classify(err).Class != protocol.Final:
				return err
			}
		}
		out, err = c.once(ctx, req)
		return err
	})
	if err != nil {
		return nil, c.failure(op, "", 0, 0, 0, err)
	}
	return out, nil
}

// once carries out a request of Do.
func (c *Client) once(ctx context.Context, req *http.Request) (*http.Response, error) {
	u := c.base.ResolveReference(req.URL)
	var body wire.Body
	if req.GetBody != nil && req.ContentLength > 0 {
		r, err := req.GetBody()
		if err != nil {
			return nil, protocol.Kind(protocol.ErrSource, err)
		}
		body = wire.NewBody(r, req.ContentLength)
	}
	r := request(req.Method, u, body, req.ContentLength)
	for k, v := range req.Header {
		r.Header[k] = v
	}
	lim := c.quick()
	if body != nil {
		lim.Answer = c.o.AnswerTimeout
	}
	a, err := c.send(ctx, r, lim, nil)
	for hops := 0; err == nil && req.Method == http.MethodGet && redirect(r.URL, a) != nil && hops < maxRedirects; hops++ {
		var to protocol.Location
		if to, err = protocol.ParseLocation(c.base, r.URL, a.Header); err != nil {
			return nil, protocol.Kind(protocol.ErrEndpoint, err)
		}
		r = request(http.MethodGet, to.URL, nil, 0)
		r.Header["Accept"] = req.Header["Accept"]
		a, err = c.send(ctx, r, lim, nil)
	}
	if err != nil {
		return nil, err
	}
	if se := protocol.Unexpected(a, time.Now()); protocol.Classify(se).Class == protocol.Break || errors.Is(se, protocol.ErrDenied) {
		return nil, se
	}
	if err := whole(a); req.Method == http.MethodGet && a.Status == http.StatusOK && err != nil {
		return nil, err
	}
	return answer(a), nil
}

// whole is nil for an answer whose body came to its end: the connection may
// break after the headers.
func whole(a *wire.Answer) error {
	switch _, err := io.Copy(io.Discard, a.Response.Body); {
	case errors.Is(err, wire.ErrLongAnswer):
		return protocol.Kind(protocol.ErrRefused, err)
	case err != nil:
		return &wire.Error{Conn: a.Conn, Err: err}
	}
	return nil
}

// Refused makes the error for an answer of Do that is not the one hoped for.
func (c *Client) Refused(op string, resp *http.Response) error {
	body, _ := io.ReadAll(resp.Body)
	a := &wire.Answer{Status: resp.StatusCode, Header: resp.Header, Body: body, Request: resp.Request}
	return c.failure(op, "", 0, 0, 0, protocol.Unexpected(a, time.Now()))
}

// subject is what a run of the loop is about.
type subject struct {
	digest digest.Digest
	size   int64
	// broken, unless nil, is called for each request that broke, and returns
	// the offset that is safe.
	broken func() int64
}

// retry runs op in the one loop and tells of every request that broke.
func (c *Client) retry(ctx context.Context, s subject, op func(context.Context, *retry.Loop) error) error {
	err := retry.Policy{
		For:      c.o.RetryFor,
		First:    FirstAnswerFor,
		Tries:    c.o.Tries,
		Answered: &c.answered,
		Random:   c.o.Random,
		Failed: func(err error) {
			if conn, id, ok := exchange(err); ok && !protocol.Classify(err).Busy {
				var offset int64
				if s.broken != nil {
					offset = s.broken()
				}
				c.broken(ctx, s, offset, conn, id, err)
			}
		},
		Waiting: func(err error, wait time.Duration) {
			c.emit(ctx, Event{Kind: Waiting, Digest: s.digest, Size: s.size, Wait: wait, Err: err})
		},
	}.Do(ctx, func(ctx context.Context, l *retry.Loop) error {
		renewals, gains := 0, l.Gains()
		for {
			err := op(ctx, l)
			if !errors.Is(err, wire.ErrSpent) {
				return err
			}
			// The authorising transport has a new token, and could not send the
			// body again: nothing of it went out a second time.
			if n := l.Gains(); n != gains {
				renewals, gains = 0, n
			}
			if renewals++; renewals > maxRenewals {
				return protocol.Kind(protocol.ErrDenied, errors.New("the registry refuses every renewed authorization"))
			}
		}
	})
	var end *retry.Exhausted
	if errors.As(err, &end) {
		return protocol.Kind(protocol.ErrInterrupted, &BudgetError{
			Attempts: end.Tries, Since: end.Since, RetryAfter: end.Wait, Err: end.Err,
		})
	}
	return err
}

// maxRenewals ends a request, or an upload, whose authorization is renewed so
// many times in a row without progress.
const maxRenewals = 3

func (c *Client) failure(op string, dgst digest.Digest, offset, size int64, tries int, err error) error {
	if r := protocol.ReasonOf(err); r == protocol.NoRepository || r == protocol.MaybeNoRepository {
		err = &MissingRepositoryError{Repository: c.repo.Name(), Certain: r == protocol.NoRepository, Err: err}
	}
	return &Error{Op: op, Repository: c.repo.Name(), Digest: dgst, Offset: offset, Size: size, Attempts: tries, Err: err}
}

// quick are the limits of a request that a registry answers without thinking.
func (c *Client) quick() wire.Limits {
	return wire.Limits{Stall: c.o.StallTimeout, Answer: c.o.StallTimeout}
}

func (c *Client) slow() wire.Limits {
	return wire.Limits{Stall: c.o.StallTimeout, Answer: c.o.AnswerTimeout, SlowSource: c.slowSource}
}

func (c *Client) url(path string) *url.URL {
	u := *c.base
	u.Path += path
	return &u
}

// request makes a request of its own for each attempt: transports below change
// the URL and the headers. GetBody stays nil, so that net/http replays nothing
// by itself.
func request(method string, u *url.URL, body wire.Body, length int64) *http.Request {
	clone := *u
	r := &http.Request{
		Method: method, URL: &clone, Host: clone.Host, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if body != nil {
		r.Body, r.ContentLength = body, length
	}
	return r
}

// send carries out one request, once.
func (c *Client) send(ctx context.Context, r *http.Request, lim wire.Limits, onSent func(int64)) (*wire.Answer, error) {
	rt := c.rt
	own := protocol.SameOrigin(c.base, r.URL)
	if !own {
		rt = c.external
	} else if wait := c.pace.turn(time.Now()); wait > 0 {
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
	method, began := r.Method, time.Now()
	what := kind(r.URL.Path, c.base.Path)
	a, err := wire.Send(ctx, rt, r, lim, onSent)
	log := c.log.WithContext(ctx).WithFields(logrus.Fields{"method": method, "request": what, "took": time.Since(began).Round(time.Millisecond)})
	if err != nil && ctx.Err() != nil {
		log.Debug("cancelled")
		return nil, err
	}
	if err != nil {
		log.WithField("error", protocol.Text(protocol.Classify(err).Err)).Debug("no answer")
		return nil, c.tokenAnswer(err)
	}
	log.WithField("status", a.Status).Debug("answered")
	c.answered.Store(true)
	if own && (a.Status == http.StatusTooManyRequests || a.Status == http.StatusForbidden) {
		if se := protocol.Unexpected(a, time.Now()); se.RateLimited() {
			c.pace.tooMany(time.Now(), se.After, se.PerMinute)
		}
	}
	if c.heard != nil {
		c.heard(a)
	}
	return a, nil
}

// tokenAnswer takes note where err is what a token server answered.
func (c *Client) tokenAnswer(err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return err
	}
	c.answered.Store(true)
	if errors.Is(err, ErrEndpoint) {
		return err
	}
	return &wire.Error{Err: te}
}

// kind names what a request is about without its location.
func kind(path, base string) string {
	if path == "/v2/" {
		return "ping"
	}
	for _, k := range []string{"manifests/", "blobs/uploads/", "blobs/upload/", "blobs/"} {
		if len(path) >= len(base)+len(k) && path[:len(base)] == base && path[len(base):len(base)+len(k)] == k {
			return k[:len(k)-1]
		}
	}
	return "upload location"
}

// broken tells of a request that broke.
func (c *Client) broken(ctx context.Context, s subject, offset int64, conn wire.Info, requestID string, err error) {
	e := Event{Kind: Broken, Digest: s.digest, Size: s.size, Offset: offset, Err: err}
	f := logrus.Fields{"error": protocol.Text(err), "utc": time.Now().UTC().Format(time.RFC3339Nano)}
	if s.digest != "" {
		f["digest"], f["offset"], f["size"] = s.digest, offset, s.size
	}
	if conn.Remote != "" {
		e.Conn = &Conn{Local: conn.Local, Remote: conn.Remote, Age: conn.Age, Sent: conn.Sent, Received: conn.Received, RequestID: requestID}
		f["local"], f["remote"], f["age"] = conn.Local, conn.Remote, conn.Age.Round(time.Millisecond)
		f["sent"], f["received"] = conn.Sent, conn.Received
	}
	if requestID != "" {
		f["requestID"] = requestID
	}
	c.log.WithContext(ctx).WithFields(f).Warn("request broken")
	c.emit(ctx, e)
}

// warn tells of something that the user should know.
func (c *Client) warn(ctx context.Context, s subject, err error) {
	c.log.WithField("digest", s.digest).Warn(protocol.Text(err))
	c.emit(ctx, Event{Kind: Warned, Digest: s.digest, Size: s.size, Err: err})
}

func (c *Client) emit(ctx context.Context, e Event) {
	if c.o.OnEvent == nil {
		return
	}
	e.Time, e.Context, e.Reference, e.Repository = time.Now(), ctx, c.o.Reference, c.repo.Name()
	c.events.Lock()
	defer c.events.Unlock()
	c.o.OnEvent(e)
}

// exchange gives the connection and the request id of an exchange that
// failed; ok is false for any other error, such as a lost session.
func exchange(err error) (conn wire.Info, requestID string, ok bool) {
	if protocol.IsTransient(err) {
		return wire.Info{}, "", false
	}
	var we *wire.Error
	if errors.As(err, &we) {
		return we.Conn, "", true
	}
	var se *protocol.StatusError
	if errors.As(err, &se) {
		return se.Conn, se.RequestID, true
	}
	return wire.Info{}, "", false
}

func contentLength(h http.Header) (int64, bool) {
	n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	return n, err == nil
}
