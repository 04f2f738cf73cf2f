// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func TestEventWords(t *testing.T) {
	at := time.Date(2026, 1, 2, 16, 4, 5, 0, time.FixedZone("CET", 3600))
	reset := fmt.Errorf("write: %w", os.NewSyscallError("write", syscall.ECONNRESET))
	conn := &resume.Conn{Local: "127.0.0.1:4711", Remote: "127.0.0.1:5000", Age: 600 * time.Millisecond, Sent: 33_600_000}
	for _, tt := range []struct {
		e    resume.Event
		want string
	}{
		{resume.Event{Kind: resume.Existed, Size: 5 * mib}, "sha256:aaaaaaaaaaaa is there already, 5.0 MiB"},
		{resume.Event{Kind: resume.Mounted, Size: 5}, "sha256:aaaaaaaaaaaa mounted from another repository, 5 B"},
		{resume.Event{Kind: resume.Broken, Size: 64 * mib, Offset: 32 * mib, Err: reset, Conn: conn}, "sha256:aaaaaaaaaaaa broken at 32.0 MiB: " + syscall.ECONNRESET.Error() +
			" (127.0.0.1:4711 -> 127.0.0.1:5000, 0.6s old, 32.0 MiB sent, 2026-01-02T15:04:05Z)"},
		{resume.Event{Kind: resume.Broken, Size: 1, Err: io.ErrUnexpectedEOF}, "sha256:aaaaaaaaaaaa broken: connection closed by the other side (2026-01-02T15:04:05Z)"},
		{resume.Event{Kind: resume.Broken, Size: 1, Err: errors.New("odd"), Conn: &resume.Conn{RequestID: "r1"}}, "sha256:aaaaaaaaaaaa broken: odd (0.0s old, 0 B sent, request id r1, 2026-01-02T15:04:05Z)"},
		{resume.Event{Kind: resume.Waiting, Wait: 2 * time.Second, Err: reset}, "sha256:aaaaaaaaaaaa next try in 2.0s: " + syscall.ECONNRESET.Error()},
		{resume.Event{Kind: resume.Resumed, Size: 64 * mib, Offset: 32 * mib}, "sha256:aaaaaaaaaaaa resumed at 32.0 MiB of 64.0 MiB"},
		{resume.Event{Kind: resume.Lost}, "sha256:aaaaaaaaaaaa starts again at 0: the registry lost the upload"},
		{resume.Event{Kind: resume.Committed, Size: 1 << 30}, "sha256:aaaaaaaaaaaa committed, 1.0 GiB"},
		{resume.Event{Kind: resume.Warned, Err: errors.New("mind this")}, "warning: mind this"},
		{resume.Event{Kind: resume.Opened}, ""},
		{resume.Event{Kind: resume.Sent}, ""},
		{resume.Event{Kind: resume.Settled}, ""},
		{resume.Event{Kind: resume.Committing}, ""},
	} {
		tt.e.Digest, tt.e.Time = digestA, at
		if got := eventWords(tt.e); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.e.Kind, got, tt.want)
		}
	}
	e := resume.Event{Kind: resume.Broken, Repository: "reg.example/app", Time: at, Err: io.EOF}
	if got, want := eventWords(e), "reg.example/app broken: connection closed by the other side (2026-01-02T15:04:05Z)"; got != want {
		t.Errorf("without a digest: %q, want %q", got, want)
	}
}

func TestSummary(t *testing.T) {
	r := half()
	r.Blobs[1].State = pusher.BlobExisted
	want := "pushed reg.example/app:1: 300.0 MiB, 1 blob existed, 1 uploaded, 123 B sent, 1 break, 2 resumes, 0 restarts, 12.3s"
	if got := summaryWords(r, &tally{}); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestBytesWords(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", mib - 1: "1.0 MiB", mib: "1.0 MiB",
		120 * mib: "120.0 MiB", 1<<30 - 1: "1.0 GiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8192.0 PiB",
	} {
		if got := bytesWords(n); got != want {
			t.Errorf("bytesWords(%d) = %q, want %q", n, got, want)
		}
	}
}

// watched runs act beside a progress and returns the lines with their seconds.
func watched(t *testing.T, act func(p *progress)) (lines []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		out := &printer{last: began, w: writerFunc(func(b []byte) (int, error) {
			lines = append(lines, fmt.Sprintf("%3.0f %s", time.Since(began).Seconds(), strings.TrimSpace(stampText.ReplaceAllString(string(b), ""))))
			return len(b), nil
		})}
		p := newProgress(out, nil)
		stop := p.start()
		act(p)
		stop()
	})
	return lines
}

// stampText is what precedes a line.
var stampText = regexp.MustCompile(`^(\d\d:\d\d:\d\dZ )?rpush: `)

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

// send moves an upload from offset from, in steps of a second.
func send(p *progress, from, perSecond int64, seconds int) {
	for i := range int64(seconds) {
		time.Sleep(time.Second)
		p.event(resume.Event{Kind: resume.Sent, Digest: digestA, Size: 256 * mib, Offset: from + (i+1)*perSecond})
	}
}

func TestProgressOfOneUpload(t *testing.T) {
	lines := watched(t, func(p *progress) {
		blob := func(k resume.EventKind, offset int64) {
			p.event(resume.Event{Kind: k, Digest: digestA, Size: 256 * mib, Offset: offset, Err: io.EOF, Time: time.Now()})
		}
		time.Sleep(500 * time.Millisecond)
		blob(resume.Opened, 0)
		send(p, 0, 4*mib, 15) // to 60 MiB at 15.5 s
		blob(resume.Broken, 32*mib)
		blob(resume.Resumed, 32*mib) // shown progress goes back
		send(p, 32*mib, 2*mib, 6)    // to 44 MiB at 21.5 s
		blob(resume.Settled, 44*mib)
		send(p, 44*mib, mib, 10)
		blob(resume.Committed, 0)
		time.Sleep(20 * time.Second)
	})
	wantLines(t, lines,
		" 10 36.0 MiB, 3.6 MiB/s",
		" 16 sha256:aaaaaaaaaaaa broken at 32.0 MiB: connection closed by the other side (2000-01-01T00:00:15Z)",
		" 16 sha256:aaaaaaaaaaaa resumed at 32.0 MiB of 256.0 MiB",
		" 20 40.0 MiB, 409.6 KiB/s, 1 break",
		" 30 52.0 MiB, 1.2 MiB/s, 1 break",
		" 32 sha256:aaaaaaaaaaaa committed, 256.0 MiB",
	)
}

// A wait right after a break says nothing twice.
func TestWaitingAfterABreak(t *testing.T) {
	lines := watched(t, func(p *progress) {
		e := resume.Event{Digest: digestA, Err: io.EOF, Time: time.Now()}
		tell := func(k resume.EventKind, wait time.Duration) {
			e.Kind, e.Wait = k, wait
			p.event(e)
		}
		tell(resume.Broken, 0)
		tell(resume.Waiting, time.Millisecond)
		tell(resume.Broken, 0)
		tell(resume.Waiting, 2*time.Second)
		tell(resume.Waiting, 2*time.Second)
	})
	const broken = "  0 sha256:aaaaaaaaaaaa broken: connection closed by the other side (2000-01-01T00:00:00Z)"
	wantLines(t, lines, broken, broken,
		"  0 sha256:aaaaaaaaaaaa next try in 2.0s",
		"  0 sha256:aaaaaaaaaaaa next try in 2.0s: connection closed by the other side")
}

// However many uploads run, there is one line about them.
func TestProgressOfSeveralUploads(t *testing.T) {
	lines := watched(t, func(p *progress) {
		for i, d := range []resume.Event{{Digest: digestA}, {Digest: digestB}} {
			d.Kind, d.Size, d.Offset = resume.Sent, 100*mib, int64(i+1)*10*mib
			p.event(d)
		}
		time.Sleep(11 * time.Second)
	})
	wantLines(t, lines, " 10 30.0 MiB, 3.0 MiB/s")
}

// Whatever happens, or does not, at most a minute passes without a line.
func TestNoLongSilence(t *testing.T) {
	for name, act := range map[string]func(p *progress){
		"nothing at all": func(*progress) { time.Sleep(10 * time.Minute) },
		"a pushing that says nothing": func(p *progress) {
			p.doing("pushing")
			time.Sleep(10 * time.Minute)
		},
		"a stalled upload": func(p *progress) {
			p.event(resume.Event{Kind: resume.Sent, Digest: digestA, Size: mib, Offset: 5})
			time.Sleep(10 * time.Minute)
		},
		"a slow commit": func(p *progress) {
			p.event(resume.Event{Kind: resume.Committing, Digest: digestA, Size: mib, Offset: mib})
			time.Sleep(10 * time.Minute)
		},
		"a line now and then": func(p *progress) {
			for i := range 20 {
				time.Sleep(time.Duration(i) * 5 * time.Second)
				p.event(resume.Event{Kind: resume.Committed, Digest: digestA, Size: mib})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			lines := watched(t, act)
			last := 0.0
			for _, l := range lines {
				var at float64
				if _, err := fmt.Sscan(l, &at); err != nil {
					t.Fatal(err)
				}
				if at-last > maxSilence.Seconds() {
					t.Errorf("silence from %v s to %v s", last, at)
				}
				last = at
			}
			if len(lines) < 9 {
				t.Errorf("only %d lines in 10 minutes: %q", len(lines), lines)
			}
		})
	}
}

func TestWordsOfASilence(t *testing.T) {
	lines := watched(t, func(p *progress) {
		time.Sleep(51 * time.Second)
		p.event(resume.Event{Kind: resume.Sent, Digest: digestA, Size: 2 * mib, Offset: mib})
		time.Sleep(70 * time.Second)
		p.event(resume.Event{Kind: resume.Committing, Digest: digestA, Size: 2 * mib, Offset: 2 * mib})
		time.Sleep(50 * time.Second)
	})
	wantLines(t, lines,
		" 50 still checking the source",
		" 60 1.0 MiB, 102.4 KiB/s",
		"110 1.0 MiB, nothing sent for 59.0s",
		"160 sha256:aaaaaaaaaaaa sent, the registry has been committing it for 39.0s",
	)
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                      "plain",
		"a\nb\tc\r\n":                "a b c",
		"\x1b[2J\x1b]0;title\x07":    "\ufffd[2J\ufffd]0;title\ufffd",
		"\u009b31m":                  "\ufffd31m",
		"right\u202eleft":            "right\ufffdleft",
		"bad \xff utf-8":             "bad \ufffd utf-8",
		"für 漢字":                     "für 漢字",
		strings.Repeat("é", 1500):    strings.Repeat("é", 1000) + "...",
		strings.Repeat("x", longest): strings.Repeat("x", longest),
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}
