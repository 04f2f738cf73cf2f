// SPDX-License-Identifier: Apache-2.0

package resume

import "testing"

func TestCandidates(t *testing.T) {
	none, one := Dialect{}, Dialect{OffByOne: true}
	for _, c := range []struct {
		name              string
		said, acked, sent int64
		dialect           Dialect
		held              int64
		tries             [maxRefused]int64
	}{
		{"nothing was sent", 0, 0, 0, none, 0, [3]int64{0, 0, 0}},
		{"nothing was kept", 0, 0, 90, none, 0, [3]int64{0, 0, 0}},
		{"a part was kept", 40, 0, 90, none, 40, [3]int64{40, 39, 0}},
		{"a part was kept behind a chunk", 40, 30, 90, none, 40, [3]int64{40, 39, 30}},
		{"a chunk was kept", 30, 30, 90, none, 30, [3]int64{30, 30, 30}},
		{"one byte behind a chunk", 31, 30, 90, none, 31, [3]int64{31, 30, 30}},
		{"all was kept", 90, 30, 90, none, 90, [3]int64{90, 89, 30}},
		// ECR and zot.
		{"less than was acknowledged", 10, 30, 90, none, 10, [3]int64{30, 10, 10}},
		{"nothing, though acknowledged", 0, 30, 90, none, 0, [3]int64{30, 0, 0}},
		// Quay and Gitea.
		{"counts one too many, which is known", 40, 30, 90, one, 39, [3]int64{39, 38, 30}},
		{"counts one too many at a chunk", 31, 30, 90, one, 30, [3]int64{30, 30, 30}},
		{"an acknowledged end is right all the same", 30, 30, 90, one, 30, [3]int64{30, 30, 30}},
		{"counts one too many at the end, which proves it", 91, 30, 90, none, 90, [3]int64{90, 89, 30}},
		{"one byte of a session that was sent none", 1, 0, 0, none, 1, [3]int64{1, 0, 0}},
		{"one byte of a session that was sent none, from one that counts so", 1, 0, 0, one, 0, [3]int64{0, 0, 0}},
		// The caller gives up sessions that claim so much.
		{"more than was sent", 95, 30, 90, none, 95, [3]int64{95, 94, 30}},
	} {
		t.Run(c.name, func(t *testing.T) {
			held, tries := candidates(c.said, c.acked, c.sent, c.dialect)
			if held != c.held || tries != c.tries {
				t.Errorf("held %d, tries %v; want %d, %v", held, tries, c.held, c.tries)
			}
		})
	}
}

func TestOffset(t *testing.T) {
	var o offset
	if o.isSettled() {
		t.Error("the zero value is settled")
	}
	if o = settledAt(7); !o.isSettled() || o.bytes != 7 {
		t.Errorf("settled at %+v, want 7", o)
	}
	if o.unsettle(false); o != (offset{}) {
		t.Errorf("a settled offset that is contradicted is %+v, want unknown", o)
	}
	if o.unsettle(true); o.state != draining {
		t.Errorf("after a break %+v, want draining", o)
	}
	if o.unsettle(false); o.state != draining {
		t.Errorf("contradicted after a break it is %+v, want draining", o)
	}
}
