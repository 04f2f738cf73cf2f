// SPDX-License-Identifier: Apache-2.0

// Package xtables reads the rules of legacy iptables, as iptables-legacy-save
// prints them, into package rules.
package xtables

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// Target is what a target of xtables does with a packet.
func Target(name string) rules.Action {
	switch name {
	case "ACCEPT":
		return rules.Accept
	case "DROP":
		return rules.Drop
	case "REJECT":
		return rules.Reject
	case "RETURN":
		return rules.Return
	case "DNAT", "REDIRECT", "NETMAP":
		return rules.Translate
	case "SNAT", "MASQUERADE", "QUEUE", "NFQUEUE", "TPROXY":
		return rules.Accept
	case "NOTRACK":
		return rules.Untrack
	}
	return rules.Pass // LOG, MARK, CT, TCPMSS ...
}

var errNotSave = errors.New("not what iptables-save prints")

// builtin are the chains of xtables that have a hook, and its priority.
func builtin(table, name string) (h rules.Hook, priority int, ok bool) {
	h, ok = map[string]rules.Hook{
		"PREROUTING": rules.Prerouting, "INPUT": rules.Input, "FORWARD": rules.Forward, "OUTPUT": rules.Output, "POSTROUTING": "postrouting",
	}[name]
	priority = map[string]int{"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}[table]
	return h, priority, ok
}

// Parse reads what iptables-legacy-save printed, or that for IPv6.
func Parse(dump []byte, v6 bool, into *rules.Set) error {
	family := "legacy ip"
	if v6 {
		family = "legacy ip6"
	}
	table := ""
	for line := range bytes.Lines(dump) {
		text := strings.TrimSpace(string(line))
		switch {
		case text == "" || text[0] == '#':
		case text == "COMMIT":
			table = ""
		case text[0] == '*':
			table = text[1:]
		case table == "":
			return errNotSave
		case text[0] == ':':
			f := strings.Fields(text[1:])
			if len(f) < 2 {
				return errNotSave
			}
			c := &rules.Chain{Family: family, Table: table, Name: f[0], Policy: rules.Accept}
			if h, priority, ok := builtin(table, f[0]); ok && f[1] != "-" {
				c.Hook, c.Priority, c.Kind = h, priority, "filter"
				if table == "nat" {
					c.Kind = "nat"
				}
				if f[1] == "DROP" {
					c.Policy = rules.Drop
				}
			}
			into.Add(c)
		default:
			if err := parseRule(text, family, table, into); err != nil {
				return err
			}
		}
	}
	if table != "" {
		return fmt.Errorf("%w: it ends in the middle", errNotSave)
	}
	return nil
}

func parseRule(text, family, table string, into *rules.Set) error {
	words, err := split(text)
	if err != nil {
		return err
	}
	var ru rules.Rule
	if len(words) > 0 && strings.HasPrefix(words[0].text, "[") {
		count, _, _ := strings.Cut(strings.TrimPrefix(words[0].text, "["), ":")
		n, err := strconv.ParseUint(count, 10, 64)
		ru.Packets, ru.IsCounted = n, err == nil
		words = words[1:]
	}
	if len(words) < 2 || words[0].text != "-A" {
		return errNotSave
	}
	c := into.Find(family, table, words[1].text)
	if c == nil {
		return errNotSave
	}
	opts := options(words[2:])
	ru.Apply = func(p rules.Packet) rules.Step { return evaluate(opts, p) }
	ru.Text = ru.Apply(rules.Packet{}).String()
	for _, o := range opts {
		if slices.Contains([]string{"--dport", "--dports", "--ports", "--destination-port"}, o.name) {
			for _, r := range portRanges(o.value()) {
				ru.Bounds = append(ru.Bounds, int(r[0]), int(r[1])+1)
			}
		}
	}
	c.Rules = append(c.Rules, ru)
	return nil
}

// word of a line. A quoted one is never an option.
type word struct {
	text   string
	quoted bool
}

// split takes a line apart as iptables quotes it.
func split(line string) ([]word, error) {
	var words []word
	var text strings.Builder
	in, quoted, was := false, false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\' && i+1 < len(line):
			i++
			text.WriteByte(line[i])
		case c == '"':
			in, quoted, was = true, !quoted, true
		case c == ' ' && !quoted:
			if in {
				words = append(words, word{text.String(), was})
				text.Reset()
			}
			in, was = false, false
		default:
			in = true
			text.WriteByte(c)
		}
	}
	if quoted {
		return nil, errNotSave
	}
	if in {
		words = append(words, word{text.String(), was})
	}
	return words, nil
}

// option is one of a rule: ! -i eth0.
type option struct {
	name string
	not  bool
	args []string
}

func (o option) value() string {
	if len(o.args) == 0 {
		return ""
	}
	return o.args[0]
}

func (o option) String() string {
	s := strings.Join(append([]string{o.name}, o.args...), " ")
	if o.not {
		s = "! " + s
	}
	return s
}

// freeText are options whose one argument may be anything, also what looks
// like an option and is short enough not to be quoted.
var freeText = []string{"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--name"}

func options(words []word) []option {
	var all []option
	not := false
	for i, w := range words {
		free := i > 0 && slices.Contains(freeText, words[i-1].text) && !words[i-1].quoted
		t := w.text
		switch {
		case t == "!" && !w.quoted && !free:
			not = true
		case !w.quoted && !free && len(t) > 1 && t[0] == '-' && (t[1] < '0' || t[1] > '9'):
			all = append(all, option{name: t, not: not})
			not = false
		case len(all) > 0:
			last := &all[len(all)-1]
			last.args = append(last.args, t)
		}
	}
	return all
}

// evaluate is what a rule of legacy xtables does with a packet.
func evaluate(opts []option, p rules.Packet) rules.Step {
	var s rules.Step
	for _, o := range opts {
		switch o.name {
		case "-j", "-g":
			s.Action = Target(o.value())
			if s.Action == rules.Pass { // a chain, or LOG and the like, which no chain is found for
				s.To, s.Action = o.value(), rules.Jump
				if o.name == "-g" {
					s.Action = rules.Goto
				}
			}
			continue
		case "--to-destination":
			s.To = o.value()
			continue
		case "--to-ports":
			s.To = "this host:" + o.value()
			continue
		case "--notrack":
			s.Action = rules.Untrack
			continue
		case "-m", "--comment":
			continue
		}
		if s.Action != rules.Pass { // what follows the target is the target's
			continue
		}
		s.Conditions = append(s.Conditions, condition(o, p))
	}
	return s
}

func condition(o option, p rules.Packet) rules.Condition {
	is, text, state := rules.Maybe, o.String(), false
	switch o.name {
	case "-p":
		is, text = rules.Known(o.value() == "tcp" || o.value() == "all"), "proto "+o.value()
	case "--ctstate", "--state":
		want := "NEW"
		if p.IsInvalid {
			want = "INVALID"
		}
		is, state = rules.Known(has(o.value(), want)), true
		text = "ct state " + strings.ToLower(o.value())
	case "--ctstatus", "--ctdir", "--ctorigdst", "--ctorigdstport", "--ctorigsrc", "--ctproto":
		if p.IsInvalid { // it has no entry
			return rules.Condition{Holds: rules.No, Text: text}
		}
	case "--dport", "--dports", "--destination-port":
		is, text = inRanges(o.value(), p.Port), "tcp dport "+o.value()
	case "--ports":
		is, text = max(inRanges(o.value(), p.Port), rules.Maybe), "tcp ports "+o.value()
	case "-i":
		if text = "iifname " + o.value(); o.value() == "lo" || p.IsSent {
			is = rules.No
		}
	case "-d":
		is, text = covers(o.value(), p), "daddr "+o.value()
	case "-s":
		text = "saddr " + o.value()
	case "--dst-type":
		if o.value() == "LOCAL" {
			is, text = p.IsLocal, "daddr type local"
		}
	}
	if o.not {
		is = is.Not()
		name, rest, _ := strings.Cut(text, " ")
		if name == "ct" || name == "tcp" {
			second, value, _ := strings.Cut(rest, " ")
			name, rest = name+" "+second, value
		}
		if !strings.HasPrefix(text, "!") {
			text = name + " != " + rest
		}
	}
	return rules.Condition{Holds: is, Text: text, IsAboutState: state}
}

func has(list, want string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == want {
			return true
		}
	}
	return false
}

func portRanges(list string) [][2]uint16 {
	var all [][2]uint16
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(part, ":")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if ranged && err == nil {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err == nil {
			all = append(all, [2]uint16{uint16(a), uint16(b)})
		}
	}
	return all
}

func inRanges(list string, port uint16) rules.Truth {
	ranges := portRanges(list)
	if len(ranges) == 0 {
		return rules.Maybe
	}
	for _, r := range ranges {
		if r[0] <= port && port <= r[1] {
			return rules.Yes
		}
	}
	return rules.No
}

func covers(prefix string, p rules.Packet) rules.Truth {
	if !strings.Contains(prefix, "/") {
		a, err := netip.ParseAddr(prefix)
		if err != nil {
			return rules.Maybe
		}
		return covered(netip.PrefixFrom(a, a.BitLen()), p)
	}
	n, err := netip.ParsePrefix(prefix)
	if err != nil {
		return rules.Maybe
	}
	return covered(n, p)
}

// covered tells whether a packet is for an address of the prefix.
func covered(n netip.Prefix, p rules.Packet) rules.Truth {
	switch {
	case p.To.IsValid():
		return rules.Known(n.Contains(p.To))
	case p.IsFromOutside && n.Addr().IsLoopback():
		return rules.No
	}
	return rules.Maybe
}
