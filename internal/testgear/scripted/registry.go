// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Registry is an http.Handler. Its methods may be called at any time.
type Registry struct {
	o      Options
	closed chan struct{}

	mu         sync.Mutex // never held over a body or a sleep
	isClosed   bool
	repos      map[string]*repo
	uploads    map[string]*upload
	active     int
	sessions   int
	states     int
	tokens     map[string]*token
	issued     int
	counts     map[string]int
	log        []Request
	violations []string
}

type repo struct {
	blobs     map[string]blob
	phantoms  map[string]int64    // sizes of blobs that HEAD alone says are there
	manifests map[string]manifest // by digest
	tags      map[string]string
}

type blob struct {
	data []byte
	from time.Time // visible from then on
}

type manifest struct {
	data      []byte
	from      time.Time // visible from then on
	mediaType string
}

// New is an empty registry.
func New(o Options) *Registry {
	return &Registry{
		o: o, closed: make(chan struct{}),
		repos: map[string]*repo{}, uploads: map[string]*upload{},
		tokens: map[string]*token{}, counts: map[string]int{},
	}
}

// Close wakes the requests that sleep in a delay; they break. End a synctest
// bubble with it.
func (g *Registry) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isClosed {
		g.isClosed = true
		close(g.closed)
	}
}

// Active is the number of requests being served.
func (g *Registry) Active() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active
}

// Requests is the log, in the order the requests came in. It grows with the
// bodies that are being received.
func (g *Registry) Requests() []Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Request(nil), g.log...)
}

// Violations are the things a client must never do.
func (g *Registry) Violations() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.violations...)
}

// Blob is the content of a blob, nil if it is not there (yet).
func (g *Registry) Blob(repo, digest string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, _ := g.blob(repo, digest)
	return b.data
}

// Manifest is a manifest by tag or digest, nil if it is not there.
func (g *Registry) Manifest(repo, reference string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, _, _ := g.manifest(repo, reference)
	return m.data
}

// PutBlob stores a blob as if it had been pushed before.
func (g *Registry) PutBlob(repo, digest string, data []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.repo(repo).blobs[digest] = blob{data: data}
}

// PutPhantom makes HEAD answer 200 for a blob that is not there, as some versions
// of Artifactory do: GET is 404, and manifests that name it are refused.
func (g *Registry) PutPhantom(repo, digest string, size int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.repo(repo).phantoms[digest] = size
}

// DropBlob takes a blob away.
func (g *Registry) DropBlob(repo, digest string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.repo(repo).blobs, digest)
}

// Uploads is the number of open sessions.
func (g *Registry) Uploads() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.uploads)
}

// The methods from here on want g.mu held, unless they are an exchange's.

func (g *Registry) repo(name string) *repo {
	r := g.repos[name]
	if r == nil {
		r = &repo{blobs: map[string]blob{}, phantoms: map[string]int64{}, manifests: map[string]manifest{}, tags: map[string]string{}}
		g.repos[name] = r
	}
	return r
}

func (g *Registry) blob(repo, digest string) (blob, bool) {
	b, ok := g.repo(repo).blobs[digest]
	if !ok || time.Now().Before(b.from) {
		return blob{}, false
	}
	return b, true
}

func (g *Registry) manifest(repo, reference string) (manifest, string, bool) {
	r := g.repo(repo)
	if d, ok := r.tags[reference]; ok {
		reference = d
	}
	m, ok := r.manifests[reference]
	if !ok || time.Now().Before(m.from) {
		return manifest{}, reference, false
	}
	return m, reference, true
}

func (g *Registry) violate(format string, args ...any) {
	g.violations = append(g.violations, fmt.Sprintf(format, args...))
}

// restart forgets the secret that states and tokens were made with.
func (g *Registry) restart() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.tokens)
	for _, u := range g.uploads {
		clear(u.states)
		u.void = true
	}
}

// exchange is one request being served.
type exchange struct {
	g   *Registry
	w   http.ResponseWriter
	r   *http.Request
	q   Request
	at  int // index in the log
	act Action
}

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestForm = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
	rangeForm  = regexp.MustCompile(`^([0-9]+)-([0-9]+)$`)
)

// ServeHTTP serves one request of the distribution API.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{g: g, w: w, r: r}
	x.classify()
	x.begin()
	defer x.end()

	open := x.q.Kind == Ping || x.q.Kind == Token || x.q.Kind == Stored
	if !open && !x.authorize() {
		return
	}
	x.count()
	if g.o.Intercept != nil {
		x.act = g.o.Intercept(x.q)
	}
	if g.o.EndsBodies != 0 && x.q.Kind == Patch && x.q.Length > g.o.EndsAt {
		x.act.EndBody = g.o.EndsBodies
		if !g.o.EndsWhole {
			x.act.BodyLimit = g.o.EndsAt
		}
	}
	a := x.act
	if a.Restart {
		g.restart()
	}
	if a.ForgetSession && x.q.Kind != Post {
		g.mu.Lock()
		delete(g.uploads, x.q.Upload)
		g.mu.Unlock()
	}
	if a.CutBack > 0 {
		g.mu.Lock()
		if u := g.uploads[x.q.Upload]; u != nil {
			u.data = u.data[:min(a.CutBack, int64(len(u.data)))]
		}
		g.mu.Unlock()
	}
	switch {
	case !x.sleep(a.DelayBefore), a.BeforeReset:
		x.reset()
		return
	case a.HangUp:
		x.close(false)
		return
	case a.Before != 0:
		x.act = Action{Header: a.Header, Body: a.Body}
		x.scripted(a.Before)
		return
	}
	if x.q.Kind == Ping && !x.authorize() {
		return
	}
	if most := cmp.Or(g.o.MaxBody, g.o.MaxChunk); most > 0 && r.ContentLength > most {
		if g.o.HTML {
			x.page(http.StatusRequestEntityTooLarge)
			return
		}
		x.fail(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "body too large")
		return
	}
	if g.o.MaxRanged > 0 && x.q.Kind == Patch && r.Header.Get("Content-Range") != "" && r.ContentLength > g.o.MaxRanged {
		x.fail(http.StatusRequestedRangeNotSatisfiable, "REQUESTED_RANGE_NOT_SATISFIABLE",
			fmt.Sprintf("the request body is too large and exceeds the maximum permissible limit of %.2fMiB", float64(g.o.MaxRanged)/(1<<20)))
		return
	}
	x.serve()
}

func (x *exchange) serve() {
	q := &x.q
	if q.Repo != "" && !nameForm.MatchString(q.Repo) {
		x.fail(http.StatusBadRequest, "NAME_INVALID", q.Repo)
		return
	}
	switch q.Kind {
	case Ping:
		x.reply(http.StatusOK, []byte("{}"))
	case Token:
		x.token()
	case HeadBlob:
		x.getBlob()
	case Post:
		x.post()
	case Patch:
		x.patch()
	case Status:
		x.status()
	case Put:
		x.put()
	case Cancel:
		x.cancel()
	case Stored:
		x.stored()
	case HeadManifest:
		x.getManifest()
	case PutManifest:
		x.putManifest()
	default:
		x.fail(http.StatusNotFound, "UNSUPPORTED", x.r.Method+" "+x.r.URL.Path)
	}
}

// classify fills in what the request line and headers tell.
func (x *exchange) classify() {
	r, q := x.r, &x.q
	*q = Request{
		Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(),
		Start: -1, At: time.Now(), Length: r.ContentLength, Authorized: r.Header.Get("Authorization") != "", Secure: r.TLS != nil,
	}
	if m := rangeForm.FindStringSubmatch(r.Header.Get("Content-Range")); m != nil {
		q.Start, _ = strconv.ParseInt(m[1], 10, 64)
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	rest, isV2 := strings.CutPrefix(r.URL.Path, "/v2/")
	switch {
	case r.URL.Path == "/token" && r.Method == http.MethodGet:
		q.Kind = Token
		return
	case strings.HasPrefix(r.URL.Path, storage) && read:
		q.Kind = Stored
		q.Repo, q.Reference, _ = cutLast(strings.TrimPrefix(r.URL.Path, storage), "/")
		return
	case strings.HasPrefix(r.URL.Path, artifacts):
		if name, id, ok := cutLast(strings.TrimPrefix(r.URL.Path, artifacts), "/"); ok {
			rest = name + "/blobs/uploads/" + id
		}
	case !isV2:
		return
	case rest == "":
		if read {
			q.Kind = Ping
		}
		return
	}
	name, id, ok := cutLast(rest, "/blobs/uploads/")
	if !ok {
		name, id, ok = cutLast(rest, "/blobs/upload/")
	}
	if ok {
		q.Repo, q.Upload = name, id
		q.Reference = r.URL.Query().Get("digest")
		switch {
		case r.Method == http.MethodPost && id == "":
			q.Kind = Post
			q.Reference = r.URL.Query().Get("mount")
		case id == "":
		case read:
			q.Kind = Status
		case r.Method == http.MethodPatch:
			q.Kind = Patch
		case r.Method == http.MethodPut:
			q.Kind = Put
		case r.Method == http.MethodDelete:
			q.Kind = Cancel
		}
	} else if name, digest, ok := cutLast(rest, "/blobs/"); ok {
		q.Repo, q.Reference = name, digest
		if read {
			q.Kind = HeadBlob
		}
	} else if name, ref, ok := cutLast(rest, "/manifests/"); ok {
		q.Repo, q.Reference = name, ref
		switch {
		case read:
			q.Kind = HeadManifest
		case r.Method == http.MethodPut:
			q.Kind = PutManifest
		}
	}
}

// cutLast cuts around the last sep that ends in one path element.
func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i <= 0 || strings.Contains(s[i+len(sep):], "/") {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// begin puts the request in the log and looks at its manners.
func (x *exchange) begin() {
	g := x.g
	g.mu.Lock()
	defer g.mu.Unlock()
	u := g.uploads[x.q.Upload]
	if u != nil {
		x.q.Session = u.number
	}
	g.active++
	x.at = len(g.log)
	g.log = append(g.log, x.q)
	line := x.q.Method + " " + x.q.Path
	if ua := x.r.UserAgent(); g.o.UserAgent != "" && !strings.HasPrefix(ua, g.o.UserAgent) {
		g.violate("%s: User-Agent %q does not begin with %q", line, ua, g.o.UserAgent)
	}
	if x.foreign() && x.q.Authorized {
		g.violate("%s: credentials sent to %s", line, x.r.Host)
	}
	if x.q.Kind != Patch && x.q.Kind != Put {
		return
	}
	if len(x.r.TransferEncoding) > 0 {
		g.violate("%s: Transfer-Encoding %s although the size is known", line, x.r.TransferEncoding[0])
	}
	if x.q.Kind == Patch {
		if x.q.Length < 0 {
			g.violate("%s: no Content-Length", line)
		}
		switch h := x.r.Header.Get("Content-Range"); {
		case h == "" && (u == nil || u.received == 0): // the whole blob, or its first chunk
		case h == "":
			g.violate("%s: no Content-Range", line)
		case x.q.Start < 0:
			g.violate("%s: Content-Range %q is not first-last", line, h)
		}
	}
}

// foreign tells requests on the other host, which needs no credentials: the
// state in the URL is what authorises them.
func (x *exchange) foreign() bool {
	return x.g.o.OtherHost != "" && x.r.Host == x.g.o.OtherHost
}

// count numbers the request.
func (x *exchange) count() {
	g := x.g
	g.mu.Lock()
	defer g.mu.Unlock()
	id := x.q.Upload
	if id == "" && x.q.Kind != Post {
		id = x.q.Reference
	}
	kind := x.q.Kind.String()
	one := kind + " " + x.q.Repo + " " + id
	g.counts[kind]++
	g.counts[one]++
	x.q.Seq, x.q.N = g.counts[kind], g.counts[one]
}

// record brings the log up to date.
func (x *exchange) record() {
	x.g.mu.Lock()
	defer x.g.mu.Unlock()
	x.g.log[x.at] = x.q
}

func (x *exchange) end() {
	x.record()
	x.g.mu.Lock()
	defer x.g.mu.Unlock()
	x.g.active--
}

// sleep reports false when it was cut short.
func (x *exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
	case <-x.g.closed:
	}
	return false
}

// reset breaks the connection, with a RST where it can.
func (x *exchange) reset() { x.close(true) }

// close ends the connection without an answer.
func (x *exchange) close(harsh bool) {
	x.q.Status = 0
	x.record()
	if h, ok := x.w.(http.Hijacker); ok {
		if c, _, err := h.Hijack(); err == nil {
			if t, ok := c.(interface{ NetConn() net.Conn }); ok {
				c = t.NetConn()
			}
			if l, ok := c.(interface{ SetLinger(int) error }); ok && harsh {
				l.SetLinger(0)
			}
			c.Close()
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// scripted answers with a status of the script alone.
func (x *exchange) scripted(status int) {
	clear(x.w.Header())
	for k, v := range x.act.Header {
		x.w.Header()[http.CanonicalHeaderKey(k)] = v
	}
	x.write(status, x.act.Body)
}

// reply ends a request that was acted upon; headers are set already.
func (x *exchange) reply(status int, body []byte) {
	switch {
	case !x.sleep(x.act.DelayAfter), x.act.AfterReset:
		x.reset()
	case x.act.After != 0:
		x.scripted(x.act.After)
	default:
		x.write(status, body)
	}
}

// write logs before it answers, so that the client finds its request logged.
func (x *exchange) write(status int, body []byte) {
	x.q.Status = status
	x.record()
	if status != http.StatusNoContent && status >= 200 {
		x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	x.w.WriteHeader(status)
	x.w.Write(body)
}

// page answers as a gateway does.
func (x *exchange) page(status int) {
	x.w.Header().Set("Content-Type", "text/html")
	x.reply(status, []byte("<html><head><title>"+strconv.Itoa(status)+"</title></head><body>from the edge</body></html>"))
}

func (x *exchange) fail(status int, code, message string) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, _ := json.Marshal(map[string][]item{"errors": {{code, message}}})
	x.w.Header().Set("Content-Type", "application/json")
	x.reply(status, b)
}

// receive hands the body to f piece by piece. The error says that the body
// broke, by the client or by the script.
func (x *exchange) receive(f func([]byte)) error {
	buf := make([]byte, 32<<10)
	for {
		b := buf
		if x.act.BreakBody {
			left := x.act.BodyLimit - x.q.Body
			if left <= 0 {
				return errBroken
			}
			b = b[:min(int64(len(b)), left)]
		}
		if x.act.EndBody != 0 && x.act.BodyLimit > 0 {
			left := x.act.BodyLimit - x.q.Body
			if left <= 0 {
				return errEnded
			}
			b = b[:min(int64(len(b)), left)]
		}
		if x.act.Partial {
			left := x.act.BodyLimit - x.q.Body
			if left <= 0 {
				_, err := io.Copy(io.Discard, x.r.Body)
				return err
			}
			b = b[:min(int64(len(b)), left)]
		}
		n, err := x.r.Body.Read(b)
		x.q.Body += int64(n)
		if n > 0 {
			f(b[:n])
			x.record()
		}
		switch err {
		case nil:
		case io.EOF:
			if x.act.BreakBody {
				return errBroken
			}
			return nil
		default:
			x.q.Truncated = err == io.ErrUnexpectedEOF
			return err
		}
	}
}

func (x *exchange) getBlob() {
	if !digestForm.MatchString(x.q.Reference) {
		x.fail(http.StatusBadRequest, "DIGEST_INVALID", x.q.Reference)
		return
	}
	x.g.mu.Lock()
	b, ok := x.g.blob(x.q.Repo, x.q.Reference)
	size, phantom := x.g.repo(x.q.Repo).phantoms[x.q.Reference]
	x.g.mu.Unlock()
	if !ok && phantom && x.r.Method == http.MethodHead {
		x.w.Header().Set("Docker-Content-Digest", x.q.Reference)
		x.reply(http.StatusOK, make([]byte, size))
		return
	}
	if !ok {
		x.fail(http.StatusNotFound, "BLOB_UNKNOWN", x.q.Reference)
		return
	}
	if style := x.g.o.Storage; style != InRegistry {
		signed := x.r.Method
		if x.g.o.SignsForGet {
			signed = http.MethodGet
		}
		to := storage + x.q.Repo + "/" + x.q.Reference + "?signed=" + signed
		if style == OtherOrigin {
			to = "http://" + x.g.o.OtherHost + to
		}
		x.w.Header().Set("Location", to)
		x.reply(http.StatusTemporaryRedirect, nil)
		return
	}
	x.w.Header().Set("Content-Type", "application/octet-stream")
	x.w.Header().Set("Docker-Content-Digest", x.q.Reference)
	x.reply(http.StatusOK, b.data)
}

// artifacts is the path of upload locations of the style ArtifactsUploads.
const artifacts = "/artifacts-uploads/"

// storage is the path of what is stored.
const storage = "/storage/"

// stored answers as object storage does: by the signature alone, and without a
// digest.
func (x *exchange) stored() {
	if x.r.URL.Query().Get("signed") != x.r.Method {
		x.reply(http.StatusForbidden, []byte("<Error><Code>SignatureDoesNotMatch</Code></Error>"))
		return
	}
	x.g.mu.Lock()
	b, ok := x.g.blob(x.q.Repo, x.q.Reference)
	x.g.mu.Unlock()
	if !ok {
		x.reply(http.StatusNotFound, []byte("<Error><Code>NoSuchKey</Code></Error>"))
		return
	}
	x.w.Header().Set("Content-Type", "application/octet-stream")
	if x.r.Method == http.MethodGet && x.r.Header.Get("Range") == "bytes=0-0" && len(b.data) > 0 {
		x.w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-0/%d", len(b.data)))
		x.reply(http.StatusPartialContent, b.data[:1])
		return
	}
	x.reply(http.StatusOK, b.data)
}
