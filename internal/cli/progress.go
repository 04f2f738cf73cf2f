// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

const (
	// maxSilence is the longest time without a line on stderr: CI systems end jobs
	// that say nothing.
	maxSilence = time.Minute
	// A line comes every firstEvery at first and every laterEvery after laterAfter.
	firstEvery = 10 * time.Second
	laterEvery = 30 * time.Second
	laterAfter = 2 * time.Minute
	// eachBreak is how many breaks get a line of their own. quietFor without a break
	// begins the count again.
	eachBreak = 3
	quietFor  = 10 * time.Minute
)

// progress turns events into what a user watches: bars on a terminal, or lines.
type progress struct {
	out    *printer
	screen *screen // nil for lines
	json   bool    // lines are JSON objects
	each   bool    // the log has a line for each break already
	began  time.Time

	drawing sync.Mutex // held while the screen is drawn or closed
	closed  bool

	mu      sync.Mutex
	phase   string
	tally   *tally
	history *history // nil unless there is to be a report
	last    resume.Event
	shown   int64     // what had moved at the last line
	lineAt  time.Time // of the last line about progress
	told    int       // breaks that had a line of their own
	brokeAt time.Time // of the last break
	absent  time.Time // when it was last said that the registry is not reached,
	by      digest.Digest
}

// newProgress prints lines to out, or draws on s unless that is nil.
func newProgress(out *printer, s *screen) *progress {
	now := time.Now()
	p := &progress{out: out, screen: s, phase: openingPhase, began: now, lineAt: now, tally: newTally(now)}
	if s != nil {
		out.over(s.console)
	}
	return p
}

// start shows how far the push is from time to time, until the returned function is
// called, which waits for the last line.
func (p *progress) start() (stop func()) {
	every := time.Second
	if p.screen != nil {
		every = refreshEvery
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(every)
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
	return func() { close(end); <-ended; p.close() }
}

// close removes the screen. It may be called more than once.
func (p *progress) close() {
	p.drawing.Lock()
	defer p.drawing.Unlock()
	if p.screen != nil && !p.closed {
		p.screen.close()
		p.out.over(nil)
	}
	p.closed = true
}

// doing says what goes on where no upload does.
func (p *progress) doing(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = phase
}

// counted is what has been counted so far.
func (p *progress) counted() tally {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.tally
}

// reported writes the page of --report.
func (p *progress) reported(file string, doc *document, counters []counter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return writeReport(file, doc, p.history, counters)
}

// event takes note of e, and prints it if it is worth a line.
func (p *progress) event(e resume.Event) {
	p.mu.Lock()
	now := time.Now()
	p.tally.record(e, now)
	if p.history != nil {
		p.history.record(e)
	}
	line := p.lineOf(e, now)
	p.mu.Unlock()
	if p.json {
		p.out.object(eventObject(e))
		return
	}
	if line != "" {
		p.out.stamped(line)
	}
}

// lineOf is the line about an event; empty if none is due.
func (p *progress) lineOf(e resume.Event, now time.Time) string {
	told := e.Kind == resume.Waiting && p.last.Kind == resume.Broken && p.last.Digest == e.Digest
	p.last = e
	switch e.Kind {
	case resume.EventPlanned:
		return plannedWords(e)
	case resume.Broken:
		if e.Conn == nil { // every check finds out for itself that nobody is there
			again := now.Sub(p.absent) < firstEvery && p.by != e.Digest && !p.absent.IsZero()
			if again {
				return ""
			}
			p.absent, p.by = now, e.Digest
		}
		if p.each || p.screen != nil && e.Conn != nil {
			return ""
		}
		if now.Sub(p.brokeAt) > quietFor {
			p.told = 0
		}
		p.brokeAt = now
		switch p.told++; {
		case p.told <= eachBreak:
			return eventWords(e)
		case p.told == eachBreak+1:
			return moreBreaksWords
		}
		return ""
	case resume.Resumed:
		if p.each || p.screen != nil || p.told > eachBreak {
			return ""
		}
	case resume.Waiting:
		if p.screen != nil && e.Digest != "" && p.tally.running[e.Digest] != nil || p.told > eachBreak && e.Wait < firstEvery {
			return ""
		}
		if told { // the line before says what is waited out
			if e.Wait < time.Second {
				return ""
			}
			e.Err = nil
		}
	case resume.Existed, resume.Mounted, resume.Committed:
		if p.screen != nil {
			return ""
		}
	}
	return eventWords(e)
}

// tick draws the screen, or prints a line if one is due.
func (p *progress) tick() {
	p.mu.Lock()
	now := time.Now()
	rate := p.tally.sampled(now)
	if p.screen != nil {
		v := screenView(p.tally, p.phase, rate, now)
		p.mu.Unlock()
		p.drawing.Lock()
		defer p.drawing.Unlock()
		if !p.closed {
			p.screen.draw(v)
		}
		return
	}
	defer p.mu.Unlock()
	every := firstEvery
	if now.Sub(p.began) > laterAfter {
		every = laterEvery
	}
	t := p.tally
	var line string
	switch {
	case now.Sub(p.lineAt) >= every && t.moved > p.shown && len(t.running) > 0:
		line = progressWords(t, rate)
	case p.out.silence()+firstEvery >= maxSilence:
		line = stillWords(t, p.phase, now)
	default:
		return
	}
	p.shown, p.lineAt = t.moved, now
	if p.json {
		p.out.object(progressObject(t, rate, now))
		return
	}
	p.out.stamped(line)
}

// screenFor is the screen of a call, nil unless it is to have one.
func (a *app) screenFor(o *options) *screen {
	if o.quiet || !o.onTerminal(a) {
		return nil
	}
	return newScreen(a.out.writer(), a.size)
}

// progressOf makes the progress that the flags ask for.
func (a *app) progressOf(o *options) *progress {
	p := newProgress(a.out, a.screenFor(o))
	p.json = a.out.json.Load()
	p.each = o.verbose
	if o.report != "" {
		p.history = &history{}
	}
	a.out.hush.Store(o.progress == "quiet")
	return p
}

// onTerminal reports whether bars are to be drawn.
func (o *options) onTerminal(a *app) bool {
	switch o.progress {
	case "tty":
		return !o.jsonLog()
	case "auto", "":
		term := a.env["TERM"]
		return a.terminal && a.size != nil && term != "dumb" && term != "" && a.env["CI"] == "" && !o.verbose && !o.jsonLog()
	}
	return false
}

// jsonLog reports whether stderr gets JSON objects.
func (o *options) jsonLog() bool { return o.logFormat == "json" || o.progress == "json" }

func (o *options) checkProgress() error {
	switch o.progress {
	case "auto", "tty", "plain", "json", "quiet", "":
	default:
		return fmt.Errorf("%s is %q, not auto, tty, plain, json or quiet", o.spelled["progress"], o.progress)
	}
	switch o.logFormat {
	case "text", "json", "":
		return nil
	}
	return fmt.Errorf("%s is %q, neither text nor json", o.spelled["log-format"], o.logFormat)
}

// sections reports whether a log is to have sections for a CI system.
func (o *options) sections() bool {
	return !o.quiet && !o.jsonLog() && (o.progress == "auto" || o.progress == "plain" || o.progress == "")
}

func pushingTitle(ref fmt.Stringer) string { return "rpush: pushing " + ref.String() }
