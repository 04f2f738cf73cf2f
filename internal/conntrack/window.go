// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"

	"github.com/rpush-go/rpush/internal/conntrack/selftest"
)

const windowCommand = "conntrack -S; nstat -az TcpOutRsts TcpEstabResets, twice"

func windowCheck(w Window) Check {
	c := Check{Name: "window", Command: windowCommand}
	figures := fmt.Sprintf("in %.0f s: %d INVALID, %d RSTs sent, %d connections reset", w.Seconds, w.Invalid, w.OutRsts, w.EstabResets)
	if w.Dropped != nil {
		figures += fmt.Sprintf(", %d dropped by the rule", *w.Dropped)
	}
	switch w.Moved {
	case Resets:
		c.Verdict, c.Finding = Evidence, figures+": two INVALID for each RST, this host reset connections"
	case Dropped:
		c.Verdict, c.Finding = Sound, figures+": INVALID packets came and drew no RST"
	case Mixed:
		c.Verdict, c.Finding = Unknown, figures+": not in the incident's proportion of two to one; watch a push alone"
	case Still:
		c.Verdict, c.Finding = Sound, figures+": nothing stray came"
	default:
		c.Verdict, c.Finding = Unknown, "nothing was measured: conntrack does not count here"
	}
	if w.Checksum > 0 {
		c.Details = append(c.Details, fmt.Sprintf("%d packets had a wrong checksum: bad hardware or offloading, another trouble than this one", w.Checksum))
	}
	if w.TableFull > 0 {
		c.Details = append(c.Details, fmt.Sprintf("%d packets found the table full: connections hang, another trouble than this one", w.TableFull))
	}
	return c
}

func (r *Report) selfTestCheck() Check {
	t := r.SelfTest
	c := Check{Name: "self-test", Verdict: Sound, Command: "rpush doctor --selftest"}
	words := map[selftest.Outcome]string{selftest.WasReset: "reset the connection", selftest.Survived: "did no harm", "": "were not tried"}
	c.Finding = "on this kernel delayed segments " + words[t.Delayed] + ", those beyond the window " + words[t.Beyond]
	switch {
	case t.Error != "":
		c.Verdict, c.Finding = Unknown, t.Error
	case (t.Delayed == selftest.WasReset || t.Beyond == selftest.WasReset) && r.Where == Here && r.exposed && !r.liberal:
		c.Verdict = AtRisk
	}
	return c
}
