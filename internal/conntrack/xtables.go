package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What iptables-legacy-save prints is read here.

// maxDump bounds what is read of a program's output.
const maxDump = 64 << 20

// xtTarget is what a target of xtables does with a packet.
func xtTarget(name string) action {
	switch name {
	case "ACCEPT":
		return accept
	case "DROP":
		return drop
	case "REJECT":
		return reject
	case "RETURN":
		return back
	case "DNAT", "REDIRECT", "NETMAP":
		return translate
	case "SNAT", "MASQUERADE", "QUEUE", "NFQUEUE", "TPROXY":
		return accept
	case "NOTRACK":
		return untrack
	}
	return pass // LOG, MARK, CT, TCPMSS ...
}

// ruleText is a rule in short.
func ruleText(s step) string {
	var parts []string
	for _, c := range s.conds {
		if c.text != "" {
			parts = append(parts, c.text)
		}
	}
	// nft tests the protocol apart; "tcp dport" says so already.
	tcp := slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(p, "tcp ") })
	parts = slices.DeleteFunc(parts, func(p string) bool {
		return tcp && (p == "meta l4proto tcp" || p == "protocol tcp" || p == "proto tcp")
	})
	parts = append(parts, strings.TrimSpace(actionWord(s.action)+" "+s.to))
	return strings.TrimSpace(strings.Join(parts, " "))
}

func actionWord(a action) string {
	switch a {
	case accept:
		return "accept"
	case drop:
		return "drop"
	case reject:
		return "reject"
	case jump:
		return "jump"
	case goTo:
		return "goto"
	case back:
		return "return"
	case translate:
		return "dnat to"
	case untrack:
		return "notrack"
	}
	return ""
}

var errNotSave = errors.New("not what iptables-save prints")

// builtin are the chains of xtables that have a hook, and its priority.
func builtin(table, name string) (h hook, priority int, ok bool) {
	h, ok = map[string]hook{
		"PREROUTING": prerouting, "INPUT": input, "FORWARD": forward, "OUTPUT": output, "POSTROUTING": "postrouting",
	}[name]
	priority = map[string]int{"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}[table]
	return h, priority, ok
}

// xtRules reads what iptables-legacy-save printed, or that for IPv6.
func xtRules(dump []byte, v6 bool, into *ruleset) error {
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
			c := &chain{family: family, table: table, name: f[0], policy: accept}
			if h, priority, ok := builtin(table, f[0]); ok && f[1] != "-" {
				c.hook, c.priority, c.kind = h, priority, "filter"
				if table == "nat" {
					c.kind = "nat"
				}
				if f[1] == "DROP" {
					c.policy = drop
				}
			}
			into.add(c)
		default:
			if err := xtRule(text, family, table, into); err != nil {
				return err
			}
		}
	}
	if table != "" {
		return fmt.Errorf("%w: it ends in the middle", errNotSave)
	}
	return nil
}

func xtRule(text, family, table string, into *ruleset) error {
	words, err := split(text)
	if err != nil {
		return err
	}
	var ru rule
	if len(words) > 0 && strings.HasPrefix(words[0].text, "[") {
		count, _, _ := strings.Cut(strings.TrimPrefix(words[0].text, "["), ":")
		n, err := strconv.ParseUint(count, 10, 64)
		ru.packets, ru.counted = n, err == nil
		words = words[1:]
	}
	if len(words) < 2 || words[0].text != "-A" {
		return errNotSave
	}
	c := into.find(family, table, words[1].text)
	if c == nil {
		return errNotSave
	}
	opts := options(words[2:])
	ru.on = func(p packet) step { return xtStep(opts, p) }
	ru.text = ruleText(ru.on(packet{}))
	for _, o := range opts {
		if slices.Contains([]string{"--dport", "--dports", "--ports", "--destination-port"}, o.name) {
			for _, r := range portRanges(o.value()) {
				ru.bounds = append(ru.bounds, int(r[0]), int(r[1])+1)
			}
		}
	}
	c.rules = append(c.rules, ru)
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

// xtStep is what a rule of legacy xtables does with a packet.
func xtStep(opts []option, p packet) step {
	var s step
	for _, o := range opts {
		switch o.name {
		case "-j", "-g":
			s.action = xtTarget(o.value())
			if s.action == pass { // a chain, or LOG and the like, which no chain is found for
				s.to, s.action = o.value(), jump
				if o.name == "-g" {
					s.action = goTo
				}
			}
			continue
		case "--to-destination":
			s.to = o.value()
			continue
		case "--to-ports":
			s.to = "this host:" + o.value()
			continue
		case "--notrack":
			s.action = untrack
			continue
		case "-m", "--comment":
			continue
		}
		if s.action != pass { // what follows the target is the target's
			continue
		}
		s.conds = append(s.conds, xtCond(o, p))
	}
	return s
}

func xtCond(o option, p packet) cond {
	is, text, state := maybe, o.String(), false
	switch o.name {
	case "-p":
		is, text = known(o.value() == "tcp" || o.value() == "all"), "proto "+o.value()
	case "--ctstate", "--state":
		want := "NEW"
		if p.invalid {
			want = "INVALID"
		}
		is, state = known(has(o.value(), want)), true
		text = "ct state " + strings.ToLower(o.value())
	case "--ctstatus", "--ctdir", "--ctorigdst", "--ctorigdstport", "--ctorigsrc", "--ctproto":
		if p.invalid { // it has no entry
			return cond{no, text, false}
		}
	case "--dport", "--dports", "--destination-port":
		is, text = inRanges(o.value(), p.port), "tcp dport "+o.value()
	case "--ports":
		is, text = max(inRanges(o.value(), p.port), maybe), "tcp ports "+o.value()
	case "-i":
		if text = "iifname " + o.value(); o.value() == "lo" || p.sent {
			is = no
		}
	case "-d":
		is, text = covers(o.value(), p), "daddr "+o.value()
	case "-s":
		text = "saddr " + o.value()
	case "--dst-type":
		if o.value() == "LOCAL" {
			is, text = p.local, "daddr type local"
		}
	}
	if o.not {
		is = is.not()
		name, rest, _ := strings.Cut(text, " ")
		if name == "ct" || name == "tcp" {
			second, value, _ := strings.Cut(rest, " ")
			name, rest = name+" "+second, value
		}
		if !strings.HasPrefix(text, "!") {
			text = name + " != " + rest
		}
	}
	return cond{is, text, state}
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

func inRanges(list string, port uint16) tri {
	ranges := portRanges(list)
	if len(ranges) == 0 {
		return maybe
	}
	for _, r := range ranges {
		if r[0] <= port && port <= r[1] {
			return yes
		}
	}
	return no
}

func covers(prefix string, p packet) tri {
	if !strings.Contains(prefix, "/") {
		a, err := netip.ParseAddr(prefix)
		if err != nil {
			return maybe
		}
		return covered(netip.PrefixFrom(a, a.BitLen()), p)
	}
	n, err := netip.ParsePrefix(prefix)
	if err != nil {
		return maybe
	}
	return covered(n, p)
}

// covered tells whether a packet is for an address of the prefix.
func covered(n netip.Prefix, p packet) tri {
	switch {
	case p.to.IsValid():
		return known(n.Contains(p.to))
	case p.outside && n.Addr().IsLoopback():
		return no
	}
	return maybe
}
