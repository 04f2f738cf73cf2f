// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

// display shows each blob as a bar. What the registry holds for sure is solid,
// what has only been sent is not, and falls back when a connection breaks.
type display struct {
	out io.Writer
	tty bool // bars are drawn again in place

	mu    sync.Mutex
	blobs map[digest.Digest]*bar
	drawn int // lines of the last drawing
}

type bar struct {
	size, settled, sent int64
	state               string
}

const width = 40

// on is a resume.Options.OnEvent. It is never called twice at once, but reading
// may go on elsewhere.
func (d *display) on(e resume.Event) {
	if e.Digest == "" || e.Size == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blobs == nil {
		d.blobs = map[digest.Digest]*bar{}
	}
	b := d.blobs[e.Digest]
	if b == nil {
		b = &bar{size: e.Size}
		d.blobs[e.Digest] = b
	}
	switch e.Kind {
	case resume.Sent:
		b.sent, b.state = e.Offset, ""
	case resume.Settled, resume.Resumed:
		b.settled, b.sent = e.Offset, e.Offset
	case resume.Broken:
		b.sent, b.state = b.settled, "broken"
	case resume.Waiting:
		b.state = fmt.Sprintf("trying again in %s", e.Wait)
	case resume.Lost:
		b.settled, b.sent, b.state = 0, 0, "from the beginning"
	case resume.Existed, resume.Mounted, resume.Committed:
		b.settled, b.sent, b.state = b.size, b.size, string(e.Kind)
	default:
		return
	}
	if d.tty {
		d.draw()
	} else if e.Kind != resume.Sent && e.Kind != resume.Settled {
		fmt.Fprintf(d.out, "%.19s %s\n", e.Digest, b) // a log: no line for every step
	}
}

func (d *display) draw() {
	if d.drawn > 0 {
		fmt.Fprintf(d.out, "\x1b[%dA", d.drawn)
	}
	for _, k := range slices.Sorted(maps.Keys(d.blobs)) {
		fmt.Fprintf(d.out, "\x1b[2K%.19s %s\n", k, d.blobs[k])
	}
	d.drawn = len(d.blobs)
}

func (b *bar) String() string {
	solid := int(b.settled * width / b.size)
	loose := int(b.sent*width/b.size) - solid
	return fmt.Sprintf("[%s%s%s] %3d%% %s", strings.Repeat("#", solid), strings.Repeat("+", max(loose, 0)),
		strings.Repeat(" ", width-solid-max(loose, 0)), b.settled*100/b.size, b.state)
}
