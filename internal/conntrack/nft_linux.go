package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The rules of nft, which are also those of iptables-nft, come from the kernel.
// The nft program shows iptables' conditions by name only, and google/nftables
// leaves out expressions that it does not know, so that a rule with a condition
// would look like one without. So rules are taken apart here, with its decoders.

// nfMessage is one netlink message of nf_tables without its header.
type nfMessage struct {
	Family byte   `json:"family"`
	Data   []byte `json:"data"` // attributes
}

// nfDump is all that is read of nf_tables.
type nfDump struct {
	Chains   []nfMessage `json:"chains"`
	Rules    []nfMessage `json:"rules"`
	Sets     []nfMessage `json:"sets"`
	Elements []nfMessage `json:"elements"`
}

const (
	netlinkTime  = 10 * time.Second
	maxMessages  = 500_000
	maxElements  = 65_536
	nfgenmsgSize = 4
)

// readNFT asks the kernel. Without privileges it is refused.
func readNFT() (*nfDump, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(netlinkTime)); err != nil {
		return nil, err
	}
	for try := 0; ; try++ { // a change in between makes a dump inconsistent
		d, err := dumpNFT(c)
		if try == 3 || !errors.Is(err, unix.EINTR) {
			return d, err
		}
	}
}

func dumpNFT(c *netlink.Conn) (*nfDump, error) {
	var d nfDump
	for _, part := range []struct {
		ask int
		to  *[]nfMessage
	}{
		{unix.NFT_MSG_GETCHAIN, &d.Chains},
		{unix.NFT_MSG_GETRULE, &d.Rules},
		{unix.NFT_MSG_GETSET, &d.Sets},
	} {
		var err error
		if *part.to, err = dump(c, part.ask, unix.NFPROTO_UNSPEC, nil); err != nil {
			return nil, err
		}
	}
	for _, s := range d.Sets {
		a, err := attributes(s.Data)
		if err != nil {
			return nil, err
		}
		ask, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: a.get(unix.NFTA_SET_TABLE)},
			{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: a.get(unix.NFTA_SET_NAME)},
		})
		if err != nil {
			return nil, err
		}
		elements, err := dump(c, unix.NFT_MSG_GETSETELEM, s.Family, ask)
		if err != nil {
			return nil, err
		}
		d.Elements = append(d.Elements, elements...)
	}
	return &d, nil
}

func dump(c *netlink.Conn, ask int, family byte, attrs []byte) ([]nfMessage, error) {
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | ask),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, err
	}
	if len(answers) > maxMessages {
		return nil, fmt.Errorf("more than %d nf_tables messages", maxMessages)
	}
	var all []nfMessage
	for _, a := range answers {
		if len(a.Data) >= nfgenmsgSize {
			all = append(all, nfMessage{a.Data[0], a.Data[nfgenmsgSize:]})
		}
	}
	return all, nil
}

// attrs are the attributes of one level, by type.
type attrs map[uint16][]byte

func attributes(b []byte) (attrs, error) {
	list, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return nil, err
	}
	a := attrs{}
	for _, l := range list {
		a[l.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = l.Data
	}
	return a, nil
}

func (a attrs) get(kind uint16) []byte { return a[kind] }

func (a attrs) text(kind uint16) string {
	s, _, _ := bytes.Cut(a[kind], []byte{0})
	return string(s)
}

func (a attrs) number(kind uint16) uint32 {
	if b := a[kind]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// nest lists the attributes below one.
func (a attrs) nest(kind uint16) []netlink.Attribute {
	list, err := netlink.UnmarshalAttributes(a[kind])
	if err != nil {
		return nil
	}
	return list
}

// nftRules makes sense of a dump. An error says that it made none; nothing of
// it can be relied on then.
func nftRules(d *nfDump, into *ruleset) (err error) {
	// The decoders trust the kernel with the length of what they index.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a rule of nf_tables makes no sense: %v", r)
		}
	}()
	sets, err := nftSets(d)
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
		c := &chain{family: family, table: a.text(unix.NFTA_CHAIN_TABLE), name: a.text(unix.NFTA_CHAIN_NAME), policy: accept}
		if a.number(unix.NFTA_CHAIN_POLICY) == 0 && len(a.get(unix.NFTA_CHAIN_POLICY)) == 4 {
			c.policy = drop
		}
		if h, err := attributes(a.get(unix.NFTA_CHAIN_HOOK)); err == nil && len(h) > 0 {
			c.hook = hookName(h.number(unix.NFTA_HOOK_HOOKNUM))
			c.priority = int(int32(h.number(unix.NFTA_HOOK_PRIORITY))) //nolint:gosec // it is signed
			c.kind = a.text(unix.NFTA_CHAIN_TYPE)
		}
		into.add(c)
	}
	for _, m := range d.Rules {
		a, err := attributes(m.Data)
		if err != nil {
			return err
		}
		family := familyName(m.Family)
		c := into.find(family, a.text(unix.NFTA_RULE_TABLE), a.text(unix.NFTA_RULE_CHAIN))
		if c == nil {
			continue
		}
		c.rules = append(c.rules, nftRule(m.Family, a, sets))
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

func hookName(n uint32) hook {
	switch n {
	case unix.NF_INET_PRE_ROUTING:
		return prerouting
	case unix.NF_INET_LOCAL_IN:
		return input
	case unix.NF_INET_FORWARD:
		return forward
	case unix.NF_INET_LOCAL_OUT:
		return output
	}
	return "other"
}

// nftSet is a set or map.
type nftSet struct {
	keyLen   int
	interval bool
	dynamic  bool
	elements []nftElement
	cut      bool // it has more
}

type nftElement struct {
	key, end, value []byte
	last            bool // the end of an interval
	verdict         *expr.Verdict
}

const (
	setElemKeyEnd = 10 // NFTA_SET_ELEM_KEY_END
	setDynamic    = 0x10 | 0x20
)

func nftSets(d *nfDump) (map[string]*nftSet, error) {
	sets := map[string]*nftSet{}
	key := func(family byte, table, name string) string { return fmt.Sprintf("%d %s %s", family, table, name) }
	for _, m := range d.Sets {
		a, err := attributes(m.Data)
		if err != nil {
			return nil, err
		}
		flags := a.number(unix.NFTA_SET_FLAGS)
		sets[key(m.Family, a.text(unix.NFTA_SET_TABLE), a.text(unix.NFTA_SET_NAME))] = &nftSet{
			keyLen:   int(a.number(unix.NFTA_SET_KEY_LEN)),
			interval: flags&unix.NFT_SET_INTERVAL != 0, dynamic: flags&setDynamic != 0,
		}
	}
	for _, m := range d.Elements {
		a, err := attributes(m.Data)
		if err != nil {
			return nil, err
		}
		s := sets[key(m.Family, a.text(unix.NFTA_SET_ELEM_LIST_TABLE), a.text(unix.NFTA_SET_ELEM_LIST_SET))]
		if s == nil {
			continue
		}
		for _, e := range a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS) {
			if len(s.elements) == maxElements {
				s.cut = true
				break
			}
			el, err := attributes(e.Data)
			if err != nil {
				return nil, err
			}
			s.elements = append(s.elements, nftElement{
				key: value(el.get(unix.NFTA_SET_ELEM_KEY)), end: value(el.get(setElemKeyEnd)),
				value: value(el.get(unix.NFTA_SET_ELEM_DATA)), verdict: verdict(el.get(unix.NFTA_SET_ELEM_DATA)),
				last: el.number(unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0,
			})
		}
	}
	for _, s := range sets {
		slices.SortStableFunc(s.elements, func(a, b nftElement) int { return bytes.Compare(a.key, b.key) })
	}
	return sets, nil
}

// value is the plain value of a nested data attribute.
func value(b []byte) []byte {
	a, err := attributes(b)
	if err != nil {
		return nil
	}
	return a.get(unix.NFTA_DATA_VALUE)
}

func verdict(b []byte) *expr.Verdict {
	a, err := attributes(b)
	if err != nil || a.get(unix.NFTA_DATA_VERDICT) == nil {
		return nil
	}
	v, err := attributes(a.get(unix.NFTA_DATA_VERDICT))
	if err != nil || len(v.get(unix.NFTA_VERDICT_CODE)) != 4 {
		return nil
	}
	code := int32(v.number(unix.NFTA_VERDICT_CODE)) //nolint:gosec // it is signed
	return &expr.Verdict{Kind: expr.VerdictKind(code), Chain: v.text(unix.NFTA_VERDICT_CHAIN)}
}

// holds tells whether a value is in the set, and the element.
func (s *nftSet) holds(v []byte) (*nftElement, tri) {
	missing := no
	if s.dynamic || s.cut {
		missing = maybe // it changes with the packets, or was not read whole
	}
	var open *nftElement
	for i := range s.elements {
		e := &s.elements[i]
		switch {
		case e.end != nil && len(e.end) == len(v):
			if bytes.Compare(e.key, v) <= 0 && bytes.Compare(v, e.end) <= 0 {
				return e, yes
			}
		case !s.interval:
			if bytes.Equal(e.key, v) {
				return e, yes
			}
		case bytes.Compare(e.key, v) > 0:
		case e.last:
			open = nil
		default:
			open = e
		}
	}
	if open != nil {
		return open, yes
	}
	return nil, missing
}

// holdsAll is holds for a key of several values, some of which may not be known.
// Then it returns all elements that may be the one.
func (s *nftSet) holdsAll(fields []field) ([]*nftElement, tri) {
	var all []*nftElement
	best := no
	if s.dynamic || s.cut {
		best = maybe
	}
	for i := range s.elements {
		e := &s.elements[i]
		is := yes
		for _, f := range fields {
			is = min(is, f.in(e))
		}
		if is == yes {
			return []*nftElement{e}, yes
		}
		if is == maybe {
			best, all = maybe, append(all, e)
		}
	}
	return all, best
}

// field is one value of a key of several.
type field struct {
	register
	offset int
}

func (f field) in(e *nftElement) tri {
	to := f.offset + len(f.value)
	switch {
	case f.value == nil:
		return maybe
	case len(e.key) < to:
		return no
	case len(e.end) >= to:
		return known(bytes.Compare(e.key[f.offset:to], f.value) <= 0 && bytes.Compare(f.value, e.end[f.offset:to]) <= 0)
	}
	return known(bytes.Equal(e.key[f.offset:to], f.value))
}

// fields are the registers that make up a key: they follow each other in
// pieces of four bytes. One that is missing is not known.
func fields(regs map[uint32]register, first uint32, keyLen int) []field {
	const word, small, smallest = 4, 16, 8 // registers 1 to 4 have 16 bytes, 8 and on have four
	at := map[int]register{}
	place := func(n uint32) int {
		if n >= smallest {
			return int(n-smallest) * word
		}
		return (int(n) - 1) * small
	}
	for n, r := range regs {
		at[place(n)] = r
	}
	var all []field
	for o := 0; o < keyLen; {
		r, ok := at[place(first)+o]
		if !ok {
			r = register{what: "?"}
		}
		all = append(all, field{r, o})
		o += (max(r.size, 1) + word - 1) / word * word
	}
	return all
}

// opaque is an expression that is not understood.
type opaque string

// nftRule takes a rule apart. Its expressions are decoded once.
func nftRule(family byte, a attrs, sets map[string]*nftSet) rule {
	var exprs []any
	for _, e := range a.nest(unix.NFTA_RULE_EXPRESSIONS) {
		x, err := attributes(e.Data)
		if err != nil {
			exprs = append(exprs, opaque("?"))
			continue
		}
		exprs = append(exprs, nftExpression(family, x))
	}
	var ru rule
	for _, e := range exprs {
		if c, ok := e.(*expr.Counter); ok {
			ru.packets, ru.counted = c.Packets, true
		}
	}
	in := &nftReading{family: family, table: a.text(unix.NFTA_RULE_TABLE), sets: sets, exprs: exprs, first: true}
	ru.on = in.on
	s := in.on(packet{})
	in.first = false
	ru.bounds, ru.odd = slices.Clone(in.bounds), in.odd
	ru.text = ruleText(s)
	return ru
}

func nftExpression(family byte, x attrs) any {
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

// nftReading is one rule.
type nftReading struct {
	family byte
	table  string
	sets   map[string]*nftSet
	exprs  []any

	// Of the last reading, see rule.
	bounds []int
	odd    bool
	first  bool // this is the reading that notes them
}

// register holds what an expression loaded.
type register struct {
	what  string
	value []byte // nil: not known
	kind  valueKind
	size  int    // bytes
	mask  []byte // applied
	never bool   // the load fails, and the rule does not apply
}

type valueKind uint8

const (
	otherValue valueKind = iota
	ctState
	portValue
	nameValue // of the input interface
	addrValue
	protoValue
	localValue // fib daddr type
	ifNumber
)

func (in *nftReading) on(p packet) step {
	var s step
	regs := map[uint32]register{}
	in.bounds, in.odd = in.bounds[:0], false
	add := func(is tri, r register, text string) {
		if r.never {
			is = no
		}
		s.conds = append(s.conds, cond{is, text, r.kind == ctState})
	}
	for _, e := range in.exprs {
		switch e := e.(type) {
		case opaque:
			// limit, socket, byteorder and what is yet to come.
			s.conds = append(s.conds, cond{maybe, string(e) + " ...", false})
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
			is := maybe
			if r.value != nil && len(r.value) == len(e.FromData) && len(r.value) == len(e.ToData) {
				is = known(bytes.Compare(e.FromData, r.value) <= 0 && bytes.Compare(r.value, e.ToData) <= 0)
				if e.Op == expr.CmpOpNeq {
					is = is.not()
				}
			}
			add(is, r, fmt.Sprintf("%s%s %s-%s", r.what, opWord(e.Op), r.show(e.FromData), r.show(e.ToData)))
		case *expr.Lookup:
			in.lookup(e, regs, &s, add)
		case *expr.Match:
			s.conds = append(s.conds, in.match(e, p))
		case *expr.Target:
			target(e, &s)
		case *expr.NAT:
			if e.Type == expr.NATTypeDestNAT {
				s.action, s.to = translate, natTo(regs[e.RegAddrMin], regs[e.RegProtoMin])
			} else {
				s.action = accept
			}
		case *expr.Redir:
			s.action, s.to = translate, "this host"+portSuffix(regs[e.RegisterProtoMin].value)
		case *expr.Masq:
			s.action = accept
		case *expr.Reject:
			s.action = reject
		case *expr.Queue:
			s.action = accept // a program decides; it is not a drop to rely on
		case *expr.Notrack:
			s.action = untrack
		case *expr.Verdict:
			s.action, s.to = nftAction(e)
		}
	}
	return s
}

// bound notes where a comparison of the port may come out differently.
func (in *nftReading) bound(r register, first, last []byte) {
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
func (in *nftReading) boundOf(f field, e *nftElement) {
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
func (in *nftReading) lookup(e *expr.Lookup, regs map[uint32]register, s *step, add func(tri, register, string)) {
	r := regs[e.SourceRegister]
	set := in.sets[fmt.Sprintf("%d %s %s", in.family, in.table, e.SetName)]
	if set == nil {
		add(maybe, r, r.what+" @"+e.SetName)
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
	var may []*nftElement // that may be the one
	is := maybe
	switch {
	case len(key) > 1:
		may, is = set.holdsAll(key)
	case r.value != nil:
		var element *nftElement
		if element, is = set.holds(r.value); element != nil {
			may = append(may, element)
		}
	}
	if is == maybe && len(may) == 0 { // the key is not known, or not all of the set
		for i := range set.elements {
			may = append(may, &set.elements[i])
		}
	}
	if e.Invert {
		is = is.not()
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

// mapVerdict is what a map may do. If all that may apply do the same, that is
// it. Else it is taken for an accept, the one that protects from nothing.
func mapVerdict(may []*nftElement, s *step) {
	var all []step
	for _, e := range may {
		if e.verdict == nil {
			continue
		}
		a, to := nftAction(e.verdict)
		if !slices.ContainsFunc(all, func(o step) bool { return o.action == a && o.to == to }) {
			all = append(all, step{action: a, to: to})
		}
	}
	switch len(all) {
	case 0:
	case 1:
		s.action, s.to = all[0].action, all[0].to
	default:
		s.action = accept
		for _, o := range all {
			if o.action == jump || o.action == goTo {
				s.also = append(s.also, o.to)
			}
		}
	}
}

func (s *nftSet) words(r register) string {
	const most = 6
	var all []string
	for i := range s.elements {
		e := &s.elements[i]
		if e.last {
			continue
		}
		if len(all) == most {
			all = append(all, "...")
			break
		}
		t := r.show(e.key)
		if e.verdict != nil {
			a, to := nftAction(e.verdict)
			t += " : " + strings.TrimSpace(actionWord(a)+" "+to)
		}
		all = append(all, t)
	}
	return "{ " + strings.Join(all, ", ") + " }"
}

func nftAction(v *expr.Verdict) (action, string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return accept, ""
	case expr.VerdictDrop:
		return drop, ""
	case expr.VerdictJump:
		return jump, v.Chain
	case expr.VerdictGoto:
		return goTo, v.Chain
	case expr.VerdictReturn:
		return back, ""
	case expr.VerdictQueue, expr.VerdictStolen, expr.VerdictStop:
		return accept, ""
	}
	return pass, ""
}

func metaValue(k expr.MetaKey, p packet) register {
	switch k {
	case expr.MetaKeyL4PROTO:
		return register{what: "meta l4proto", value: []byte{unix.IPPROTO_TCP}, kind: protoValue}
	case expr.MetaKeyNFPROTO:
		return register{what: "meta nfproto", value: []byte{familyByte(p.v6)}, kind: protoValue}
	case expr.MetaKeyPROTOCOL:
		proto := []byte{0x08, 0x00}
		if p.v6 {
			proto = []byte{0x86, 0xdd}
		}
		return register{what: "meta protocol", value: proto}
	case expr.MetaKeyIIFNAME:
		return register{what: "iifname", kind: nameValue}
	case expr.MetaKeyOIFNAME:
		return register{what: "oifname", kind: nameValue}
	case expr.MetaKeyIIF:
		return register{what: "iif", kind: ifNumber}
	}
	return register{what: fmt.Sprintf("meta %d", k)}
}

func familyByte(v6 bool) byte {
	if v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// stateBits are those of the kernel, in the byte order of the host.
func stateBits(p packet) uint32 {
	if p.invalid {
		return expr.CtStateBitINVALID
	}
	return expr.CtStateBitNEW
}

func ctValue(k expr.CtKey, p packet) register {
	if k == expr.CtKeySTATE {
		return register{what: "ct state", kind: ctState, value: binary.NativeEndian.AppendUint32(nil, stateBits(p))}
	}
	// An INVALID packet has no entry, and without one the rule does not apply.
	return register{what: fmt.Sprintf("ct %d", k), never: p.invalid}
}

func payloadValue(e *expr.Payload, p packet) register {
	switch {
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2:
		return register{what: "tcp dport", kind: portValue, value: binary.BigEndian.AppendUint16(nil, p.port)}
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 13 && e.Len == 1:
		flags := byte(0x10) // a segment of an upload: ACK
		if !p.invalid {
			flags = 0x02
		}
		return register{what: "tcp flags", value: []byte{flags}}
	case e.Base == expr.PayloadBaseNetworkHeader && (!p.v6 && e.Offset == 16 && e.Len == 4 || p.v6 && e.Offset == 24 && e.Len == 16):
		r := register{what: "daddr", kind: addrValue}
		if p.to.IsValid() && p.to.Is4() != p.v6 {
			r.value = p.to.AsSlice()
		}
		return r
	case e.Base == expr.PayloadBaseNetworkHeader && (!p.v6 && e.Offset == 12 && e.Len == 4 || p.v6 && e.Offset == 8 && e.Len == 16):
		return register{what: "saddr", kind: addrValue}
	case e.Base == expr.PayloadBaseNetworkHeader && !p.v6 && e.Offset == 9 && e.Len == 1,
		e.Base == expr.PayloadBaseNetworkHeader && p.v6 && e.Offset == 6 && e.Len == 1:
		return register{what: "protocol", value: []byte{unix.IPPROTO_TCP}, kind: protoValue}
	}
	return register{what: fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset*8, e.Len*8)}
}

func fibValue(e *expr.Fib, p packet) register {
	if e.ResultADDRTYPE && e.FlagDADDR {
		r := register{what: "fib daddr type", kind: localValue}
		switch p.local {
		case yes:
			r.value = binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)
		case no:
			r.value = binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)
		}
		return r
	}
	return register{what: "fib"}
}

func compare(op expr.CmpOp, r register, data []byte, p packet) tri {
	if r.kind == nameValue || r.kind == ifNumber {
		return compareInterface(op, r, data, p)
	}
	if r.kind == addrValue && r.what == "daddr" && p.outside && loopbackData(data) {
		// The address is not known, only that it is no loopback address.
		switch op {
		case expr.CmpOpEq:
			return no
		case expr.CmpOpNeq:
			return yes
		}
		return maybe
	}
	if r.value == nil || len(r.value) < len(data) {
		return maybe
	}
	c := bytes.Compare(r.value[:len(data)], data)
	switch op {
	case expr.CmpOpEq:
		return known(c == 0)
	case expr.CmpOpNeq:
		return known(c != 0)
	case expr.CmpOpLt:
		return known(c < 0)
	case expr.CmpOpLte:
		return known(c <= 0)
	case expr.CmpOpGt:
		return known(c > 0)
	case expr.CmpOpGte:
		return known(c >= 0)
	}
	return maybe
}

// loopbackData tells whether the start of an address is that of a loopback one.
func loopbackData(data []byte) bool {
	a, ok := netip.AddrFromSlice(data)
	return len(data) > 0 && len(data) <= 4 && data[0] == 127 || ok && a.IsLoopback()
}

// compareInterface knows that the packet does not come in by loopback, and that
// one sent by this host comes in by none.
func compareInterface(op expr.CmpOp, r register, data []byte, p packet) tri {
	const loopback = 1
	lo := string(bytes.TrimRight(data, "\x00")) == "lo"
	if r.kind == ifNumber {
		lo = len(data) == 4 && binary.NativeEndian.Uint32(data) == loopback
	}
	same := maybe
	if r.what != "oifname" && (lo || p.sent) {
		same = no
	}
	switch op {
	case expr.CmpOpEq:
		return same
	case expr.CmpOpNeq:
		return same.not()
	}
	return maybe
}

func opWord(op expr.CmpOp) string {
	return map[expr.CmpOp]string{
		expr.CmpOpNeq: " !=", expr.CmpOpLt: " <", expr.CmpOpLte: " <=", expr.CmpOpGt: " >", expr.CmpOpGte: " >=",
	}[op]
}

// words is a comparison as nft has it.
func (r register) words(op expr.CmpOp, data []byte) string {
	if r.kind == ctState && len(r.mask) == 4 && len(data) == 4 && binary.NativeEndian.Uint32(data) == 0 {
		not := map[expr.CmpOp]string{expr.CmpOpEq: " !="}[op]
		return "ct state" + not + " " + stateWords(binary.NativeEndian.Uint32(r.mask))
	}
	if len(r.mask) > 0 && r.kind == addrValue {
		ones := 0
		for _, b := range r.mask {
			for ; b&0x80 != 0; b <<= 1 {
				ones++
			}
		}
		return fmt.Sprintf("%s%s %s/%d", r.what, opWord(op), r.show(data), ones)
	}
	return r.what + opWord(op) + " " + r.show(data)
}

func stateWords(bits uint32) string {
	var all []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{{1, "invalid"}, {2, "established"}, {4, "related"}, {8, "new"}, {64, "untracked"}} {
		if bits&s.bit != 0 {
			all = append(all, s.name)
		}
	}
	return strings.Join(all, ",")
}

func (r register) show(data []byte) string {
	switch {
	case r.kind == ctState && len(data) == 4:
		return stateWords(binary.NativeEndian.Uint32(data))
	case r.kind == portValue && len(data) == 2:
		return strconv.Itoa(int(binary.BigEndian.Uint16(data)))
	case r.kind == nameValue:
		return strconv.Quote(string(bytes.TrimRight(data, "\x00")))
	case r.kind == addrValue:
		full := make([]byte, map[bool]int{true: 4, false: 16}[len(data) <= 4])
		copy(full, data)
		if a, ok := netip.AddrFromSlice(full); ok {
			return a.String()
		}
	case r.kind == protoValue && len(data) == 1:
		switch {
		case strings.HasSuffix(r.what, "nfproto"):
			return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[data[0]]
		case data[0] == unix.IPPROTO_TCP:
			return "tcp"
		case data[0] == unix.IPPROTO_UDP:
			return "udp"
		}
		return strconv.Itoa(int(data[0]))
	case r.kind == localValue && len(data) == 4 && binary.NativeEndian.Uint32(data) == unix.RTN_LOCAL:
		return "local"
	}
	if len(data) > 16 {
		data = data[:16]
	}
	return fmt.Sprintf("0x%x", data)
}

func natTo(addr, port register) string {
	a, ok := netip.AddrFromSlice(addr.value)
	if !ok {
		return ""
	}
	if len(port.value) == 2 {
		return withPort(a, binary.BigEndian.Uint16(port.value))
	}
	return withPort(a, 0)
}

func withPort(a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

func portSuffix(b []byte) string {
	if len(b) != 2 || b[0] == 0 && b[1] == 0 {
		return ""
	}
	return fmt.Sprintf(":%d", binary.BigEndian.Uint16(b))
}
