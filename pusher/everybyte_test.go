// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"fmt"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

// A connection breaks at every single byte of a small push, in either
// direction: in the middle of every request, before the registry acted, and in
// the middle of every answer, after it did. Then again at every byte of what
// follows a first break, where the status requests are. The same for blobs that
// go in the body of the commit.
func TestBreakAtEveryByte(t *testing.T) {
	img := newImage(content(1, 40))
	clean := func(inOne bool) (up, down int64) {
		inLab(t, scripted.Options{}, func(l *lab) {
			l.o.Parallel, l.o.Checks = 1, 1 // one order of requests
			if inOne {
				l.o.Dialects = nil
			}
			l.pushes("reg.test/a:1", img)
			up, down = l.net.Up(), l.net.Down()
		})
		if up < 1800 || down < 1000 {
			t.Fatalf("the clean push took %d bytes up and %d down: is it one?", up, down)
		}
		return up, down
	}
	up, down := clean(false)
	upInOne, downInOne := clean(true)
	step := int64(1)
	if testing.Short() {
		step = 17
	}
	// Where the layer's PATCH lies, a first break makes the client ask for the
	// offset; the second comes at every byte from there on.
	first := patchAt(t, img)
	for _, c := range []struct {
		name     string
		inOne    bool
		up, down []int64 // breaks, besides the one that moves
		isUp     bool
		from, to int64
	}{
		{name: "up", isUp: true, to: up},
		{name: "down", to: down},
		{name: "up, in one", inOne: true, isUp: true, to: upInOne},
		{name: "down, in one", inOne: true, to: downInOne},
		{name: "up after a break", up: []int64{first}, isUp: true, from: first + 1, to: up + 1500},
		{name: "down after a break", up: []int64{first}, to: down + 1500},
	} {
		for _, lose := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s lose=%v", c.name, lose), func(t *testing.T) {
				t.Parallel()
				pushes, broken := 0, 0
				for at := c.from; at <= c.to; at += step {
					inLab(t, scripted.Options{}, func(l *lab) {
						l.o.Parallel, l.o.Checks = 1, 1
						if c.inOne {
							l.o.Dialects = nil
						}
						l.net.Lose = lose
						l.net.BreakUpAt(c.up...)
						if c.isUp {
							l.net.BreakUpAt(at)
						} else {
							l.net.BreakDownAt(at)
						}
						_, err := l.push("reg.test/a:1", img)
						// One or two breaks, and then a good line: it must arrive.
						if err != nil {
							t.Fatalf("break at byte %d: %v", at, err)
						}
						if err := img.at(l.reg, "a", "1"); err != nil {
							t.Fatalf("break at byte %d: success, but %v", at, err)
						}
						pushes++
						broken += l.net.Breaks()
					})
				}
				if broken < pushes*9/10 {
					t.Errorf("only %d breaks in %d pushes", broken, pushes)
				}
				t.Logf("%d pushes, %d breaks", pushes, broken)
			})
		}
	}
}

// patchAt finds an upstream byte inside the body of the layer's PATCH.
func patchAt(t *testing.T, img *image) int64 {
	t.Helper()
	for at := int64(500); ; at += 10 {
		found, asked := false, false
		inLab(t, scripted.Options{}, func(l *lab) {
			l.o.Parallel, l.o.Checks = 1, 1
			l.net.BreakUpAt(at)
			l.pushes("reg.test/a:1", img)
			for _, r := range l.reg.Requests() {
				found = found || r.Kind == scripted.Patch && r.Start <= 0 && r.Body > 5 && r.Body < 35
				asked = asked || r.Kind == scripted.Status
			}
		})
		if found && asked {
			return at
		}
		if at > 10_000 {
			t.Fatal("no byte of the body of a PATCH was found")
		}
	}
}
