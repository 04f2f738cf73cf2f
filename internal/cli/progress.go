package cli

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

// maxSilence is the longest time without a line on stderr: CI systems end jobs
// that say nothing.
const maxSilence = time.Minute

// progress turns events into lines.
type progress struct {
	out   *printer
	every time.Duration // between two lines about running uploads

	mu      sync.Mutex
	phase   string
	last    resume.Event
	running map[digest.Digest]*upload
	moved   int64     // bytes sent, those sent again included
	shown   int64     // moved, at the last line
	since   time.Time // of the last line
	movedAt time.Time
	absent  time.Time     // when it was last said that the registry is not reached,
	by      digest.Digest // and for which blob
}

// upload is one that has begun and not ended. Bytes up to settled are at the
// registry; those up to sent may have to be sent again.
type upload struct {
	size, settled, sent int64
	committing          time.Time // zero before
}

func newProgress(out *printer, terminal bool) *progress {
	p := &progress{
		out: out, every: 10 * time.Second, phase: openingPhase,
		running: map[digest.Digest]*upload{}, since: time.Now(), movedAt: time.Now(),
	}
	if terminal {
		p.every = time.Second
	}
	return p
}

// start prints from time to time, until the returned function is called, which
// waits for the last line.
func (p *progress) start() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(p.every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.tick()
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// doing says what goes on where no upload does.
func (p *progress) doing(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = phase
}

// event takes note of e, and prints it if it is worth a line.
func (p *progress) event(e resume.Event) {
	p.mu.Lock()
	p.record(e)
	told := e.Kind == resume.Waiting && p.last.Kind == resume.Broken && p.last.Digest == e.Digest
	p.last = e
	unheard := e.Kind == resume.Broken && e.Conn == nil
	again := unheard && time.Since(p.absent) < p.every && p.by != e.Digest
	if unheard && !again {
		p.absent, p.by = time.Now(), e.Digest
	}
	p.mu.Unlock()
	if again {
		return // every check finds out for itself that nobody is there
	}
	if told { // the line before says what is waited out
		if e.Wait < time.Second {
			return
		}
		e.Err = nil
	}
	if s := eventWords(e); s != "" {
		p.out.note(s)
	}
}

func (p *progress) record(e resume.Event) {
	if e.Digest == "" {
		return
	}
	u := p.running[e.Digest]
	switch e.Kind {
	case resume.Existed, resume.Mounted, resume.Committed:
		delete(p.running, e.Digest)
		return
	case resume.Opened, resume.Sent, resume.Settled, resume.Resumed, resume.Committing, resume.Lost:
		if u == nil {
			u = &upload{size: e.Size}
			p.running[e.Digest] = u
		}
	case resume.Broken, resume.Waiting, resume.Warned:
		// They may be about a check, which is no upload.
		if u == nil {
			return
		}
	}

	switch e.Kind {
	case resume.Sent:
		if n := e.Offset - u.sent; n > 0 {
			p.moved += n
			p.movedAt = time.Now()
		}
		u.sent = e.Offset
	case resume.Settled:
		if e.Offset > u.sent { // more came through than was seen to be sent
			p.moved += e.Offset - u.sent
			p.movedAt = time.Now()
		}
		u.settled, u.sent = e.Offset, e.Offset
	case resume.Broken:
		u.sent, u.committing = u.settled, time.Time{}
	case resume.Resumed:
		u.settled, u.sent, u.committing = e.Offset, e.Offset, time.Time{}
	case resume.Opened, resume.Lost:
		*u = upload{size: e.Size}
	case resume.Committing:
		u.committing = time.Now()
	}
}

// tick prints a line if bytes moved, or if there was none for long.
func (p *progress) tick() {
	p.mu.Lock()
	var line string
	switch {
	case p.moved > p.shown && len(p.running) > 0:
		line = sendingWords(p.running, float64(p.moved-p.shown)/time.Since(p.since).Seconds())
	case p.out.silence()+p.every >= maxSilence:
		line = stillWords(p.phase, p.running, time.Since(p.movedAt))
	}
	p.shown, p.since = p.moved, time.Now()
	p.mu.Unlock()
	if line != "" {
		p.out.note(line)
	}
}
