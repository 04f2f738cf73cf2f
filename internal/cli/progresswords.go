// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"time"

	"github.com/rpush-go/rpush/resume"
)

// What is said about a push while it runs.

const moreBreaksWords = "more breaks; counting them from now on (-v lists each)"

// plannedWords announces an image.
func plannedWords(e resume.Event) string {
	s := fmt.Sprintf("pushing %s: ", e.Reference)
	if e.Total.Bytes > 0 {
		s += bytesWords(e.Total.Bytes) + ", "
	}
	return s + plural(e.Total.Blobs, "blob")
}

// progressWords is the line of a log about uploads that make progress; rate is in
// bytes a second.
func progressWords(t *tally, rate float64) string {
	s := bytesWords(t.have())
	if p := t.percent(); p >= 0 {
		s = fmt.Sprintf("%d%% %s", p, ofWords(t.have(), t.size()))
	}
	s += ", " + rateWords(rate)
	if left, ok := t.left(rate); ok {
		s += ", " + shortTime(left) + " left"
	}
	if t.breaks > 0 {
		s += ", " + breaksWords(t)
	}
	return s
}

// stillWords breaks a long silence.
func stillWords(t *tally, phase string, now time.Time) string {
	if len(t.running) == 0 {
		return "still " + phase
	}
	for _, d := range t.uploads() {
		if at := t.running[d].committing; !at.IsZero() {
			return fmt.Sprintf("%s sent, the registry has been committing it for %s", shortDigest(d), durationWords(now.Sub(at)))
		}
	}
	what := bytesWords(t.have())
	if t.size() > 0 {
		what = ofWords(t.have(), t.size())
	}
	return fmt.Sprintf("%s, nothing sent for %s", what, durationWords(now.Sub(t.movedAt)))
}

// breaksWords counts what broke: 6 resets, or 6 breaks if some were something else.
func breaksWords(t *tally) string {
	if t.breaks == t.resets {
		return plural(t.resets, "reset")
	}
	return plural(t.breaks, "break")
}

// survivedWords is breaksWords, with what they cost.
func survivedWords(t *tally) string {
	if t.lost > 0 {
		return fmt.Sprintf("%s, %s started again", breaksWords(t), plural(t.lost, "layer"))
	}
	return breaksWords(t) + ", nothing lost"
}

// ofWords is a part of a number of bytes, in the unit of the whole: 257/300 MiB.
func ofWords(part, whole int64) string {
	div, unit := int64(1), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if whole < div<<10 {
			break
		}
		div, unit = div<<10, u
	}
	digits := 0
	if unit != "B" && float64(whole)/float64(div) < 99.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f/%.*f %s", digits, float64(part)/float64(div), digits, float64(whole)/float64(div), unit)
}

// rateWords is a number of bytes a second.
func rateWords(rate float64) string { return bytesWords(int64(rate)) + "/s" }

// shortTime is a time without fractions: 8s, 3m20s, 2h5m.
func shortTime(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(max(d, time.Second).Round(time.Second).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
}
