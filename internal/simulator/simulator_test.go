// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

func TestMain(m *testing.M) {
	// A panic in a goroutine of the client ends the process; the seeds under way
	// are then the arguments of simulate in the traces.
	debug.SetTraceback("all")
	goleak.VerifyTestMain(m)
}

// The numbers of TestSimulator, unless the environment says otherwise.
const (
	defaultSeeds = 2000
	shortSeeds   = 300
	mostFailures = 3 // then it stops, unless RPUSH_SIM_FAILURES is another number
)

func fromEnv(t *testing.T, key string, otherwise uint64) uint64 {
	v := os.Getenv(key)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return n
}

// simulate plays one seed.
//
//go:noinline
func simulate(t *testing.T, seed uint64) (*scenario, *outcome, []string) {
	s := draw(seed)
	o := s.run(t)
	return s, o, s.problems(o)
}

func TestSimulator(t *testing.T) {
	if seed := fromEnv(t, "RPUSH_SIM_SEED", 0); seed != 0 {
		s, o, problems := simulate(t, seed)
		t.Logf("%s\n%s", s, o)
		for _, p := range problems {
			t.Error(p)
		}
		return
	}
	n := uint64(defaultSeeds)
	if testing.Short() {
		n = shortSeeds
	}
	start := fromEnv(t, "RPUSH_SIM_START", 1)
	end := start + fromEnv(t, "RPUSH_SIM_SEEDS", n)
	most := fromEnv(t, "RPUSH_SIM_FAILURES", mostFailures)
	var next, failures atomic.Uint64
	next.Store(start)
	var all tally
	began := time.Now()
	t.Run("seeds", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker ", w), func(t *testing.T) {
				t.Parallel()
				for seed := next.Add(1) - 1; seed < end && failures.Load() < most; seed = next.Add(1) - 1 {
					s, o, problems := simulate(t, seed)
					all.add(s, o)
					if len(problems) > 0 {
						failures.Add(1)
						t.Errorf("%s\n\t%s\n\treplay: RPUSH_SIM_SEED=%d go test -v -run TestSimulator ./internal/simulator",
							s, strings.Join(problems, "\n\t"), seed)
					}
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%d seeds in %s, %.0f a second\n%s", all.seeds, took.Round(time.Millisecond), float64(all.seeds)/took.Seconds(), &all)
}

// tally counts what was met, so that a dialect or a fault that is never drawn
// is seen.
type tally struct {
	mu                                             sync.Mutex
	seeds, failed, breaks, resumes, restarts, reqs int
	counts                                         map[string]int
}

func (c *tally) add(s *scenario, o *outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.seeds++
	if o.err != nil {
		c.failed++
	}
	c.reqs += len(o.requests)
	for _, e := range o.events {
		switch e.Kind {
		case resume.Broken:
			c.breaks++
		case resume.Resumed:
			c.resumes++
		case resume.Lost:
			c.restarts++
		}
	}
	hit := map[position]bool{}
	chunked := map[int]int{}
	for _, q := range o.requests {
		hit[position{q.Kind, q.Seq}] = true
		if q.Kind == scripted.Patch && q.Status == http.StatusAccepted {
			chunked[q.Session]++
		}
		if q.Status == http.StatusRequestEntityTooLarge {
			c.counts["413"]++
		}
	}
	for _, f := range s.faults {
		if hit[f.position] {
			c.counts[whatNames[f.what]]++
		}
	}
	for _, n := range chunked {
		if n > 1 {
			c.counts["sessions with several chunks"]++
		}
	}
	c.counts["connections broken by the network"] += o.breaks
	for _, trait := range s.traits() {
		c.counts[trait]++
	}
}

func (c *tally) String() string {
	text := fmt.Sprintf("%d requests, %d breaks, %d resumes, %d restarts, %d failed as they may\n",
		c.reqs, c.breaks, c.resumes, c.restarts, c.failed)
	var keys []string
	for k := range c.counts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		text += fmt.Sprintf("%s %d, ", k, c.counts[k])
	}
	return strings.TrimSuffix(text, ", ")
}

var kinds = []error{resume.ErrInterrupted, resume.ErrDenied, resume.ErrEndpoint, resume.ErrSource, resume.ErrRefused}

// secrets must be in no log and in no error.
var secrets = []string{"_state", "session-0", "token-", "hunter2"}

// problems are the invariants that do not hold.
func (s *scenario) problems(o *outcome) (bad []string) {
	report := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	bad = append(bad, o.missing...)
	excused := map[string]bool{}
	for _, v := range o.violations {
		// A registry that lies about its offset and appends whatever comes is sent
		// bytes for the wrong place, and an old connection may then still write
		// the right ones. Only the digest can tell.
		if s.misleads() && strings.Contains(v, "different bytes written over") {
			continue
		}
		// The first PATCH of a session may arrive when a later one has been there:
		// one, since the client sends none without Content-Range after it.
		if s.lateWriters() && strings.HasSuffix(v, ": no Content-Range") && !excused[v] {
			excused[v] = true
			continue
		}
		report("violation: %s", v)
	}
	if o.took >= longest {
		report("it took %s of virtual time: it hangs", o.took)
	}
	if o.err != nil {
		s.judge(o.err, report)
	}
	for _, secret := range secrets {
		if at := strings.Index(o.log, secret); at >= 0 {
			report("%q is in the log: %.100q", secret, o.log[max(at-80, 0):])
		}
		for _, e := range o.events {
			if e.Err != nil && strings.Contains(e.Err.Error(), secret) {
				report("%q is in the event %s: %v", secret, e.Kind, e.Err)
				break
			}
		}
	}

	var received int64
	late, tooLarge := int64(0), 0
	for _, q := range o.requests {
		if q.Kind == scripted.Patch || q.Kind == scripted.Put {
			received += q.Body
		}
		if q.Status == http.StatusRequestEntityTooLarge {
			tooLarge++
		}
		late += q.Late
		if s.tls && !q.Secure {
			report("%s %s in plain HTTP", q.Method, q.Path)
		}
		if q.Truncated {
			report("%s %s: a body was given up without a reset, the rest would have been delivered", q.Method, q.Path)
		}
		least, size := s.dialect.MinChunk, int64(s.sizes[0])
		if !s.image && q.Kind == scripted.Patch && q.Length < least && max(q.Start, 0)+q.Length < size {
			report("PATCH of %d bytes at %d, less than OCI-Chunk-Min-Length %d", q.Length, q.Start, least)
		}
	}
	if s.persona != "" && s.troubles() == 0 && s.hint == (resume.Dialect{}) {
		s.pleases(o, report)
	}
	if s.dialect.MaxChunk > 0 && tooLarge > 0 {
		report("%d answers of 413, although the largest chunk is announced", tooLarge)
	}
	if most := s.mostBytes(); received > most {
		report("%d bytes of bodies for %d bytes of blobs, at most %d are unavoidable", received, s.total(), most)
	}
	if s.existing && !s.image && received > 0 && !s.has(func(f fault) bool { return f.kind == scripted.HeadBlob && f.what == html }) {
		report("%d bytes sent of a blob that was there", received)
	}
	if tooLarge > 12*len(s.sizes) {
		report("%d answers of 413: nothing was learnt from them", tooLarge)
	}
	if late > 0 && !s.lateWriters() {
		report("%d bytes of an old connection came in while a new PATCH was under way, although it went quiet before the second answer", late)
	}
	if !s.image {
		s.waits(o, report)
		s.tells(o, report)
	}
	return bad
}

func (s *scenario) has(is func(fault) bool) bool { return slices.ContainsFunc(s.faults, is) }

// judge looks at a failure.
func (s *scenario) judge(err error, report func(string, ...any)) {
	n, allowed := 0, false
	for _, k := range kinds {
		if errors.Is(err, k) {
			n++
			_, allowed = s.mayFail[k]
		}
	}
	switch {
	case n != 1:
		report("%d kinds of failure in %v", n, err)
	case !allowed:
		report("it must not fail so: %v", err)
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret) {
			report("%q is in the error %v", secret, err)
		}
	}
}

// lateWriters tells scenarios where an old connection may wake up when it has
// been quiet for longer than anybody waits for it.
func (s *scenario) lateWriters() bool {
	for _, l := range s.conns {
		if l.Late > 9*time.Millisecond {
			return true
		}
	}
	return s.has(func(f fault) bool { return f.kind == scripted.Patch && f.wait > 0 })
}

// pleases looks whether a registry that people push to, where nothing breaks,
// refuses what it is sent.
func (s *scenario) pleases(o *outcome, report func(string, ...any)) {
	refused := 0
	for _, q := range o.requests {
		switch {
		case q.Kind != scripted.Patch && q.Kind != scripted.Put || q.Status < 300 || q.Status == http.StatusUnauthorized,
			q.Status == http.StatusRequestEntityTooLarge && s.dialect.MaxBody > 0, q.Status == s.dialect.EndsBodies, // nobody can know
			q.Status == http.StatusNotFound && s.dialect.MaxSessions > 0:
		case q.Kind == scripted.Put && q.Status == s.dialect.NoPutBody && (refused == 0 || s.image) && s.inOne:
			refused++ // it is remembered
		default:
			report("%s of %d bytes was refused with %d", q.Kind, q.Length, q.Status)
		}
	}
}

// waits looks whether Retry-After was honoured.
func (s *scenario) waits(o *outcome, report func(string, ...any)) {
	for i, q := range o.requests[:max(len(o.requests)-1, 0)] {
		for _, f := range s.faults {
			if len(s.conns)+len(s.deaths) > 0 || // the answer may not have arrived
				f.position != (position{q.Kind, q.Seq}) || f.status != q.Status || f.wait == 0 || f.what != before && f.what != after {
				continue
			}
			if f.kind == scripted.Token {
				continue // go-containerregistry's error has no headers
			}
			if (f.kind == scripted.Patch || f.kind == scripted.Put) && q.Length > q.Body {
				continue // a write that fails may be noticed before the answer
			}
			want := f.wait
			if f.asDate {
				want -= time.Second // dates have no fractions
			}
			if got := o.requests[i+1].At.Sub(q.At); got < want {
				report("the next request came %s after %s, which asked for %s", got, f, f.wait)
			}
		}
	}
}

// tells looks at the events of a single blob.
func (s *scenario) tells(o *outcome, report func(string, ...any)) {
	size := int64(s.sizes[0])
	var last resume.EventKind
	for _, e := range o.events {
		if e.Offset < 0 || e.Offset > size {
			report("event %s at %d of %d", e.Kind, e.Offset, size)
		}
		if e.Kind != resume.Sent {
			last = e.Kind
		}
	}
	switch last {
	case resume.Committed, resume.Existed, resume.Mounted:
		if o.err != nil {
			report("the last event is %s, and it failed", last)
		}
	default:
		if o.err == nil {
			report("it succeeded, and the last event is %q", last)
		}
	}
}

// String is all that happened, for one seed.
func (o *outcome) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "took %s, %+v, error %v\nrequests:\n", o.took, o.result, o.err)
	for _, q := range o.requests {
		b.WriteString("  " + line(q) + "\n")
	}
	b.WriteString("events:\n")
	for _, e := range o.events {
		b.WriteString("  " + story(e) + "\n")
	}
	return b.String() + "log:\n" + o.log
}

func line(q scripted.Request) string {
	text := fmt.Sprintf("%s %s %s#%d %s", q.At.Format("15:04:05.000"), q.Method, q.Kind, q.Seq, q.Path)
	if q.Session > 0 {
		text += fmt.Sprintf(" session %d", q.Session)
	}
	if q.Kind == scripted.Patch {
		text += fmt.Sprintf(" [%d, %d) received %d", q.Start, q.Start+q.Length, q.Body)
	}
	if q.Late > 0 {
		text += fmt.Sprintf(" late %d", q.Late)
	}
	if q.Status == 0 {
		return text + ": broken"
	}
	return fmt.Sprintf("%s: %d", text, q.Status)
}

func story(e resume.Event) string {
	text := fmt.Sprintf("%s %s %.15s %d/%d", e.Time.Format("15:04:05.000"), e.Kind, e.Digest, e.Offset, e.Size)
	if e.Wait > 0 {
		text += " wait " + e.Wait.String()
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// TestReplay: a seed of a single blob gives the same requests and the same
// events every time.
func TestReplay(t *testing.T) {
	played := 0
	for seed := uint64(1); played < 50; seed++ {
		s := draw(seed)
		if s.image {
			continue
		}
		played++
		first, second := s.run(t).trace(), draw(seed).run(t).trace()
		if first != second {
			t.Fatalf("%s\nonce:\n%s\nonce more:\n%s", s, first, second)
		}
	}
}

// trace leaves out provisional progress, which comes as the scheduler has it.
func (o *outcome) trace() string {
	var b strings.Builder
	for _, q := range o.requests {
		b.WriteString(line(q) + "\n")
	}
	for _, e := range o.events {
		if e.Kind != resume.Sent {
			e.Err = nil
			b.WriteString(story(e) + "\n")
		}
	}
	fmt.Fprint(&b, o.took, o.result.Existed, o.result.Mounted, o.result.Breaks, o.result.Resumes, o.result.Restarts)
	return b.String()
}
