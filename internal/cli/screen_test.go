// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// fakeTerminal is a terminal that knows what rpush uses: the end of a line, and
// moving up and clearing from there. Lines that are too long wrap.
type fakeTerminal struct {
	mu            sync.Mutex
	columns, rows int
	lines         []string // all that is on it, and above
	at            int      // the line of the cursor, which is at its start
}

func (f *fakeTerminal) size() (int, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.columns, f.rows
}

// resize wraps lines that do not fit any more, as tmux and others do.
func (f *fakeTerminal) resize(columns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.columns = columns
	old := f.lines
	f.lines = nil
	for _, l := range old[:f.at] {
		f.lines = append(f.lines, f.wrap(l)...)
	}
	f.at = len(f.lines)
}

func (f *fakeTerminal) wrap(line string) (all []string) {
	r := []rune(line)
	for len(r) > f.columns {
		all, r = append(all, string(r[:f.columns])), r[f.columns:]
	}
	return append(all, string(r))
}

func (f *fakeTerminal) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := string(b)
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\r\x1b["); ok {
			var n int
			if _, err := fmt.Sscanf(rest, "%dA\x1b[J", &n); err != nil {
				panic(fmt.Sprintf("unknown sequence in %q", text))
			}
			f.at = max(f.at-n, 0)
			f.lines = f.lines[:f.at]
			_, text, _ = strings.Cut(rest, "J")
			continue
		}
		line, rest, ok := strings.Cut(text, "\n")
		if !ok || strings.ContainsAny(line, "\x1b\r") {
			panic(fmt.Sprintf("no whole line in %q", text))
		}
		f.lines = append(f.lines, f.wrap(line)...)
		f.at = len(f.lines)
		text = rest
	}
	return len(b), nil
}

func (f *fakeTerminal) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.lines, "\n") + "\n"
}

// layerDigest is a digest that begins with one letter twelve times.
func layerDigest(letter string) digest.Digest {
	return digest.Digest("sha256:" + strings.Repeat(letter, 64))
}

// push300 is a push of three layers with resets. shot is called at moments that are
// worth a look.
func push300(p *progress, shot func(name string)) {
	const ref = "reg.example/team/app:1"
	total := resume.Total{Blobs: 3, Manifests: 1, Bytes: 300 * mib}
	event := func(k resume.EventKind, layer string, offset int64) {
		e := resume.Event{
			Time: time.Now(), Kind: k, Reference: ref, Repository: "reg.example/team/app", Total: total,
			Digest: layerDigest(layer), Size: 100 * mib, Offset: offset,
		}
		if k == resume.Broken {
			e.Err = os.NewSyscallError("write", syscall.ECONNRESET)
			e.Conn = &resume.Conn{Local: "10.0.0.2:40112", Remote: "10.0.0.9:443", Age: 1200 * time.Millisecond, Sent: offset + 600}
		}
		if k == resume.EventPlanned {
			e.Digest, e.Size = "", 0
		}
		p.event(e)
	}
	reset := func(layer string, at int64) {
		event(resume.Broken, layer, at)
		event(resume.Settled, layer, at)
		event(resume.Resumed, layer, at)
	}
	pause := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}
	shot("opening")
	event(resume.EventPlanned, "", 0)
	p.doing("pushing ./app to " + ref)
	for _, l := range []string{"a", "b", "c"} {
		event(resume.Opened, l, 0)
	}
	for i := range int64(4) {
		pause(time.Second)
		for n, l := range []string{"a", "b", "c"} {
			event(resume.Sent, l, (i+1)*mib*int64(10+2*n))
		}
	}
	pause(time.Second)
	shot("sending")
	event(resume.Broken, "b", 44*mib)
	pause(time.Second)
	shot("reset")
	event(resume.Settled, "b", 44*mib)
	event(resume.Resumed, "b", 44*mib)
	for i := range int64(6) {
		pause(time.Second)
		reset("a", (40+5*i)*mib)
	}
	event(resume.Sent, "b", 60*mib)
	event(resume.Sent, "c", 100*mib)
	event(resume.Committing, "c", 100*mib)
	event(resume.Committed, "c", 100*mib)
	pause(time.Second)
	shot("layer done")
	event(resume.Lost, "a", 0)
	event(resume.Opened, "a", 0)
	pause(20 * time.Second)
	shot("silent")
	event(resume.Sent, "a", 100*mib)
	event(resume.Sent, "b", 100*mib)
	event(resume.Committing, "a", 100*mib)
	event(resume.Committing, "b", 100*mib)
	pause(3 * time.Second)
	shot("committing")
	event(resume.Committed, "a", 100*mib)
	event(resume.Committed, "b", 100*mib)
	pause(time.Second)
	shot("publishing")
	p.event(resume.Event{Kind: resume.EventPublished, Time: time.Now(), Reference: ref, Total: total, Digest: layerDigest("d"), Tag: "1"})
}

// What a push looks like on terminals of three widths. A file shows each moment.
func TestScreens(t *testing.T) {
	for _, columns := range []int{120, 80, 40} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			var shots strings.Builder
			synctest.Test(t, func(t *testing.T) {
				f := &fakeTerminal{columns: columns, rows: 24}
				out := &printer{last: time.Now(), w: f}
				p := newProgress(out, newScreen(f, f.size))
				stop := p.start()
				push300(p, func(name string) {
					time.Sleep(refreshEvery + time.Millisecond)
					synctest.Wait()
					fmt.Fprintf(&shots, "--- %s ---\n%s", name, f)
				})
				stop()
				out.line("the end")
				fmt.Fprintf(&shots, "--- after it ---\n%s", f)
			})
			golden(t, fmt.Sprintf("screens/%d.txt", columns), shots.String())
		})
	}
}

// Lines go above the bars, and a terminal that is made narrower, and wider again,
// keeps no remains of them.
func TestScreenResize(t *testing.T) {
	var shots strings.Builder
	synctest.Test(t, func(t *testing.T) {
		f := &fakeTerminal{columns: 100, rows: 24}
		out := &printer{last: time.Now(), w: f}
		p := newProgress(out, newScreen(f, f.size))
		stop := p.start()
		look := func(name string) {
			time.Sleep(refreshEvery + time.Millisecond)
			synctest.Wait()
			fmt.Fprintf(&shots, "--- %s ---\n%s", name, f)
		}
		total := resume.Total{Blobs: 2, Bytes: 200 * mib}
		for _, l := range []string{"a", "b"} {
			p.event(resume.Event{Kind: resume.Sent, Reference: "r/a:1", Total: total, Digest: layerDigest(l), Size: 100 * mib, Offset: 50 * mib})
		}
		look("100 columns")
		f.resize(62)
		look("62 columns")
		out.line("a line that is longer than the terminal is wide, so that it wraps there")
		look("with a line")
		f.resize(50)
		look("50 columns")
		f.resize(100)
		look("100 columns again")
		stop()
	})
	golden(t, "screens/resize.txt", shots.String())
}

// What the same push says in the log of a CI system.
func TestLogOfAPush(t *testing.T) {
	var log strings.Builder
	synctest.Test(t, func(t *testing.T) {
		out := &printer{last: time.Now(), w: &log}
		p := newProgress(out, nil)
		stop := p.start()
		push300(p, func(string) {})
		stop()
	})
	golden(t, "logs/plain.txt", log.String())
}

// And as objects.
func TestLogObjects(t *testing.T) {
	var log strings.Builder
	synctest.Test(t, func(t *testing.T) {
		out := &printer{last: time.Now(), w: &log}
		out.json.Store(true)
		p := newProgress(out, nil)
		p.json = true
		stop := p.start()
		push300(p, func(string) {})
		stop()
		out.note("a note")
		out.line("an error")
	})
	golden(t, "logs/events.jsonl", log.String())
}

// 157 resets are no 157 lines.
func TestManyResetsAreFewLines(t *testing.T) {
	lines := watched(t, func(p *progress) {
		for i := range 157 {
			e := resume.Event{Kind: resume.Broken, Digest: digestA, Size: 1 << 30, Offset: int64(i) * 2 * mib, Err: syscall.ECONNRESET, Conn: &resume.Conn{}, Time: time.Now()}
			p.event(e)
			e.Kind = resume.Settled
			p.event(e)
			e.Kind = resume.Resumed
			p.event(e)
			time.Sleep(200 * time.Millisecond)
		}
	})
	if len(lines) > 12 {
		t.Errorf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	if last := lines[len(lines)-1]; !strings.Contains(last, "resets") {
		t.Errorf("the last line does not count the resets: %q", last)
	}
}
