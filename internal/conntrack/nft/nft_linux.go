// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// The rules of nft, which are also those of iptables-nft, come from the kernel.
// The nft program shows iptables' conditions by name only, and google/nftables
// leaves out expressions that it does not know, so that a rule with a condition
// would look like one without. So rules are taken apart here, with its decoders.

// Parse makes sense of a dump. An error says that it made none; nothing of
// it can be relied on then.
func Parse(d *Dump, into *rules.Set) (err error) {
	// The decoders trust the kernel with the length of what they index.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a rule of nf_tables makes no sense: %v", r)
		}
	}()
	sets, err := parseSets(d)
	if err != nil {
		return err
	}
	for _, m := range d.Chains {
		a, err := attributes(m.Data)
		if err != nil {
			return err
		}
		family := familyName(m.Family)
		if family == "" {
			continue
		}
		c := &rules.Chain{Family: family, Table: a.text(unix.NFTA_CHAIN_TABLE), Name: a.text(unix.NFTA_CHAIN_NAME), Policy: rules.Accept}
		if a.number(unix.NFTA_CHAIN_POLICY) == 0 && len(a.get(unix.NFTA_CHAIN_POLICY)) == 4 {
			c.Policy = rules.Drop
		}
		if h, err := attributes(a.get(unix.NFTA_CHAIN_HOOK)); err == nil && len(h) > 0 {
			c.Hook = hookName(h.number(unix.NFTA_HOOK_HOOKNUM))
			c.Priority = int(int32(h.number(unix.NFTA_HOOK_PRIORITY))) //nolint:gosec // it is signed
			c.Kind = a.text(unix.NFTA_CHAIN_TYPE)
		}
		into.Add(c)
	}
	for _, m := range d.Rules {
		a, err := attributes(m.Data)
		if err != nil {
			return err
		}
		family := familyName(m.Family)
		c := into.Find(family, a.text(unix.NFTA_RULE_TABLE), a.text(unix.NFTA_RULE_CHAIN))
		if c == nil {
			continue
		}
		c.Rules = append(c.Rules, parseRule(m.Family, a, sets))
	}
	return nil
}

func familyName(f byte) string {
	switch f {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	}
	return ""
}

func hookName(n uint32) rules.Hook {
	switch n {
	case unix.NF_INET_PRE_ROUTING:
		return rules.Prerouting
	case unix.NF_INET_LOCAL_IN:
		return rules.Input
	case unix.NF_INET_FORWARD:
		return rules.Forward
	case unix.NF_INET_LOCAL_OUT:
		return rules.Output
	}
	return "other"
}

// opaque is an expression that is not understood.
type opaque string

// parseRule takes a rule apart. Its expressions are decoded once.
func parseRule(family byte, a attrs, sets map[string]*set) rules.Rule {
	var exprs []any
	for _, e := range a.nest(unix.NFTA_RULE_EXPRESSIONS) {
		x, err := attributes(e.Data)
		if err != nil {
			exprs = append(exprs, opaque("?"))
			continue
		}
		exprs = append(exprs, parseExpression(family, x))
	}
	var ru rules.Rule
	for _, e := range exprs {
		if c, ok := e.(*expr.Counter); ok {
			ru.Packets, ru.IsCounted = c.Packets, true
		}
	}
	in := &reading{family: family, table: a.text(unix.NFTA_RULE_TABLE), sets: sets, exprs: exprs, first: true}
	ru.Apply = in.on
	s := in.on(rules.Packet{})
	in.first = false
	ru.Bounds, ru.IsUnbounded = slices.Clone(in.bounds), in.odd
	ru.Text = s.String()
	return ru
}

func parseExpression(family byte, x attrs) any {
	name := x.text(unix.NFTA_EXPR_NAME)
	data := x.get(unix.NFTA_EXPR_DATA)
	if name == "immediate" {
		i, err := attributes(data)
		if err != nil {
			return opaque(name)
		}
		if v := verdict(i.get(unix.NFTA_IMMEDIATE_DATA)); v != nil {
			return v
		}
		return &expr.Immediate{Register: i.number(unix.NFTA_IMMEDIATE_DREG), Data: value(i.get(unix.NFTA_IMMEDIATE_DATA))}
	}
	e := map[string]expr.Any{
		"bitwise": &expr.Bitwise{}, "cmp": &expr.Cmp{}, "counter": &expr.Counter{}, "ct": &expr.Ct{},
		"fib": &expr.Fib{}, "log": &expr.Log{}, "lookup": &expr.Lookup{}, "match": &expr.Match{},
		"meta": &expr.Meta{}, "nat": &expr.NAT{}, "payload": &expr.Payload{}, "queue": &expr.Queue{},
		"range": &expr.Range{}, "redir": &expr.Redir{}, "reject": &expr.Reject{}, "target": &expr.Target{},
		"masq": &expr.Masq{}, "notrack": &expr.Notrack{},
	}[name]
	if e == nil {
		return opaque(name)
	}
	if name == "notrack" {
		return e
	}
	if err := expr.Unmarshal(family, data, e); err != nil {
		return opaque(name)
	}
	return e
}

// reading is one rule.
type reading struct {
	family byte
	table  string
	sets   map[string]*set
	exprs  []any

	// Of the last reading, see rule.
	bounds []int
	odd    bool
	first  bool // this is the reading that notes them
}

func (in *reading) on(p rules.Packet) rules.Step {
	var s rules.Step
	regs := map[uint32]register{}
	in.bounds, in.odd = in.bounds[:0], false
	add := func(is rules.Truth, r register, text string) {
		if r.never {
			is = rules.No
		}
		s.Conditions = append(s.Conditions, rules.Condition{Holds: is, Text: text, IsAboutState: r.kind == ctState})
	}
	for _, e := range in.exprs {
		switch e := e.(type) {
		case opaque:
			// limit, socket, byteorder and what is yet to come.
			s.Conditions = append(s.Conditions, rules.Condition{Holds: rules.Maybe, Text: string(e) + " ..."})
			clear(regs) // whatever it has done to them
		case *expr.Meta:
			if !e.SourceRegister {
				r := metaValue(e.Key, p)
				if r.size = 4; r.kind == nameValue {
					r.size = unix.IFNAMSIZ
				}
				regs[e.Register] = r
			}
		case *expr.Ct:
			if !e.SourceRegister {
				r := ctValue(e.Key, p)
				r.size = 4
				regs[e.Register] = r
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				r := payloadValue(e, p)
				r.size = int(e.Len)
				regs[e.DestRegister] = r
			}
		case *expr.Fib:
			r := fibValue(e, p)
			r.size = 4
			regs[e.Register] = r
		case *expr.Immediate:
			regs[e.Register] = register{what: "value", value: e.Data, size: len(e.Data)}
		case *expr.Bitwise:
			r := regs[e.SourceRegister]
			r.mask = e.Mask
			if len(r.value) == len(e.Mask) && len(e.Mask) == len(e.Xor) && r.value != nil {
				v := make([]byte, len(r.value))
				for i := range v {
					v[i] = r.value[i]&e.Mask[i] ^ e.Xor[i]
				}
				r.value = v
			} else {
				r.value = nil
			}
			regs[e.DestRegister] = r
		case *expr.Cmp:
			r := regs[e.Register]
			in.bound(r, e.Data, e.Data)
			add(compare(e.Op, r, e.Data, p), r, r.words(e.Op, e.Data))
		case *expr.Range:
			r := regs[e.Register]
			in.bound(r, e.FromData, e.ToData)
			is := rules.Maybe
			if r.value != nil && len(r.value) == len(e.FromData) && len(r.value) == len(e.ToData) {
				is = rules.Known(bytes.Compare(e.FromData, r.value) <= 0 && bytes.Compare(r.value, e.ToData) <= 0)
				if e.Op == expr.CmpOpNeq {
					is = is.Not()
				}
			}
			add(is, r, fmt.Sprintf("%s%s %s-%s", r.what, opWord(e.Op), r.show(e.FromData), r.show(e.ToData)))
		case *expr.Lookup:
			in.lookup(e, regs, &s, add)
		case *expr.Match:
			s.Conditions = append(s.Conditions, in.match(e, p))
		case *expr.Target:
			target(e, &s)
		case *expr.NAT:
			if e.Type == expr.NATTypeDestNAT {
				s.Action, s.To = rules.Translate, natTo(regs[e.RegAddrMin], regs[e.RegProtoMin])
			} else {
				s.Action = rules.Accept
			}
		case *expr.Redir:
			s.Action, s.To = rules.Translate, "this host"+portSuffix(regs[e.RegisterProtoMin].value)
		case *expr.Masq:
			s.Action = rules.Accept
		case *expr.Reject:
			s.Action = rules.Reject
		case *expr.Queue:
			s.Action = rules.Accept // a program decides; it is not a drop to rely on
		case *expr.Notrack:
			s.Action = rules.Untrack
		case *expr.Verdict:
			s.Action, s.To = verdictAction(e)
		}
	}
	return s
}

// bound notes where a comparison of the port may come out differently.
func (in *reading) bound(r register, first, last []byte) {
	switch {
	case !in.first || r.kind != portValue:
	case r.mask != nil || len(first) != 2 || len(last) != 2:
		in.odd = true
	default:
		in.bounds = append(in.bounds, int(binary.BigEndian.Uint16(first)), int(binary.BigEndian.Uint16(last)),
			int(binary.BigEndian.Uint16(last))+1)
	}
}

// boundOf is bound for an element of a set, whose key may have the port in it.
func (in *reading) boundOf(f field, e *element) {
	key := func(b []byte) []byte {
		if len(b) < f.offset+2 {
			return nil
		}
		return b[f.offset : f.offset+2]
	}
	switch {
	case len(e.key) == 0: // the one for all else
	case len(e.end) > 0:
		in.bound(f.register, key(e.key), key(e.end))
	default:
		in.bound(f.register, key(e.key), key(e.key))
	}
}

// lookup is a test for membership, or what a map says.
func (in *reading) lookup(e *expr.Lookup, regs map[uint32]register, s *rules.Step, add func(rules.Truth, register, string)) {
	r := regs[e.SourceRegister]
	set := in.sets[fmt.Sprintf("%d %s %s", in.family, in.table, e.SetName)]
	if set == nil {
		add(rules.Maybe, r, r.what+" @"+e.SetName)
		return
	}
	key := []field{{r, 0}}
	if set.keyLen > (r.size+3)/4*4 {
		key = fields(regs, e.SourceRegister, set.keyLen)
	}
	var what []string
	for _, f := range key {
		what = append(what, f.what)
		if in.first && f.kind == portValue {
			for i := range set.elements {
				in.boundOf(f, &set.elements[i])
			}
		}
	}
	text := fmt.Sprintf("%s%s %s", strings.Join(what, " . "), map[bool]string{true: " !="}[e.Invert], set.words(r))
	if len(key) > 1 {
		text = strings.Join(what, " . ") + " @" + e.SetName
	}
	var may []*element // that may be the one
	is := rules.Maybe
	switch {
	case len(key) > 1:
		may, is = set.holdsAll(key)
	case r.value != nil:
		var element *element
		if element, is = set.holds(r.value); element != nil {
			may = append(may, element)
		}
	}
	if is == rules.Maybe && len(may) == 0 { // the key is not known, or not all of the set
		for i := range set.elements {
			may = append(may, &set.elements[i])
		}
	}
	if e.Invert {
		is = is.Not()
	}
	if e.IsDestRegSet && e.DestRegister != unix.NFT_REG_VERDICT {
		out := register{what: "map"}
		if len(may) == 1 {
			out.value, out.size = may[0].value, len(may[0].value)
		}
		regs[e.DestRegister] = out
	}
	add(is, r, text)
	if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
		mapVerdict(may, s)
	}
}

func verdictAction(v *expr.Verdict) (rules.Action, string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return rules.Accept, ""
	case expr.VerdictDrop:
		return rules.Drop, ""
	case expr.VerdictJump:
		return rules.Jump, v.Chain
	case expr.VerdictGoto:
		return rules.Goto, v.Chain
	case expr.VerdictReturn:
		return rules.Return, ""
	case expr.VerdictQueue, expr.VerdictStolen, expr.VerdictStop:
		return rules.Accept, ""
	}
	return rules.Pass, ""
}
