// SPDX-License-Identifier: Apache-2.0

package conntrack

import "testing"

// A scan has the incident's mark too: it is evidence only where the incident
// can be.
func TestEvidenceTakesTranslation(t *testing.T) {
	for _, c := range []struct {
		where         Where
		unread        bool
		window, whole Verdict
	}{
		{Here, false, Evidence, Evidence},
		{Undecided, true, Evidence, Evidence},
		{Undecided, false, Unknown, Unknown},
		{Untranslated, false, Unknown, NotApplicable},
		{Elsewhere, false, Unknown, NotApplicable},
	} {
		r := &Report{Where: c.where, unread: c.unread}
		r.Watched(Window{Moved: Resets, Invalid: 10, OutRsts: 5})
		if got := r.Checks[0]; got.Name != "window" || got.Verdict != c.window || r.Verdict != c.whole {
			t.Errorf("%s, %t: got %+v, %s, want %s, %s", c.where, c.unread, got, r.Verdict, c.window, c.whole)
		}
	}
}

// A measurement that was not made is said, and is no verdict.
func TestNotWatched(t *testing.T) {
	r := &Report{Where: Here}
	r.NotWatched("no counters")
	if got := r.Checks[0]; got.Name != "window" || got.Verdict != Unknown || got.Finding != "no counters" || r.Verdict != Sound {
		t.Errorf("got %+v, %s", got, r.Verdict)
	}
	r = &Report{Where: Here}
	r.Watched(Window{Moved: NotCounted})
	if got := r.Checks[0]; got.Name != "window" || got.Verdict != Unknown {
		t.Errorf("not counted: got %+v", got)
	}
}
