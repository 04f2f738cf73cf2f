// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

func sysctlCommand(path string) string {
	return "sysctl " + strings.ReplaceAll(strings.TrimPrefix(path, "proc/sys/"), "/", ".")
}

// unreadable is the check of something that could not be read.
func unreadable(c Check, err error) Check {
	c.Verdict, c.Finding = Unknown, host.Reason(err)
	if errors.Is(err, fs.ErrNotExist) {
		c.Finding = "this kernel does not have it, or conntrack is not loaded"
	}
	return c
}

func (m *machine) beLiberal(r *Report) Check {
	v, path, err := m.Sysctl("tcp_be_liberal")
	c := Check{Name: "be_liberal", Verdict: Sound, Command: sysctlCommand(path)}
	switch {
	case err != nil && !m.HasConntrack():
		c.Verdict, c.Finding = NotApplicable, "conntrack is not active here"
	case err != nil:
		c = unreadable(c, err)
	default:
		r.liberal = v != 0
		c.Finding = fmt.Sprint(v)
	}
	return c
}

func (r *Report) protections(found rules.Judgement) {
	if r.liberal {
		r.Protection = append(r.Protection, "nf_conntrack_tcp_be_liberal")
	}
	if len(r.Mappings) > 0 && !r.exposed {
		for _, g := range found.Guards {
			if g.Effect == rules.Protects {
				r.Protection = append(r.Protection, g.Chain+": "+g.Rule)
			}
		}
	}
}

// liberalCheck weighs the value with the rest.
func (m *machine) liberalCheck(r *Report, c Check) Check {
	if c.Verdict != Sound {
		return c
	}
	switch {
	case r.liberal:
		c.Finding += ": segments outside the window are translated like others; illegal flags are still INVALID"
	case r.Where == Undecided:
		c.Verdict, c.Finding = Unknown, c.Finding+": a risk if this machine translates the port and no rule drops what is INVALID"
	case r.Where != Here:
		c.Verdict, c.Finding = NotApplicable, c.Finding+", which matters where ports are translated"
	case len(r.Protection) > 0:
		c.Finding += ", and a rule drops what is INVALID"
	case r.unread:
		c.Verdict, c.Finding = Unknown, c.Finding+": a risk unless a rule drops what is INVALID"
	default:
		c.Verdict, c.Finding = AtRisk, c.Finding+": a segment outside the window is INVALID, is not translated, and draws a RST"
	}
	return c
}

const natCommand = "nft list ruleset; iptables-legacy-save -t nat; pgrep -a docker-proxy"

func (m *machine) natCheck(r *Report, unread error) Check {
	c := Check{Name: "translation", Verdict: Sound, Command: natCommand}
	what := "no TCP port"
	if t := r.Registry; t != nil {
		what = fmt.Sprintf("%s port %d not", t.Host, t.Port)
	}
	switch {
	case r.Where == Undecided && r.Registry != nil && r.Registry.Error != "":
		c.Verdict, c.Finding = Unknown, "the registry's address is not known: "+r.Registry.Error
	case unread != nil && r.Where == Untranslated:
		c.Verdict, c.Finding = NotApplicable, what+" translated here: conntrack is not active"
	case unread != nil && len(r.Mappings) == 0:
		c.Verdict, c.Finding = Unknown, unread.Error()
	case len(r.Mappings) == 0:
		c.Verdict, c.Finding = NotApplicable, what+" translated here"
	default:
		c.Finding = mappingWords(r.Mappings[0])
		c.Command = r.Mappings[0].Command
		if n := len(r.Mappings); n > 1 {
			c.Finding += fmt.Sprintf(", and %d more", n-1)
			for _, o := range r.Mappings[1:min(n, 20)] {
				c.Details = append(c.Details, mappingWords(o))
			}
		}
	}
	for _, p := range r.Proxies {
		c.Details = append(c.Details, fmt.Sprintf("%s (pid %d) listens on %s for %s: a stray packet is answered all the same", p.Program, p.PID, p.Address, p.To))
	}
	if t := r.Registry; t != nil && t.Loopback && len(r.Mappings) > 0 {
		c.Details = append(c.Details, "pushes to a loopback address are not translated; those to the other addresses are")
	}
	return c
}

func mappingWords(m rules.Mapping) string {
	s := "any port"
	if m.Port != 0 {
		s = "port " + m.Range().String()
	}
	if m.V6 {
		s = "IPv6 " + s
	}
	if m.To != "" {
		s += " goes to " + m.To
	} else {
		s += " is translated"
	}
	if m.By != "" {
		s += ", by " + m.By
	}
	return s + " (" + m.Chain + ")"
}

func (m *machine) rulesCheck(r *Report, set *rules.Set, found rules.Judgement, unread error) Check {
	c := Check{Name: "rules", Command: "nft list ruleset; iptables-legacy-save"}
	if unread != nil && (len(r.Mappings) == 0 || r.exposed) {
		c.Verdict, c.Finding = Unknown, unread.Error()
		if r.Where == Untranslated {
			c.Verdict, c.Finding = NotApplicable, "nothing is translated here"
		}
		return c
	}
	if len(r.Mappings) == 0 {
		c.Verdict, c.Finding = NotApplicable, "nothing is translated here"
		return c
	}
	if found.IsEndless {
		c.Verdict, c.Finding = Unknown, errEndless.Error()
		return c
	}
	guards := slices.Clone(found.Guards)
	order := []rules.Effect{rules.Protects, rules.Partly, rules.Answers, rules.AfterAccept, rules.ForwardOnly}
	slices.SortStableFunc(guards, func(a, b rules.Guard) int { return slices.Index(order, a.Effect) - slices.Index(order, b.Effect) })
	for _, g := range guards {
		c.Details = append(c.Details, guardWords(g))
	}
	if len(guards) > 0 {
		c.Command = guards[0].Command
	}
	switch {
	case !r.exposed:
		c.Verdict = Sound
		c.Finding, c.Details = c.Details[0], c.Details[1:]
	case r.liberal:
		c.Verdict, c.Finding = Sound, "no rule drops INVALID packets for this host, and be_liberal makes up for it"
	default:
		c.Verdict, c.Finding = AtRisk, "no rule drops INVALID packets for this host before something accepts them"
		if slices.ContainsFunc(guards, func(g rules.Guard) bool { return g.Effect == rules.Partly || g.Effect == rules.Protects }) {
			c.Finding = "not every INVALID packet for this host is dropped"
		}
		if len(found.Open) > 0 && len(found.Open) < len(r.Mappings) {
			c.Details = append(c.Details, "open: "+mappingWords(found.Open[0]))
		}
	}
	for _, v6 := range []bool{false, true} {
		for _, mp := range r.Mappings {
			if g, ok := set.Untracked(rules.Packet{IsV6: v6, Port: uint16(mp.Port), IsLocal: rules.Yes}); ok && mp.V6 == v6 { //nolint:gosec // it was read as one
				c.Details = append(c.Details, fmt.Sprintf("%s: %q takes packets out of conntrack: those are not translated at all", g.Chain, g.Rule))
				return c
			}
		}
	}
	return c
}

// guardWords says what a rule does for the host.
func guardWords(g rules.Guard) string {
	where := g.Chain
	if g.By != "" {
		where += " of " + g.By
	}
	rule := fmt.Sprintf("%s: %q", where, g.Rule)
	switch g.Effect {
	case rules.Protects:
		s := rule + " drops INVALID before anything accepts it"
		if g.Packets != nil {
			s += fmt.Sprintf(", %d packets so far", *g.Packets)
		}
		return s
	case rules.Partly:
		if g.Behind != "" {
			return fmt.Sprintf("%s protects in part: %q may accept first", rule, g.Behind)
		}
		return rule + " protects in part: only if " + strings.Join(g.If, ", ")
	case rules.AfterAccept:
		return fmt.Sprintf("%s does not protect: %q accepts first", rule, g.Behind)
	case rules.ForwardOnly:
		return rule + " does not protect: it is about forwarded packets, and the stray one is not"
	case rules.Answers:
		return rule + " does not protect: a rejection is a RST as well"
	}
	return rule
}

// forgiving is the first kernel that lets delayed segments pass; before it they
// are INVALID. Vendors bring it to older ones.
var forgiving = host.Release{Major: 6, Minor: 1}

func (m *machine) kernelCheck(r *Report) Check {
	c := Check{Name: "kernel", Verdict: Sound, Command: "uname -r; rpush doctor --selftest"}
	v, ok := host.ParseRelease(r.Kernel)
	switch {
	case !ok:
		c.Verdict, c.Finding = Unknown, fmt.Sprintf("%q is no version", r.Kernel)
	case v.Before(forgiving):
		r.old = true
		c.Finding = r.Kernel + ": before 6.1 delayed segments are INVALID too, unless the vendor brought that back"
		if r.exposed && !r.liberal && !r.unread {
			c.Verdict = AtRisk
		}
	default:
		c.Finding = r.Kernel + ": delayed segments pass since 6.1; those beyond the window are INVALID still"
	}
	return c
}

func (m *machine) sysctlChecks() []Check {
	var all []Check
	for _, s := range []struct {
		name string
		say  func(int64) (Verdict, string)
	}{
		{"tcp_loose", func(v int64) (Verdict, string) {
			if v == 0 {
				return AtRisk, "0: connections older than the table are INVALID after conntrack -F, a failover or a reload"
			}
			return Sound, fmt.Sprintf("%d: connections older than the table are taken up", v)
		}},
		{"tcp_ignore_invalid_rst", func(v int64) (Verdict, string) {
			return Sound, fmt.Sprintf("%d: about RSTs that come in, not about those that this host sends", v)
		}},
		{"log_invalid", func(v int64) (Verdict, string) {
			if v == 0 {
				return Sound, "0: INVALID packets are not logged; 6 logs those of TCP, for proof"
			}
			return Sound, fmt.Sprintf("%d: INVALID packets are logged: journalctl -k -g nf_ct_proto", v)
		}},
	} {
		v, path, err := m.Sysctl(s.name)
		c := Check{Name: strings.TrimPrefix(s.name, "tcp_"), Command: sysctlCommand(path)}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			c.Verdict, c.Finding = NotApplicable, "this kernel does not have it, or conntrack is not loaded"
		case err != nil:
			c = unreadable(c, err)
		default:
			c.Verdict, c.Finding = s.say(v)
		}
		all = append(all, c)
	}
	return all
}

// The table drops new connections when it is full. That looks different from
// the incident: a hang.
const crowded = 80 // percent

func (m *machine) tableCheck() Check {
	c := Check{Name: "table", Verdict: Sound, Command: "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"}
	count, _, err := m.Sysctl("count")
	limit, _, err1 := m.Sysctl("max")
	if err = errors.Join(err, err1); err != nil {
		if !m.HasConntrack() {
			c.Verdict, c.Finding = NotApplicable, "conntrack is not active here"
			return c
		}
		return unreadable(c, err)
	}
	c.Finding = fmt.Sprintf("%d of %d entries", count, limit)
	if limit > 0 && count >= limit/100*crowded {
		c.Verdict = AtRisk
		c.Finding += ": when it is full, new connections hang"
	}
	return c
}

// A connection that is silent for longer than its entry lives loses its
// translation. The longest silence of a push is a registry's commit.
const longestSilence = 15 * 60

func (m *machine) timeoutCheck() Check {
	c := Check{Name: "timeouts", Verdict: Sound, Command: "sysctl -a -r nf_conntrack_tcp_timeout"}
	established, _, err := m.Sysctl("tcp_timeout_established")
	if err != nil {
		if !m.HasConntrack() {
			c.Verdict, c.Finding = NotApplicable, "conntrack is not active here"
			return c
		}
		return unreadable(c, err)
	}
	c.Finding = fmt.Sprintf("established %ds", established)
	if v, _, err := m.Sysctl("tcp_timeout_unacknowledged"); err == nil {
		c.Finding += fmt.Sprintf(", unacknowledged %ds", v)
		if v < 60 {
			c.Verdict = AtRisk
			c.Finding += ": a stalled upload loses its translation within a minute"
		}
	}
	if established < longestSilence {
		c.Verdict = AtRisk
		c.Finding += fmt.Sprintf(": a push may be silent for %ds while a registry commits", longestSilence)
	}
	return c
}

func (m *machine) privilegeCheck(unread error) Check {
	c := Check{Name: "privileges", Verdict: Sound, Command: "id -u; capsh --print"}
	switch {
	case unread != nil && m.IsRoot:
		c.Verdict, c.Finding = Unknown, "root without CAP_NET_ADMIN, or rules that cannot be read: "+unread.Error()
	case unread != nil:
		c.Verdict, c.Finding = Unknown, "an ordinary user: rules are not readable, the rest is"
	default:
		c.Finding = "all that matters could be read"
	}
	return c
}

func (m *machine) historyCheck() Check {
	c := Check{Name: "since boot", Verdict: Sound, Command: "conntrack -S; nstat -az TcpOutRsts TcpEstabResets"}
	n, err := m.Counters()
	switch {
	case err != nil:
		return unreadable(c, err)
	case !n.Tracked:
		c.Verdict, c.Finding = NotApplicable, "conntrack does not count here"
	default:
		c.Finding = fmt.Sprintf("%d INVALID, %d RSTs sent: history, no evidence; --watch measures", n.Invalid, n.OutRsts)
		if n.Drop+n.EarlyDrop > 0 {
			c.Finding += fmt.Sprintf("; %d found the table full", n.Drop+n.EarlyDrop)
		}
	}
	return c
}

func namespaceCheck(ns host.Namespace) Check {
	c := Check{Name: "namespace", Verdict: Unknown, Finding: ns.Finding, Command: "ls -l /proc/self/ns/net /proc/1/ns/net"}
	if ns.IsMachines {
		c.Verdict = Sound
	}
	return c
}
