package cli

import (
	"io"
	"strings"
	"sync"
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

// printer writes lines for a human. Nothing that it is given can control the
// terminal. It is safe for concurrent use.
type printer struct {
	mu    sync.Mutex
	w     io.Writer
	quiet bool
	last  time.Time // of the last line
}

// line prints what a human must know.
func (p *printer) line(s string) { p.lines([]string{s}) }

func (p *printer) lines(all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range all {
		// Nowhere is left to complain to when stderr is gone.
		_, _ = io.WriteString(p.w, prefix+clean(s)+"\n")
	}
	p.last = time.Now()
}

// note prints what may be left out.
func (p *printer) note(s string) {
	if !p.quiet {
		p.line(s)
	}
}

// silence is the time since the last line.
func (p *printer) silence() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last)
}

// Write lets a logger print: its lines get the prefix too.
func (p *printer) Write(b []byte) (int, error) {
	p.lines(strings.Split(strings.TrimRight(string(b), "\n"), "\n"))
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
