// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/retry"
	"github.com/rpush-go/rpush/internal/wire"
)

// What a probe sends: a chunk that is acknowledged, and one that is broken off
// after half of it, with a pause so that what was sent arrives.
const (
	probeChunk  = 64 << 10
	probeBroken = 2 * mib
	probePause  = 500 * time.Millisecond
	// maxProbeChunk is the largest chunk that a probe sends, whatever is asked for.
	maxProbeChunk = 16 * mib
)

// Probe is what a registry did with an upload that was broken on purpose.
type Probe struct {
	// Class is what that proves.
	Class Class `json:"class"`
	// Blind is set if the registry answers neither HEAD nor GET on the URL of
	// an upload that is alive. Its Class is Fragile then, unless it says where the
	// upload stands when it refuses a PATCH, as ECR does.
	Blind bool `json:"blind"`
	// Steps are the evidence, in order.
	Steps []ProbeStep `json:"steps"`
}

// ProbeStep is one request of a probe.
type ProbeStep struct {
	// What was done, in words.
	What   string `json:"what"`
	Method string `json:"method"`
	// Status is 0 where there was no answer.
	Status int `json:"status"`
	// Range is the header of that name in the answer, as it was.
	Range string `json:"range,omitempty"`
	// NewLocation: the answer had a Location that differs from the one before.
	NewLocation bool `json:"newLocation"`
	// Error is set where there was no answer.
	Error string `json:"error,omitempty"`
}

// Probe finds out what the registry keeps of a broken upload, by breaking a
// small one: it opens an upload session, sends 64 KiB, breaks a second PATCH
// of 4 MiB after 2 MiB by resetting its connection, asks for the offset, tries
// to go on, and cancels the session. A registry that asks for larger chunks gets
// equal ones of that size. No blob comes of it. What it learns is
// kept as a push would keep it. It is for diagnosis: an upload never needs it.
//
// An error means that the probe could not be carried out; the Probe then holds
// the steps until there.
func (c *Client) Probe(ctx context.Context) (*Probe, error) {
	p := &prober{Probe: &Probe{}, c: c}
	if _, err := c.pace.enter(ctx); err != nil {
		return p.Probe, c.failure("probe", "", 0, 0, 0, err)
	}
	defer c.pace.leave()
	err := c.retry(ctx, subject{}, func(ctx context.Context, _ *retry.Loop) error {
		s, a, err := c.openSession(ctx, subject{}, "")
		switch {
		case err != nil:
			return err
		case s == nil:
			return protocol.Unexpected(a, time.Now())
		}
		c.pace.announced(s.lengths)
		p.s = s
		return nil
	})
	if err == nil {
		p.Steps = append(p.Steps, ProbeStep{What: "open an upload session", Method: http.MethodPost, Status: http.StatusAccepted, NewLocation: true})
		err = p.run(ctx)
		p.cancel(context.WithoutCancel(ctx))
	}
	if err != nil {
		return p.Probe, c.failure("probe", "", 0, 0, 0, err)
	}
	return p.Probe, nil
}

type prober struct {
	*Probe
	c *Client
	s *session
}

func (p *prober) run(ctx context.Context) error {
	s := p.s
	chunk, long := int64(probeChunk), int64(2*probeBroken)
	if s.lengths.Min > chunk {
		chunk = min(s.lengths.Min, maxProbeChunk)
		long = chunk
	}
	if most := s.lengths.Max; most > 0 {
		chunk, long = min(chunk, most), min(long, most)
	}
	asked, alive, err := p.ask(ctx, "ask where the new session stands")
	if err != nil {
		return err
	}
	p.Blind = !alive && asked
	a, err := p.patch(ctx, "send a chunk of "+sizeWords(chunk), chunk, chunk)
	switch {
	case err != nil:
		return err
	case a.Status/100 != 2:
		return protocol.Unexpected(a, time.Now())
	}
	first, _ := protocol.ParseRange(a.Header)
	s.acked, s.sent = chunk, chunk
	broken := min(probeBroken, long/2)
	a, err = p.patch(ctx, fmt.Sprintf("break a second one of %s after %s", sizeWords(long), sizeWords(broken)), long, broken)
	switch {
	case ctx.Err() != nil:
		return err
	case err == nil && a.Status/100 == 4:
		p.conclude(Monolithic)
		return nil
	case err == nil:
		return protocol.Unexpected(a, time.Now())
	}
	s.sent += broken
	known, err := p.settle(ctx)
	if err != nil {
		return err
	}
	class := Boundary
	if !known {
		// Nobody says where the session stands. A registry that has no status
		// requests may take what comes next, or say at which byte it expects it.
		if !p.Blind {
			p.conclude(Fragile)
			return nil
		}
		s.offset = settledAt(s.acked)
		a, err = p.patch(ctx, "try the last acknowledged byte", chunk, chunk)
		if err != nil {
			return err
		}
		at, said := protocol.Unexpected(a, time.Now()).Expects()
		switch {
		case a.Status/100 == 2:
		case said && s.acked <= at && at <= s.sent:
			s.offset = settledAt(at)
		default:
			p.conclude(Fragile)
			return nil
		}
		if a.Status/100 == 2 {
			p.stuck(a, first)
			p.conclude(class)
			return nil
		}
	}
	if s.offset.bytes > chunk {
		class = Exact
	}
	a, err = p.patch(ctx, "go on from there with "+sizeWords(chunk), chunk, chunk)
	switch {
	case err != nil:
		return err
	case a.Status/100 == 2:
		p.stuck(a, first)
	case known:
		class = Monolithic
	default:
		class = Fragile
	}
	p.conclude(class)
	return nil
}

// settle asks where the session stands until two answers agree. It is false if
// nobody says.
func (p *prober) settle(ctx context.Context) (known bool, err error) {
	for before := int64(-1); ; before = p.s.offset.bytes {
		_, alive, err := p.ask(ctx, "ask where it stands now")
		if err != nil || !alive {
			return false, err
		}
		if p.s.offset.bytes == before {
			return true, nil
		}
		if err := sleep(ctx, 10*firstSettle); err != nil {
			return false, err
		}
	}
}

// stuck keeps that the Range of answers to PATCHes does not move after the first
// one, and that status requests say nothing, as on ECR.
func (p *prober) stuck(a *wire.Answer, first protocol.Held) {
	if held, ok := protocol.ParseRange(a.Header); ok && first.Bytes > 0 && held.Bytes == first.Bytes {
		p.c.pace.countsAlone(p.Blind)
	}
}

func sizeWords(n int64) string {
	if n >= mib {
		return fmt.Sprintf("%d MiB", n/mib)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// conclude keeps what was found as a push would.
func (p *prober) conclude(class Class) {
	p.Class = class
	p.c.pace.learn(func() {
		p.c.pace.d.Class, p.c.pace.d.Chunk = class, 0
		if class == Boundary {
			p.c.pace.d.Chunk = mostChunk
		}
	})
}

// ask asks with HEAD, then with GET. asked is false where neither was answered
// at all; alive is true if one said 2xx.
func (p *prober) ask(ctx context.Context, what string) (asked, alive bool, err error) {
	s := p.s
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		a, err := p.step(what, method, func() (*wire.Answer, error) { return s.askBy(ctx, method) })
		if err != nil {
			return asked, alive, err
		}
		asked = true
		if a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
			return asked, alive, protocol.Unexpected(a, time.Now())
		}
		if a.Status/100 != 2 {
			continue
		}
		alive = true
		if held, ok := protocol.ParseRange(a.Header); ok {
			s.offset = settledAt(held.Bytes)
		}
		if err := s.follow(ctx, a); err != nil {
			return asked, alive, err
		}
	}
	return asked, alive, nil
}

// patch sends a PATCH of n bytes from the offset, broken off after sent of
// them if that is less.
func (p *prober) patch(ctx context.Context, what string, n, sent int64) (*wire.Answer, error) {
	s := p.s
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	src := &probeSource{left: sent, broken: sent < n, over: make(chan struct{}), cut: func() { cancel(errProbe) }}
	defer src.Close() //nolint:errcheck // it has nothing to say
	b := chunk{body: wire.NewBody(src, n), start: s.offset.bytes, end: s.offset.bytes + n, ranged: true}
	a, err := p.step(what, http.MethodPatch, func() (*wire.Answer, error) { return s.append(ctx, b, nil) })
	if err != nil {
		return nil, err
	}
	if a.Status/100 == 2 {
		s.offset.bytes += n
		err = s.follow(ctx, a)
	}
	return a, err
}

var errProbe = errors.New("broken on purpose")

// step carries out one request and adds it to the evidence.
func (p *prober) step(what, method string, send func() (*wire.Answer, error)) (*wire.Answer, error) {
	before := *p.s.location
	a, err := send()
	st := ProbeStep{What: what, Method: method}
	if err != nil {
		st.Error = protocol.Text(err)
	} else {
		st.Status, st.Range = a.Status, a.Header.Get("Range")
		if l, err := protocol.ParseLocation(p.c.base, &before, a.Header); err == nil {
			st.NewLocation = *l.URL != before
		}
	}
	p.Steps = append(p.Steps, st)
	return a, err
}

// cancel cleans up (end-14), as far as the registry lets it.
func (p *prober) cancel(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	_, _ = p.step("cancel the upload session", http.MethodDelete, func() (*wire.Answer, error) { return p.s.cancel(ctx) })
}

// probeSource is a body of zeros. A broken one waits after its last byte, until
// that has had time to arrive, and then cuts the connection.
type probeSource struct {
	left   int64
	broken bool
	cut    func()

	once sync.Once
	over chan struct{}
}

func (s *probeSource) Read(b []byte) (int, error) {
	if s.left > 0 {
		n := min(int64(len(b)), s.left)
		clear(b[:n])
		s.left -= n
		return int(n), nil
	}
	if !s.broken {
		return 0, io.EOF
	}
	select {
	case <-time.After(probePause):
		s.cut()
	case <-s.over:
	}
	return 0, fmt.Errorf("the rest: %w", errProbe)
}

// Close ends a Read that waits.
func (s *probeSource) Close() error {
	s.once.Do(func() { close(s.over) })
	return nil
}
