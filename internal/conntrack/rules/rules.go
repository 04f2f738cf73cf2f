// SPDX-License-Identifier: Apache-2.0

// Package rules is the one form in which the rules of nft and of xtables are
// followed, and what becomes of a packet that goes through them.
//
// The packages nft and xtables fill a [Set]. A [Packet] is walked through its
// chains. A rule may depend on what nobody can know before a packet comes, such
// as its source. Such a condition is [Maybe], and so is an expression that is
// not understood: a condition is never dropped.
package rules

import (
	"net/netip"
	"slices"
	"strings"
)

// Truth is what is known about a condition before the packet comes.
type Truth uint8

// The truths, in their order.
const (
	No Truth = iota
	Maybe
	Yes
)

// Known is Yes or No.
func Known(b bool) Truth {
	if b {
		return Yes
	}
	return No
}

// Not turns Yes into No and back. Maybe stays.
func (t Truth) Not() Truth { return Yes - t }

// Hook is a hook of netfilter.
type Hook string

// The hooks that a packet for this host, or from it, may meet.
const (
	Prerouting Hook = "prerouting"
	Input      Hook = "input"
	Forward    Hook = "forward"
	Output     Hook = "output"
)

// afterConntrack is where a chain at prerouting has to stand to see states.
const afterConntrack = -200

// Packet is a TCP packet that comes from outside and is meant for this host: the
// INVALID one that draws a RST, or the first of a connection.
type Packet struct {
	IsV6          bool
	IsInvalid     bool       // else it is the first of a connection, NEW
	Port          uint16     // destination, before any translation
	To            netip.Addr // destination; not valid if it may be any
	IsLocal       Truth      // To is an address of this host
	IsSent        bool       // by this host, so that it has no input interface
	IsFromOutside bool       // from another machine, so that it is for no loopback address
}

// Action is what a rule does with a packet that meets its conditions.
type Action uint8

// The actions.
const (
	Pass   Action = iota // on to the next rule
	Accept               // ends this base chain
	Drop
	Reject // answers by itself
	Jump
	Goto
	Return
	Translate // the destination
	Untrack   // take the packet out of conntrack
)

// Condition is a condition of a rule, as it came out for a packet.
type Condition struct {
	Holds        Truth
	Text         string // much as nft prints it
	IsAboutState bool   // it tests the conntrack state
}

// Step is what a rule does with a packet.
type Step struct {
	Conditions []Condition
	Action     Action
	To         string // chain, or where it translates to
	// Also are chains that it may lead to as well, by a map whose key is not
	// known.
	Also []string
}

func (s Step) match() Truth {
	m := Yes
	for _, c := range s.Conditions {
		m = min(m, c.Holds)
	}
	return m
}

// open are the conditions that the packet at hand does not settle.
func (s Step) open() []string {
	var open []string
	for _, c := range s.Conditions {
		if c.Holds == Maybe {
			open = append(open, c.Text)
		}
	}
	return open
}

func (s Step) aboutState() bool {
	return slices.ContainsFunc(s.Conditions, func(c Condition) bool { return c.IsAboutState })
}

// String is the rule in short, much as nft prints it.
func (s Step) String() string {
	var parts []string
	for _, c := range s.Conditions {
		if c.Text != "" {
			parts = append(parts, c.Text)
		}
	}
	// nft tests the protocol apart; "tcp dport" says so already.
	tcp := slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(p, "tcp ") })
	parts = slices.DeleteFunc(parts, func(p string) bool {
		return tcp && (p == "meta l4proto tcp" || p == "protocol tcp" || p == "proto tcp")
	})
	parts = append(parts, strings.TrimSpace(s.Action.String()+" "+s.To))
	return strings.TrimSpace(strings.Join(parts, " "))
}

// String is the word for it in a rule.
func (a Action) String() string {
	switch a {
	case Accept:
		return "accept"
	case Drop:
		return "drop"
	case Reject:
		return "reject"
	case Jump:
		return "jump"
	case Goto:
		return "goto"
	case Return:
		return "return"
	case Translate:
		return "dnat to"
	case Untrack:
		return "notrack"
	}
	return ""
}

// Rule is a rule of nft or xtables.
type Rule struct {
	Text      string
	Packets   uint64 // that met it so far
	IsCounted bool   // Packets is known
	// Apply tells what the rule does with a packet.
	Apply func(Packet) Step
	// Bounds are the destination ports at which its conditions may change:
	// the first of a range, and the one after the last.
	Bounds      []int
	IsUnbounded bool // it tests ports in a way that has no such Bounds
}

// Chain is a chain of one family. Base chains have a Hook.
type Chain struct {
	Family   string // ip, ip6, inet, or legacy ip, legacy ip6
	Table    string
	Name     string
	Hook     Hook
	Kind     string // filter, nat, route
	Priority int
	Policy   Action
	Rules    []Rule
}

// String is the family, the table and the name.
func (c *Chain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// Set holds all rules that were read. The zero value is empty. One goroutine may
// use it at a time.
type Set struct {
	chains []*Chain
	index  map[string]*Chain
	spent  int // steps of all walks
}

// Add adds a chain, unless there is one of that name.
func (r *Set) Add(c *Chain) {
	if r.index == nil {
		r.index = map[string]*Chain{}
	}
	if r.index[c.String()] == nil {
		r.index[c.String()] = c
		r.chains = append(r.chains, c)
	}
}

// Find returns a chain, or nil.
func (r *Set) Find(family, table, name string) *Chain {
	return r.index[family+" "+table+" "+name]
}

// at lists the base chains of a hook that a packet meets, in their order.
func (r *Set) at(h Hook, v6 bool, kind func(*Chain) bool) []*Chain {
	var all []*Chain
	for _, c := range r.chains {
		of := strings.TrimPrefix(c.Family, "legacy ")
		if c.Hook == h && kind(c) && (of == "inet" || of == "ip6" == v6 && (of == "ip" || of == "ip6")) {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b *Chain) int { return a.Priority - b.Priority })
	return all
}

// The bounds of a walk: rules come from outside, and may be very many.
const (
	maxDepth = 32
	maxSteps = 500_000
	maxSpent = 10_000_000 // of all walks
)

// walker takes one packet through one base chain.
type walker struct {
	set   *Set
	p     Packet
	steps int
	// past goes on after an accept, to find what stands behind it.
	past bool
	// on is called at every rule that may apply; returning true ends the walk.
	on func(s Step) bool

	sooner  []string // accepts that may have come first
	partial *end     // the first drop that may apply
}

// end is how a walk came out.
type end struct {
	action Action
	chain  *Chain
	rule   *Rule // nil: the policy
	step   Step
	sooner []string
	// stopped by the walker's on; endless where a bound was reached.
	stopped, endless bool
}

func (w *walker) walk(c *Chain) end {
	e := w.through(c, 0, nil)
	if !e.stopped && (e.action == Pass || e.action == Return) {
		e = end{action: c.Policy, chain: c, sooner: w.sooner}
	}
	if e.action == Accept && w.partial != nil && !e.stopped {
		return *w.partial
	}
	return e
}

// through takes the packet through a chain; above are the conditions of the
// jumps that led there.
func (w *walker) through(c *Chain, depth int, above []Condition) end {
	for i := range c.Rules {
		r := &c.Rules[i]
		w.steps++
		w.set.spent++
		if w.steps > maxSteps || w.set.spent > maxSpent || depth > maxDepth {
			return end{stopped: true, endless: true}
		}
		s := r.Apply(w.p)
		here := s.match()
		if here == No {
			continue
		}
		s.Conditions = append(slices.Clone(above), s.Conditions...)
		if w.on != nil && w.on(s) {
			return end{action: s.Action, chain: c, rule: r, step: s, stopped: true}
		}
		e := end{action: s.Action, chain: c, rule: r, step: s, sooner: slices.Clip(w.sooner)}
		switch sure := s.match() == Yes; s.Action {
		case Jump, Goto:
			target := w.set.Find(c.Family, c.Table, s.To)
			if target == nil {
				continue
			}
			e = w.through(target, depth+1, s.Conditions)
			switch {
			case e.stopped || e.action == Accept || e.action == Drop || e.action == Reject:
				return e
			case s.Action == Goto && here == Yes:
				return end{action: Return}
			case s.Action == Goto:
				above = unless(above, r)
			}
		case Accept:
			if sure && !w.past {
				return e
			}
			w.sooner = append(w.sooner, r.Text)
			for _, to := range s.Also {
				target := w.set.Find(c.Family, c.Table, to)
				if target == nil || w.on == nil { // a drop there would be uncertain
					continue
				}
				if e = w.through(target, depth+1, s.Conditions); e.stopped {
					return e
				}
			}
		case Drop, Reject:
			switch {
			case sure:
				return e
			case s.Action == Drop && w.partial == nil:
				w.partial = &e
			}
		case Return:
			if here == Yes {
				return end{action: Return}
			}
			above = unless(above, r)
		}
	}
	return end{action: Pass}
}

// unless is what the rest of a chain depends on after a rule that may have left
// it.
func unless(above []Condition, r *Rule) []Condition {
	return append(slices.Clone(above), Condition{Holds: Maybe, Text: "not " + r.Text})
}
