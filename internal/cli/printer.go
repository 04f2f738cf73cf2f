// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
)

const (
	prefix = "rpush: "
	// longest is where a line is cut, in bytes: registries answer with whole
	// web pages.
	longest = 2000
)

// printer writes lines for a human, or objects for a program. Nothing that it is
// given can control the terminal. It is safe for concurrent use.
type printer struct {
	quiet atomic.Bool // errors only
	hush  atomic.Bool // nothing about progress
	json  atomic.Bool // every line is a JSON object

	mu      sync.Mutex
	w       io.Writer
	console *console // what is drawn on the terminal; lines go above it
	last    time.Time
}

// line prints what a human must know.
func (p *printer) line(s string) { p.lines([]string{s}) }

func (p *printer) lines(all []string) { p.print("error", "", all) }

// print writes lines. stamp goes before each, unless they are objects.
func (p *printer) print(level, stamp string, all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, s := range all {
		if p.json.Load() {
			writeObject(&b, &logObject{Time: time.Now().UTC(), Event: "message", Level: level, Text: clean(s)})
			continue
		}
		b.WriteString(stamp + prefix + clean(s) + "\n")
	}
	p.write(b.String())
}

func (p *printer) write(text string) {
	if p.console != nil {
		p.console.above(text)
	} else {
		// Nowhere is left to complain to when stderr is gone.
		_, _ = io.WriteString(p.w, text)
	}
	p.last = time.Now()
}

// raw prints what is meant for a CI system.
func (p *printer) raw(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(text)
}

// note prints what may be left out.
func (p *printer) note(s string) {
	if !p.quiet.Load() {
		p.print("info", "", []string{s})
	}
}

// stamped prints what happens during a push, with the time in a log.
func (p *printer) stamped(s string) {
	if p.quiet.Load() || p.hush.Load() {
		return
	}
	stamp := time.Now().UTC().Format("15:04:05Z ")
	p.mu.Lock()
	if p.console != nil {
		stamp = ""
	}
	p.mu.Unlock()
	p.print("info", stamp, []string{s})
}

// object prints an object; nil is nothing.
func (p *printer) object(o *logObject) {
	if o == nil || p.quiet.Load() || p.hush.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	writeObject(&b, o)
	p.write(b.String())
}

func writeObject(b *strings.Builder, o *logObject) {
	o.Schema = schemaVersion
	if line, err := json.Marshal(o); err == nil { // it has nothing that cannot be encoded
		b.Write(line)
		b.WriteByte('\n')
	}
}

// over has lines printed above what c draws; nil ends that.
func (p *printer) over(c *console) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.console = c
}

// writer is where lines go.
func (p *printer) writer() io.Writer { return p.w }

// silence is the time since the last line.
func (p *printer) silence() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last)
}

// Write lets a logger print: its lines get the prefix too.
func (p *printer) Write(b []byte) (int, error) {
	p.print("info", "", strings.Split(strings.TrimRight(string(b), "\n"), "\n"))
	return len(b), nil
}

// clean makes text from a registry, a file or a log safe to show: no control
// characters, no line breaks, nothing that turns the direction of writing.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029':
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	s = strings.TrimRight(s, " ")
	if len(s) <= longest {
		return s
	}
	cut := longest
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// logger returns one whose lines go to stderr.
func (a *app) logger(level logrus.Level) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(a.out)
	log.SetLevel(level)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true}) // the coloured form does not escape
	return log
}
