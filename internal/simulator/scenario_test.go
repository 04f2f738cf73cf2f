// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// scenario is all that a seed decides.
type scenario struct {
	seed    uint64
	dialect scripted.Options
	persona string // whose dialect it is, if anybody's
	tls     bool
	hint    resume.Dialect // what an earlier process claims to have learnt
	misled  bool           // and that is not so

	sizes    []int // of the blobs; more than one are the layers of an image
	image    bool
	parallel int
	existing bool // the first blob is there already
	mount    bool // it may be mounted, and that works only if the other repository has it
	source   bool
	inOne    bool // small blobs go in the body of the commit

	faults []fault
	conns  []memnet.Limits // of the first connections
	cancel position        // the caller gives up there
	deaths []position      // the process dies there, and the next one continues

	retryFor, stall, answer time.Duration

	mayFail map[error]string // the kinds of failure that are no mistake, and why
}

// position is the nth request of a kind.
type position struct {
	kind scripted.Kind
	nth  int
}

func (p position) String() string {
	return fmt.Sprintf("%s#%d", strings.ReplaceAll(p.kind.String(), " ", "-"), p.nth)
}

// what a fault does.
type what int

const (
	resetBefore  what = iota // the connection dies instead of acting
	resetAfter               // it dies instead of answering
	breakBody                // the body breaks at a byte
	partBody                 // only the first bytes of the body are taken, and the answer says so
	stall                    // nothing moves for longer than the client waits
	mute                     // acts, and answers later than the client waits
	slow                     // slow, and no more
	before                   // another status instead of acting
	after                    // another status although it acted
	unauthorized             // 401: the token is not good any more
	html                     // 200 and a web page, from some proxy
	forget                   // the session is gone
	restart                  // the registry restarts with a new secret
	slowCommit               // the answer is lost and the blob appears later
	wrongRange               // 202 and a Range that contradicts, although it acted
	lie                      // a status answer with a wrong Range
	limited                  // 403 that is a rate limit, as on GHCR
	damage                   // the request breaks, and the session gets 500 from then on
	whats
)

var whatNames = [whats]string{
	"reset-before", "reset-after", "break-body", "partial", "stall", "mute", "slow", "before", "after", "401",
	"html", "forget", "restart", "slow-commit", "wrong-range", "lie", "limited", "damage",
}

type fault struct {
	position
	what   what
	at     int64
	status int
	wait   time.Duration // how long, or Retry-After
	asDate bool
}

func (f fault) String() string {
	s := f.position.String() + " " + whatNames[f.what]
	switch f.what {
	case breakBody, partBody, lie, damage:
		s += fmt.Sprintf("@%d", f.at)
	case before, after:
		s += fmt.Sprint("=", f.status)
	}
	if f.wait > 0 {
		s += " " + f.wait.String()
		if f.asDate {
			s += " as date"
		}
	}
	return s
}

// page is larger than most blobs, and no image is of its size: nobody could tell
// an answer to HEAD that has no type and the right length.
var page = []byte("<html><body>Please accept the terms of use of this network before you go on.</body></html>" + strings.Repeat("\n", 7919))

// rateLimit is what GHCR says to a client that writes too often.
var rateLimit = []byte(`{"errors":[{"code":"DENIED","message":"permission_denied: Error from intermediary with HTTP status code 403 \"Forbidden\" - ` +
	`with-body: {\"message\":\"You have exceeded a secondary rate limit. Please wait a few minutes before you try again.\"}"}]}`)

// action is made when the request comes: dates depend on the clock.
func (f fault) action(now time.Time, scheme string) scripted.Action {
	var a scripted.Action
	header := http.Header{}
	switch f.what {
	case resetBefore:
		a.BeforeReset = true
	case resetAfter:
		a.AfterReset = true
	case breakBody:
		a.BreakBody, a.BodyLimit, a.DelayBefore = true, f.at, f.wait
	case partBody:
		a.Partial, a.BodyLimit = true, f.at
	case stall, slow:
		a.DelayBefore = f.wait
	case mute:
		a.DelayAfter = f.wait
	case before, after:
		if f.what == before {
			a.Before = f.status
		} else {
			a.After = f.status
		}
		if f.asDate {
			header.Set("Retry-After", now.Add(f.wait).UTC().Format(http.TimeFormat))
		} else if f.wait > 0 {
			header.Set("Retry-After", fmt.Sprint(int(f.wait/time.Second)))
		}
	case unauthorized:
		a.Before = http.StatusUnauthorized
		header.Set("WWW-Authenticate", `Bearer realm="`+scheme+`://reg.test/token",service="scripted",scope="repository:team/app:pull,push",error="invalid_token"`)
	case html:
		a.Before, a.Body = http.StatusOK, page
		header.Set("Content-Type", "text/html")
		if f.nth%2 == 0 {
			header.Set("Content-Type", "application/octet-stream") // some proxies do not care
		}
	case forget:
		a.ForgetSession = true
	case restart:
		a.Restart = true
	case slowCommit:
		a.SlowCommit = f.wait
	case wrongRange:
		a.After = http.StatusAccepted
		header.Set("Range", "0-7")
	case limited:
		a.Before, a.Body = http.StatusForbidden, rateLimit
	case damage:
		a.DamageSession = true
		if f.kind == scripted.Patch {
			a.BreakBody, a.BodyLimit = true, f.at
		}
	case lie:
		a.Before = http.StatusNoContent
		header.Set("Range", fmt.Sprint("0-", f.at))
	}
	if len(header) > 0 {
		a.Header = header
	}
	return a
}

// draw makes the scenario of a seed.
func draw(seed uint64) *scenario {
	d := &drawer{rand.New(rand.NewPCG(seed, 0x5ee0))}
	s := &scenario{seed: seed, parallel: 1, mayFail: map[error]string{}}
	s.image = d.in(6)
	s.inOne = d.in(4)
	d.dialect(s)
	if d.in(5) {
		d.personality(s)
	}
	d.size(s)
	d.options(s)
	switch {
	case s.tight() && !s.image && d.in(25):
		d.patience(s)
	default:
		d.faults(s)
		d.connections(s)
	}
	if !s.image && d.in(60) {
		s.cancel = position{d.kind(s), d.between(1, 3)}
		s.mayFail[resume.ErrInterrupted] = "the caller gives up"
	} else if !s.image && d.in(4) {
		for range d.between(1, 3) {
			s.deaths = append(s.deaths, position{pick(d, scripted.Patch, scripted.Patch, scripted.Patch, scripted.Status, scripted.Put, scripted.Post), d.between(1, 6)})
		}
	}
	d.budget(s)
	d = &drawer{rand.New(rand.NewPCG(seed, 0x417))}
	d.misled(s)
	d.crowd(s)
	d.failures(s)
	return s
}

// misled makes an earlier process claim to have learnt what is not so. The
// numbers come from a generator of their own.
func (d *drawer) misled(s *scenario) {
	if s.hint != (resume.Dialect{}) || !d.in(8) {
		return
	}
	switch d.IntN(4) {
	case 0:
		s.hint.OffByOne = true
	case 1:
		s.hint.StuckRange, s.hint.NoStatus = true, true
	case 2:
		s.hint.MaxBody = 100_000
	case 3:
		s.hint = resume.Dialect{Class: resume.Monolithic, StatusGET: true}
	}
	s.misled = true
}

// crowd has the registry keep fewer sessions than are open at once.
func (d *drawer) crowd(s *scenario) {
	if s.image && s.parallel > 1 && d.in(5) {
		s.dialect.MaxSessions = s.parallel - 1
	}
}

type drawer struct{ *rand.Rand }

// in is true once in n.
func (d *drawer) in(n int) bool { return d.IntN(n) == 0 }

func (d *drawer) between(a, b int) int { return a + d.IntN(b-a+1) }

func pick[T any](d *drawer, of ...T) T { return of[d.IntN(len(of))] }

func (d *drawer) dialect(s *scenario) {
	o := &s.dialect
	o.UserAgent = "rpush"
	o.Store = pick(d, scripted.Keep, scripted.Keep, scripted.Boundary, scripted.Fragile)
	if o.Store == scripted.Keep && d.in(5) {
		o.PartSize = int64(pick(d, 1000, 16<<10, 64<<10, 5<<20))
	}
	o.Status = pick(d, scripted.HeadAndGet, scripted.HeadAndGet, scripted.HeadAndGet, scripted.GetOnly, scripted.GetOnly, scripted.NoStatus)
	if d.in(3) {
		o.Range = pick(d, scripted.BytesPrefix, scripted.OffByOne, scripted.EmptyMinusOne, scripted.NoRange, scripted.Beyond, scripted.Stuck)
	}
	s.tls = d.in(12)
	if d.in(3) {
		o.Location = pick(d, scripted.Relative, scripted.MissingOnStatus, scripted.OtherHost)
	}
	if s.tls && d.in(2) {
		o.Location = scripted.Downgrade
	}
	if o.Location == scripted.OtherHost {
		o.OtherHost = "other.test"
	}
	o.LooseRange = d.in(6)
	o.StaleIsGone = d.in(6)
	o.OnePatch = d.in(12)
	switch d.IntN(16) {
	case 0:
		o.MaxBody = int64(pick(d, 64<<10, 100_000, 200_000, 1<<20))
	case 1:
		o.MinChunk = int64(pick(d, 1, 100_000, 1<<20, 3<<20))
	case 2:
		o.MaxChunk = int64(pick(d, 64<<10, 100_000, 200_000, 1<<20))
		if o.EqualChunks = d.in(2); o.EqualChunks {
			o.Store, o.PartSize = scripted.Boundary, 0
		}
		if d.in(3) {
			o.MinChunk = int64(pick(d, 1, 64<<10, int(o.MaxChunk)))
		}
	case 3:
		if !s.image && d.in(2) {
			o.EndsBodies = pick(d, 408, 502, 504, 524)
			o.EndsAt, o.EndsWhole, o.EndsAfter = int64(d.between(1<<20, 2<<20)), d.in(2), 21*time.Second
			if o.Location == scripted.MissingOnStatus {
				o.Location = scripted.Absolute // or it takes one PATCH after a break, and a whole one never gets through
			}
		}
	}
	if s.inOne && d.in(8) {
		o.NoPutBody = pick(d, 400, 404, 405, 415, 416)
	}
	if o.MaxBody > 0 || o.MaxChunk > 0 || o.EndsBodies > 0 {
		o.OnePatch = false // together they take no large blob at all
	}
	switch d.IntN(8) {
	case 0:
		o.Auth = scripted.Auth{Scheme: scripted.Basic, User: "user", Password: "hunter2-secret"}
	case 1, 2:
		o.Auth = scripted.Auth{Scheme: scripted.Bearer, User: "user", Password: "hunter2-secret"}
		if d.in(2) {
			o.Auth.TokenRequests = d.between(4, 12)
			if s.image {
				o.Auth.TokenRequests *= 8 // shared by all that goes on at once
			}
		}
	}
	if d.in(10) {
		s.hint = resume.Dialect{
			Class:     pick(d, resume.Exact, resume.Boundary, resume.Fragile, resume.Monolithic),
			StatusGET: d.in(2),
			OffByOne:  o.Range == scripted.OffByOne,
		}
		if s.hint.Class != resume.Exact && s.hint.Class != resume.Monolithic {
			s.hint.Chunk = int64(d.between(1, 40)) << 20
		}
	}
}

// personality makes the registry one that people push to.
func (d *drawer) personality(s *scenario) {
	p := pick(d, scripted.Personalities()...)
	o := p.Options.Scaled(64) // blobs are small
	if o.EndsBodies > 0 {
		o.EndsAt, o.EndsAfter, o.MaxBody = 3<<19, 21*time.Second, 0 // more than the least chunk
		if s.image {
			o.EndsBodies = 0
		}
	}
	o.UserAgent, o.Auth = s.dialect.UserAgent, s.dialect.Auth
	s.dialect, s.persona, s.tls = o, p.Name, false
	s.hint.OffByOne = false
}

func (d *drawer) size(s *scenario) {
	n := 1
	if s.image {
		n = d.between(2, 5)
		s.parallel = d.between(1, 4)
	}
	unit := pick(d, 1000, 4096, 16<<10, 32<<10, 64<<10)
	for _, special := range []int64{s.dialect.PartSize, s.dialect.MaxBody, s.dialect.MinChunk, s.dialect.MaxChunk} {
		if special > 0 && special <= 1<<20 {
			unit = int(special)
		}
	}
	for range n {
		size := d.between(3, 300_000)
		switch {
		case d.in(2):
			size = pick(d, 0, 1, 2, unit-1, unit, unit+1, 2*unit, 2*unit+1)
		case !s.image && d.in(24):
			size = pick(d, 1<<20, 2<<20+1, d.between(1<<20, 6<<20))
		case d.in(3):
			size = d.between(3, 5000)
		}
		if s.dialect.NoEmpty != 0 {
			size = max(size, 1)
		}
		s.sizes = append(s.sizes, size)
	}
	if s.dialect.MinChunk > 1<<20 && s.dialect.MaxChunk == 0 && !s.image && d.in(2) {
		// Larger than chunks would be otherwise.
		s.sizes[0] = d.between(3<<20, 7<<20)
		s.hint = resume.Dialect{Class: pick(d, resume.Boundary, resume.Fragile), Chunk: 1 << 20}
	}
	if s.dialect.EndsBodies > 0 {
		s.sizes[0] = d.between(2<<20, 5<<20)
	}
	s.existing = d.in(20)
	s.mount = !s.image && d.in(20)
	s.source = s.mount && d.in(2)
}

func (d *drawer) options(s *scenario) {
	s.stall = time.Duration(d.between(5, 60)) * time.Second
	s.answer = time.Duration(d.between(20, 120)) * time.Second
}

// kind picks a kind of request that the scenario has.
func (d *drawer) kind(s *scenario) scripted.Kind {
	kinds := []scripted.Kind{
		scripted.HeadBlob, scripted.Post, scripted.Patch, scripted.Patch, scripted.Patch, scripted.Patch,
		scripted.Status, scripted.Status, scripted.Put, scripted.Put,
	}
	if s.image {
		kinds = append(kinds, scripted.HeadManifest, scripted.PutManifest, scripted.PutManifest, scripted.Ping)
	}
	if s.dialect.Auth.Scheme == scripted.Bearer {
		kinds = append(kinds, scripted.Token)
	}
	return pick(d, kinds...)
}

// fits are the faults of each kind of request.
var fits = map[scripted.Kind][]what{
	scripted.Ping:         {resetBefore, resetAfter, before, slow},
	scripted.Token:        {resetBefore, resetAfter, before, slow},
	scripted.HeadBlob:     {resetBefore, resetAfter, before, html, slow, unauthorized},
	scripted.Post:         {resetBefore, resetAfter, before, after, forget, restart, slow, stall, unauthorized, limited},
	scripted.Patch:        {resetBefore, resetAfter, breakBody, breakBody, breakBody, partBody, stall, mute, slow, before, after, html, forget, restart, unauthorized, wrongRange, limited, damage},
	scripted.Status:       {resetBefore, resetAfter, before, html, forget, restart, slow, stall, unauthorized, lie},
	scripted.Put:          {resetBefore, resetAfter, before, after, forget, restart, slow, mute, slowCommit, unauthorized, html, limited, damage},
	scripted.HeadManifest: {resetBefore, resetAfter, before, slow, unauthorized},
	scripted.PutManifest:  {resetBefore, resetAfter, breakBody, before, after, mute, slow, unauthorized},
}

func (d *drawer) faults(s *scenario) {
	n := d.between(0, 6)
	if s.image {
		n = d.between(0, 8)
	}
	for range n {
		k := d.kind(s)
		p := position{k, d.between(1, 3)}
		if k == scripted.Patch {
			p.nth = d.between(1, 5)
		}
		if s.inOne && k == scripted.Put && d.in(3) {
			// The others are for commits without a body as well.
			f := fault{position: p, what: breakBody}
			d.fill(s, &f)
			s.faults = append(s.faults, f)
			continue
		}
		taken := 0
		for _, f := range s.faults {
			if f.position == p {
				taken = 9
			}
			if f.kind == k && k != scripted.Patch && k != scripted.Status {
				taken++
			}
		}
		if taken >= 3 {
			continue
		}
		f := fault{position: p, what: pick(d, fits[k]...)}
		d.fill(s, &f)
		if !d.sane(s, f) {
			continue
		}
		s.faults = append(s.faults, f)
	}
	slices.SortFunc(s.faults, func(a, b fault) int {
		if a.kind != b.kind {
			return int(a.kind) - int(b.kind)
		}
		return a.nth - b.nth
	})
}

func (d *drawer) fill(s *scenario, f *fault) {
	size := slices.Max(s.sizes)
	switch f.what {
	case breakBody, partBody, damage:
		f.at = int64(d.between(0, size))
		if d.in(4) {
			f.at = int64(min(pick(d, 0, 1, 2, max(size-1, 0), size), size))
		}
		if f.kind == scripted.PutManifest {
			f.at = int64(d.between(0, 300))
		}
	case lie:
		f.at = int64(d.between(0, size+1))
	case stall:
		f.wait = 2*s.stall + time.Second
	case mute:
		f.wait = 2*max(s.stall, s.answer) + time.Second
	case slow:
		f.wait = time.Duration(d.between(1, int(s.stall/time.Millisecond)*2/3)) * time.Millisecond
	case slowCommit:
		f.wait = time.Duration(d.between(100, 25_000)) * time.Millisecond
	case before, after:
		f.status = pick(d, 500, 502, 503, 504, 408, 429, 429)
		if f.status == 429 || f.status == 503 && d.in(2) {
			f.wait = time.Duration(d.between(1, 60)) * time.Second
			f.asDate = d.in(2)
		}
		if d.in(3) {
			switch f.kind {
			case scripted.Patch:
				f.status, f.wait, f.asDate = pick(d, 400, 404, 416, 409, 410), 0, false
			case scripted.Status:
				f.status, f.wait, f.asDate = pick(d, 404, 416), 0, false
			case scripted.Put:
				f.status, f.wait, f.asDate = pick(d, 404, 416, 400), 0, false
			}
		}
		if f.kind == scripted.Put && f.what == after && d.in(3) {
			f.status, f.wait, f.asDate = pick(d, 200, 202, 204), 0, false
		}
	}
}

// sane leaves out faults that nothing can be done about.
func (d *drawer) sane(s *scenario, f fault) bool {
	switch f.what {
	case unauthorized:
		// Twice in a row is a password that is not good, not a token.
		if s.dialect.Auth.Scheme != scripted.Bearer || s.dialect.OtherHost != "" || s.image && (s.dialect.Auth.TokenRequests > 0 || s.has(is(restart))) {
			return false
		}
		for _, g := range s.faults {
			if g.what == unauthorized && (s.image || g.kind == f.kind && max(g.nth-f.nth, f.nth-g.nth) < 2) {
				return false
			}
		}
	case restart:
		return !s.image || !s.has(is(unauthorized))
	case partBody:
		return s.dialect.Range != scripted.NoRange && s.dialect.Range != scripted.Stuck
	case stall:
		// Before the first answer there are only 30 s.
		return f.kind != scripted.Post || s.stall < 15*time.Second
	}
	return true
}

func is(w what) func(fault) bool { return func(f fault) bool { return f.what == w } }

// connections break after a number of bytes, the first ones only.
func (d *drawer) connections(s *scenario) {
	if s.tls || !d.in(3) {
		return // TLS adds bytes of its own
	}
	size := slices.Max(s.sizes)
	for range d.between(1, 4) {
		l := memnet.Unlimited()
		switch d.IntN(5) {
		case 0:
			l.Down = int64(d.between(0, 1500))
		case 1, 2, 3:
			l.Up = int64(d.between(0, 1500+size))
			l.Lose = d.in(3)
			if l.Lose || d.in(2) {
				// Without a number what is lost depends on who is faster.
				l.LateBytes = int64(d.between(1, 30_000))
				l.Late = pick(d, 2*time.Millisecond, 5*time.Millisecond, 9*time.Millisecond, 40*time.Millisecond, time.Second)
			}
		}
		s.conns = append(s.conns, l)
	}
}

// patience draws a line so slow that all the breaks together take longer than
// the budget, while each comes with progress.
func (d *drawer) patience(s *scenario) {
	s.existing, s.mount, s.source, s.inOne = false, false, false, false
	size := d.between(10_000, 200_000)
	if p := int(s.dialect.PartSize); p > 0 {
		s.dialect.PartSize = 1000
	}
	s.dialect.MaxBody, s.dialect.MaxChunk, s.dialect.EndsBodies = 0, 0, 0
	s.sizes = []int{size}
	s.hint = resume.Dialect{}
	s.stall = 20 * time.Second
	s.retryFor = 30 * time.Second
	for n := 1; n <= 8; n++ {
		s.faults = append(s.faults, fault{position: position{scripted.Patch, n}, what: breakBody, at: int64(size / 9), wait: 15 * time.Second})
	}
}

// budget makes room for all the waiting that the faults can cause.
func (d *drawer) budget(s *scenario) {
	if s.retryFor > 0 {
		return
	}
	most := time.Duration(0)
	for _, f := range s.faults {
		most += f.wait + max(s.stall, s.answer)/2 + 30*time.Second
	}
	most += time.Duration(len(s.conns)) * time.Minute
	if most > resume.DefaultRetryFor/2 {
		s.retryFor = 3 * most
	}
	if d.in(40) {
		s.retryFor = time.Duration(d.between(1, 30)) * time.Second
		s.mayFail[resume.ErrInterrupted] = "the budget is short"
	}
}

// failures says how the scenario may end other than well.
func (d *drawer) failures(s *scenario) {
	o := s.dialect
	may := func(err error, why string) { s.mayFail[err] = why }
	if s.hopeless() {
		may(resume.ErrInterrupted, "the registry contradicts every PATCH")
	}
	if s.has(func(f fault) bool {
		return f.wait > resume.FirstAnswerFor/2 && (len(s.deaths) > 0 || f.kind == scripted.HeadBlob)
	}) {
		may(resume.ErrInterrupted, "a registry that has not answered yet is given 30 s")
	}
	if o.Auth.TokenRequests > 0 && (s.image || !s.tight() || o.MaxBody > 0 || o.MaxChunk > 0 || o.EndsBodies > 0) {
		may(resume.ErrDenied, "tokens may end at three PATCHes in a row")
		if o.Status == scripted.NoStatus {
			may(resume.ErrInterrupted, "each of them may cost a session")
		}
	}
	if o.Range == scripted.OffByOne && o.LooseRange && o.MaxBody > 0 {
		may(resume.ErrInterrupted, "after a refused digest every chunk seems to end in another place")
	}
	restarts, rejects, denials, unauthorizeds := 0, 0, 0, 0
	if o.NoPutBody == http.StatusBadRequest {
		rejects++
	}
	for _, f := range s.faults {
		if f.what == restart {
			restarts++
		}
		if f.what == unauthorized {
			unauthorizeds++
		}
		if o.Range == scripted.NoRange && f.kind == scripted.Patch && f.what == after && f.status/100 == 4 {
			denials++
		}
		if s.rejects(f) {
			rejects++
		}
	}
	if denials > 1 {
		may(resume.ErrRefused, "it says no to what it takes, and not where it stands")
	}
	if o.Auth.Scheme == scripted.Bearer && (restarts > 1 && s.image || unauthorizeds > 0 && restarts+unauthorizeds > 1) {
		may(resume.ErrDenied, "the token that was got because of one refusal may be refused at once")
	}
	// Bytes may have been stored in the wrong place: the digest tells. Behind
	// 0-0 there may be one byte every time.
	if o.LooseRange {
		rejects += min(s.troubles(), 2)
	}
	if o.Range == scripted.OffByOne {
		rejects++ // until it is known
	}
	if rejects > 1 {
		may(resume.ErrRefused, "the digest may be refused more than once")
	}
}

// rejects tells faults after which the registry may refuse a commit of good
// bytes with 400. A 202 to a chunk that was not taken is believed if nothing
// contradicts it.
func (s *scenario) rejects(f fault) bool {
	return f.kind == scripted.Put && f.status == http.StatusBadRequest ||
		f.what == lie || f.what == partBody || f.what == restart || f.what == wrongRange
}

// misleads: the registry appends bytes wherever it stands, and may have said
// that it stands elsewhere.
func (s *scenario) misleads() bool {
	o := s.dialect
	lies := o.Range == scripted.OffByOne || o.Range == scripted.Stuck || o.Range == scripted.Beyond ||
		s.has(func(f fault) bool { return f.what == lie })
	return o.LooseRange && lies
}

// tight dialects keep what arrived and say where they stand: no byte need be
// sent twice without a reason.
func (s *scenario) tight() bool {
	o := s.dialect
	return o.Store == scripted.Keep && o.Status != scripted.NoStatus && !o.LooseRange && !o.StaleIsGone && !o.OnePatch && o.MaxSessions == 0 &&
		(o.Range == scripted.ZeroBased || o.Range == scripted.BytesPrefix || o.Range == scripted.EmptyMinusOne) &&
		o.Location != scripted.MissingOnStatus
}

// hopeless dialects give no offset that is possible, in answers to PATCH and
// when they are asked.
func (s *scenario) hopeless() bool {
	r := s.dialect.Range
	return r == scripted.Beyond || s.dialect.Status == scripted.NoStatus && r == scripted.OffByOne
}

// troubles is how many things go wrong.
func (s *scenario) troubles() int { return len(s.faults) + len(s.conns) + len(s.deaths) }

// config is more than the config of an image has.
const config = 1000

func (s *scenario) total() (n int64) {
	for _, size := range s.sizes {
		n += int64(size)
	}
	return n
}

// mostBytes is the most body bytes that may reach the registry.
func (s *scenario) mostBytes() int64 {
	size, total := int64(slices.Max(s.sizes)), s.total()
	if s.dialect.EndsBodies > 0 {
		// Once, or twice if the client is less patient than the gateway; and each
		// process again.
		total += size * int64(2+len(s.deaths))
	}
	if s.image {
		size, total = max(size, config), total+config
	}
	if s.hopeless() {
		// Given up after eight sessions in a row; chunks that grow get further.
		times := 12 + s.troubles()
		times += 8 * len(s.deaths) // each process again
		if s.dialect.MinChunk > 0 || s.dialect.MaxBody > 0 || s.dialect.MaxChunk > 0 || s.hint.Chunk > 0 {
			times += 8
		}
		return total * int64(times)
	}
	if !s.tight() || s.inOne {
		// Everything once more for each thing that went wrong, and for the
		// digest that may be refused then.
		most := total + size*int64(s.troubles()+4)
		if s.dialect.MaxSessions > 0 {
			most += 3 * total // what vanished before that was known
		}
		if s.has(is(restart)) {
			most += total
		}
		if s.dialect.Status == scripted.NoStatus && s.dialect.Auth.TokenRequests > 0 {
			most += 8 * total // each token that ends costs a session
		}
		return most
	}
	most := total
	if s.misled {
		most += size // to find that out
	}
	again := min(s.dialect.PartSize, size) + 1 // what one break loses
	if s.has(s.rejects) {
		again = size // after a refused digest no offset inside a chunk is believed
	}
	for _, f := range s.faults {
		switch {
		case f.what == restart:
			most += total // every session
		case f.what == forget, f.what == damage, f.what == html && f.kind != scripted.HeadBlob, f.what == lie, f.what == partBody, s.rejects(f):
			most += size
		case f.status >= 400 && f.status < 500 && f.status != 408 && f.status != 429 && f.kind != scripted.HeadBlob:
			most += size // as if the session were gone
		case f.kind == scripted.Patch:
			most += again
		}
	}
	for _, l := range s.conns {
		most += again + l.LateBytes
	}
	for range s.deaths {
		if s.dialect.Location == scripted.OtherHost {
			most += size // a recorded location on another host is not used
		} else {
			most += again
		}
	}
	return most
}

func (s *scenario) String() string {
	var b strings.Builder
	o := s.dialect
	fmt.Fprintf(&b, "seed %d: ", s.seed)
	if s.image {
		fmt.Fprintf(&b, "image %v parallel %d", s.sizes, s.parallel)
	} else {
		fmt.Fprintf(&b, "blob of %d", s.sizes[0])
	}
	add := func(is bool, text string) {
		if is {
			b.WriteString(" " + text)
		}
	}
	add(s.existing, "existing")
	add(s.mount, fmt.Sprintf("mount(there=%v)", s.source))
	b.WriteString(" |")
	add(true, strings.Join(s.traits(), " "))
	add(o.PartSize > 0, fmt.Sprint("part-size=", o.PartSize))
	add(o.MaxBody > 0, fmt.Sprint("max-body=", o.MaxBody))
	add(o.MinChunk > 0, fmt.Sprint("min-chunk=", o.MinChunk))
	add(o.MaxChunk > 0, fmt.Sprint("max-chunk=", o.MaxChunk))
	add(o.EndsBodies > 0, fmt.Sprintf("ends-at=%d whole=%v with=%d", o.EndsAt, o.EndsWhole, o.EndsBodies))
	add(o.Auth.TokenRequests > 0, fmt.Sprintf("token-for=%d", o.Auth.TokenRequests))
	add(s.hint != (resume.Dialect{}), fmt.Sprintf("hint=%+v", s.hint))
	b.WriteString(" |")
	for i, f := range s.faults {
		add(i > 0, ";")
		b.WriteString(" " + f.String())
	}
	for i, l := range s.conns {
		if l == memnet.Unlimited() {
			continue
		}
		fmt.Fprintf(&b, " conn%d[up %d down %d", i, l.Up, l.Down)
		add(l.Lose, "lose")
		add(l.Late > 0, fmt.Sprintf("late %d by %s", l.LateBytes, l.Late))
		b.WriteString("]")
	}
	add(s.cancel.nth > 0, "cancel at "+s.cancel.String())
	for _, at := range s.deaths {
		add(true, "dies at "+at.String())
	}
	fmt.Fprintf(&b, " | stall %s answer %s", s.stall, s.answer)
	add(s.retryFor > 0, "budget "+s.retryFor.String())
	for err, why := range s.mayFail {
		add(true, fmt.Sprintf("may be %q: %s", err, why))
	}
	return b.String()
}

// traits are the words for what the registry and its surroundings are like.
func (s *scenario) traits() (all []string) {
	o := s.dialect
	add := func(is bool, word string) {
		if is {
			all = append(all, word)
		}
	}
	add(s.persona != "", s.persona)
	add(s.tls, "tls")
	add(true, [...]string{"keep", "boundary", "fragile"}[o.Store])
	add(o.PartSize > 0, "parts")
	add(o.Status != 0, [...]string{"", "get-only", "no-status", "missing-status"}[o.Status])
	add(o.Range != 0, [...]string{"", "bytes=", "off-by-one", "0--1", "no-range", "beyond", "stuck"}[o.Range])
	add(o.Location != 0, [...]string{"", "relative", "missing-location", "other-host", "http-location"}[o.Location])
	add(o.LooseRange, "loose-range")
	add(o.StaleIsGone, "stale-is-gone")
	add(o.OnePatch, "one-patch")
	add(o.MaxSessions > 0, "crowded")
	add(o.MaxBody > 0, "limited")
	add(o.MinChunk > 0, "chunks")
	add(o.MaxChunk > 0, "largest-chunk")
	add(o.EqualChunks, "equal-chunks")
	add(o.EndsBodies > 0, "gateway")
	add(s.inOne, "in-one")
	add(o.NoPutBody > 0, "no-put-body")
	add(o.Auth.Scheme != 0, [...]string{"", "basic", "bearer"}[o.Auth.Scheme])
	add(o.Auth.TokenRequests > 0, "short-tokens")
	add(s.hint != (resume.Dialect{}), "hint")
	return all
}
