// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	// refreshEvery is how often the screen is drawn.
	refreshEvery = 200 * time.Millisecond
	// narrow is the width below which only the total line is drawn.
	narrow = 60
)

// screen draws bars on a terminal: one for each upload, and below them the line
// about the whole image. Lines that are printed meanwhile go above. mpb lays out
// and draws the bars; the console keeps them in their place.
type screen struct {
	console *console
	refresh chan any
	bars    *mpb.Progress
	total   *mpb.Bar

	mu     sync.Mutex
	view   view
	layers map[digest.Digest]*mpb.Bar
}

// view is what a screen shows.
type view struct {
	total   []string // parts of the total line, the most important first
	uploads []row
}

// row is one upload on the screen.
type row struct {
	digest   digest.Digest
	number   int // from the top
	at, size int64
	state    string
}

// newScreen draws on w, whose size in columns and rows size tells.
func newScreen(w io.Writer, size func() (int, int)) *screen {
	s := &screen{
		console: &console{w: w, size: size, drawn: make(chan struct{})},
		refresh: make(chan any), layers: map[digest.Digest]*mpb.Bar{},
	}
	s.bars = mpb.New(mpb.WithConsoleWriter(s.console), mpb.WithManualRefresh(s.refresh))
	s.total, _ = s.bars.Add(0, mpb.BarFillerFunc(s.fillTotal), mpb.BarPriority(1<<30), mpb.BarFillerTrim()) // fails after Shutdown only
	return s
}

// draw shows v and returns when it is on the terminal.
func (s *screen) draw(v view) {
	s.mu.Lock()
	s.view = v
	shown := map[digest.Digest]bool{}
	for _, r := range v.uploads {
		shown[r.digest] = true
		b := s.layers[r.digest]
		if b == nil {
			b = s.add(r)
			s.layers[r.digest] = b
		}
		b.SetTotal(r.size, false)
		b.SetCurrent(r.at)
	}
	for d, b := range s.layers {
		if !shown[d] {
			b.Abort(true) // a layer that is done takes no line any more
			delete(s.layers, d)
		}
	}
	s.mu.Unlock()
	s.refresh <- nil
	<-s.console.drawn
}

// add makes the bar of an upload.
func (s *screen) add(r row) *mpb.Bar {
	d := r.digest
	bar := mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]").Build()
	b, _ := s.bars.Add(0, bar, // it is not complete when all is sent

		mpb.BarPriority(r.number),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return " " + barName(d) })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			r := s.row(d)
			return fmt.Sprintf("%15s  %-20s", ofWords(r.at, r.size), r.state)
		})),
	)
	return b
}

// barName is enough of a digest to tell layers apart.
func barName(d digest.Digest) string {
	if d.Validate() != nil {
		return string(d)
	}
	return d.Encoded()[:12]
}

func (s *screen) row(d digest.Digest) row {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.view.uploads {
		if r.digest == d {
			return r
		}
	}
	return row{}
}

// fillTotal writes as many parts of the total line as there is room for.
func (s *screen) fillTotal(w io.Writer, stat decor.Statistics) error {
	s.mu.Lock()
	parts := s.view.total
	s.mu.Unlock()
	line := ""
	for i, p := range parts {
		if i > 0 {
			p = "  " + p
		}
		if runewidth.StringWidth(line+p) > stat.AvailableWidth {
			break
		}
		line += p
	}
	_, err := io.WriteString(w, line)
	return err
}

// close removes the bars from the terminal.
func (s *screen) close() {
	s.console.close()
	s.bars.Shutdown()
}

// console is the part of the terminal that the bars take, at the bottom. It
// implements mpb.ConsoleWriter. A terminal that is made narrower wraps lines that
// are on it: they are erased by the rows that they take then.
type console struct {
	w     io.Writer
	size  func() (columns, rows int)
	drawn chan struct{} // one for each frame

	mu     sync.Mutex
	frame  bytes.Buffer // being laid out
	shown  []string     // on the terminal
	closed bool
}

func (c *console) Write(b []byte) (int, error) { return c.frame.Write(b) }

// ReadFrom takes one row.
func (c *console) ReadFrom(r io.Reader) (int64, error) { return c.frame.ReadFrom(r) }

// IsTerminal has mpb ask for the size of the terminal before each frame.
func (c *console) IsTerminal() bool { return true }

// GetTermSize leaves the last column free: some terminals wrap a line that ends
// there.
func (c *console) GetTermSize() (width, height int, err error) {
	columns, rows := c.size()
	return max(columns-1, 1), max(rows-1, 1), nil
}

// Flush draws a frame.
func (c *console) Flush(int) error {
	c.mu.Lock()
	lines := strings.Split(strings.TrimSuffix(c.frame.String(), "\n"), "\n")
	c.frame.Reset()
	if columns, _ := c.size(); columns < narrow {
		lines = lines[len(lines)-1:]
	}
	if !c.closed {
		var b strings.Builder
		c.erase(&b)
		c.shown = lines
		c.show(&b)
		_, _ = io.WriteString(c.w, b.String()) // a terminal that is gone is nobody's loss
	}
	closed := c.closed
	c.mu.Unlock()
	if !closed {
		c.drawn <- struct{}{}
	}
	return nil
}

// above prints text over the bars.
func (c *console) above(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	c.erase(&b)
	b.WriteString(text)
	c.show(&b)
	_, _ = io.WriteString(c.w, b.String())
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	c.erase(&b)
	c.shown, c.closed = nil, true
	_, _ = io.WriteString(c.w, b.String())
}

// erase moves the cursor up to the first row that is drawn, and clears from there.
func (c *console) erase(b *strings.Builder) {
	columns, _ := c.size()
	rows := 0
	for _, line := range c.shown {
		rows += max((runewidth.StringWidth(line)+columns-1)/columns, 1)
	}
	if rows > 0 {
		fmt.Fprintf(b, "\r\x1b[%dA\x1b[J", rows)
	}
}

func (c *console) show(b *strings.Builder) {
	for _, line := range c.shown {
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// screenView is what a screen shows of a tally.
func screenView(t *tally, phase string, rate float64, now time.Time) view {
	var v view
	for _, d := range t.uploads() {
		u := t.running[d]
		r := row{digest: d, number: u.number, at: u.at, size: u.size, state: string(u.state)}
		if u.state == stateWaiting {
			r.state = "next try in " + shortTime(u.wait)
		}
		v.uploads = append(v.uploads, r)
	}
	v.total = totalParts(t, phase, rate, now)
	return v
}

// totalParts are the parts of the line about the whole image.
func totalParts(t *tally, phase string, rate float64, now time.Time) []string {
	if len(t.running) == 0 && len(t.done) == 0 {
		return []string{" " + phase}
	}
	var parts []string
	if p := t.percent(); p >= 0 {
		parts = append(parts, fmt.Sprintf("%3d%%", p), ofWords(t.have(), t.size()))
	} else {
		parts = append(parts, " "+bytesWords(t.have()))
	}
	if what := busyWords(t, phase, rate, now); what != "" {
		parts = append(parts, what)
	} else {
		parts = append(parts, rateWords(rate))
		if left, ok := t.left(rate); ok {
			parts = append(parts, shortTime(left)+" left")
		}
	}
	if t.breaks > 0 {
		parts = append(parts, "·  "+survivedWords(t))
	}
	if n := t.total.Blobs; n > 0 && len(t.done) > 0 {
		parts = append(parts, fmt.Sprintf("·  %d/%d blobs", len(t.done), n))
	}
	return parts
}

// busyWords says what goes on if no bytes move; empty if they do.
func busyWords(t *tally, phase string, rate float64, now time.Time) string {
	if len(t.running) == 0 {
		if t.total.Blobs > 0 && len(t.done) >= t.total.Blobs {
			return "publishing"
		}
		return phase
	}
	committing := 0
	for _, u := range t.running {
		if u.state == stateCommitting {
			committing++
		}
	}
	idle := now.Sub(t.movedAt)
	switch {
	case committing == len(t.running) && idle >= time.Second:
		return "the registry commits"
	case rate < 1 && idle >= 5*time.Second:
		return "nothing sent for " + shortTime(idle)
	}
	return ""
}

// terminalSize is size with what a terminal has if nobody knows.
func terminalSize(columns, rows int, err error) (int, int) {
	if err != nil {
		columns, rows = 0, 0
	}
	return cmp.Or(columns, 80), cmp.Or(rows, 24)
}
