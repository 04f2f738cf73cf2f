package conntrack

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// tri is what is known of a match: a rule may depend on what no one can know
// before the packet comes, such as its source.
type tri uint8

const (
	no tri = iota
	maybe
	yes
)

func known(b bool) tri {
	if b {
		return yes
	}
	return no
}

func (t tri) not() tri { return yes - t }

// hook of netfilter.
type hook string

const (
	prerouting hook = "prerouting"
	input      hook = "input"
	forward    hook = "forward"
	output     hook = "output"
)

// afterConntrack is where a chain at prerouting has to stand to see states.
const afterConntrack = -200

// packet is one that comes from outside and is meant for this host: the
// incident's, which is INVALID, or the first of a connection.
type packet struct {
	v6      bool
	invalid bool       // else the first of a connection, NEW
	port    uint16     // destination, before any translation
	to      netip.Addr // destination; not valid if it may be any
	local   tri        // whether that is an address of this host
	sent    bool       // by this host, so that it has no input interface
	outside bool       // from another machine, so that it is for no loopback address
}

type action uint8

const (
	pass   action = iota // on to the next rule
	accept               // ends this base chain
	drop
	reject // answers by itself
	jump
	goTo
	back // return
	translate
	untrack
)

// cond is a condition of a rule: what it came to for a packet, and its words.
type cond struct {
	is    tri
	text  string
	state bool // it is about the conntrack state
}

// step is what a rule does with a packet.
type step struct {
	conds  []cond
	action action
	to     string // chain, or where it translates to
	// also are chains that it may lead to as well, by a map whose key is not
	// known.
	also []string
}

func (s step) match() tri {
	m := yes
	for _, c := range s.conds {
		m = min(m, c.is)
	}
	return m
}

// open are the conditions that the packet at hand does not settle.
func (s step) open() []string {
	var open []string
	for _, c := range s.conds {
		if c.is == maybe {
			open = append(open, c.text)
		}
	}
	return open
}

func (s step) aboutState() bool {
	return slices.ContainsFunc(s.conds, func(c cond) bool { return c.state })
}

// rule of nft or xtables.
type rule struct {
	text    string
	packets uint64
	counted bool
	on      func(packet) step
	// bounds are the destination ports at which its conditions may change:
	// the first, and the one after the last.
	bounds []int
	odd    bool // it tests ports in a way that has no such bounds
}

// chain of one family. Base chains have a hook.
type chain struct {
	family   string // ip, ip6, inet, or legacy ip, legacy ip6
	table    string
	name     string
	hook     hook
	kind     string // filter, nat, route
	priority int
	policy   action
	rules    []rule
}

func (c *chain) String() string { return c.family + " " + c.table + " " + c.name }

// ruleset is all that was read, by nft and by legacy xtables.
type ruleset struct {
	chains []*chain
	index  map[string]*chain
	spent  int // steps of all walks
}

func (r *ruleset) add(c *chain) {
	if r.index == nil {
		r.index = map[string]*chain{}
	}
	if r.index[c.String()] == nil {
		r.index[c.String()] = c
		r.chains = append(r.chains, c)
	}
}

func (r *ruleset) find(family, table, name string) *chain {
	return r.index[family+" "+table+" "+name]
}

// at lists the base chains of a hook that a packet meets, in their order.
func (r *ruleset) at(h hook, v6 bool, kind func(*chain) bool) []*chain {
	var all []*chain
	for _, c := range r.chains {
		of := strings.TrimPrefix(c.family, "legacy ")
		if c.hook == h && kind(c) && (of == "inet" || of == "ip6" == v6 && (of == "ip" || of == "ip6")) {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b *chain) int { return a.priority - b.priority })
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
	set   *ruleset
	p     packet
	steps int
	// past goes on after an accept, to find what stands behind it.
	past bool
	// on is called at every rule that may apply; returning true ends the walk.
	on func(s step) bool

	sooner  []string // accepts that may have come first
	partial *end     // the first drop that may apply
}

// end is how a walk came out.
type end struct {
	action action
	chain  *chain
	rule   *rule // nil: the policy
	step   step
	sooner []string
	// stopped by the walker's on; endless where a bound was reached.
	stopped, endless bool
}

func (w *walker) walk(c *chain) end {
	e := w.through(c, 0, nil)
	if !e.stopped && (e.action == pass || e.action == back) {
		e = end{action: c.policy, chain: c, sooner: w.sooner}
	}
	if e.action == accept && w.partial != nil && !e.stopped {
		return *w.partial
	}
	return e
}

// through takes the packet through a chain; above are the conditions of the
// jumps that led there.
func (w *walker) through(c *chain, depth int, above []cond) end {
	for i := range c.rules {
		r := &c.rules[i]
		w.steps++
		w.set.spent++
		if w.steps > maxSteps || w.set.spent > maxSpent || depth > maxDepth {
			return end{stopped: true, endless: true}
		}
		s := r.on(w.p)
		here := s.match()
		if here == no {
			continue
		}
		s.conds = append(slices.Clone(above), s.conds...)
		if w.on != nil && w.on(s) {
			return end{action: s.action, chain: c, rule: r, step: s, stopped: true}
		}
		e := end{action: s.action, chain: c, rule: r, step: s, sooner: slices.Clone(w.sooner)}
		switch sure := s.match() == yes; s.action {
		case jump, goTo:
			target := w.set.find(c.family, c.table, s.to)
			if target == nil {
				continue
			}
			e = w.through(target, depth+1, s.conds)
			switch {
			case e.stopped || e.action == accept || e.action == drop || e.action == reject:
				return e
			case s.action == goTo && here == yes:
				return end{action: back}
			case s.action == goTo:
				above = unless(above, r)
			}
		case accept:
			if sure && !w.past {
				return e
			}
			w.sooner = append(w.sooner, r.text)
			for _, to := range s.also {
				target := w.set.find(c.family, c.table, to)
				if target == nil || w.on == nil { // a drop there would be uncertain
					continue
				}
				if e = w.through(target, depth+1, s.conds); e.stopped {
					return e
				}
			}
		case drop, reject:
			switch {
			case sure:
				return e
			case s.action == drop && w.partial == nil:
				w.partial = &e
			}
		case back:
			if here == yes {
				return end{action: back}
			}
			above = unless(above, r)
		}
	}
	return end{action: pass}
}

// unless is what the rest of a chain depends on after a rule that may have left
// it.
func unless(above []cond, r *rule) []cond {
	return append(slices.Clone(above), cond{is: maybe, text: "not " + r.text})
}

// Effect says what a rule that drops INVALID does for the host.
type Effect string

// The effects, best first.
const (
	Protects    Effect = "protects"
	Partly      Effect = "partly"       // under a condition only
	AfterAccept Effect = "after accept" // an earlier rule lets the packet in
	ForwardOnly Effect = "forward only" // the stray packet never gets there
	Answers     Effect = "answers"      // it rejects, which sends the RST
)

// Guard is a place where INVALID packets are dropped, or seem to be.
type Guard struct {
	Effect  Effect   `json:"effect"`
	Chain   string   `json:"chain"`
	Rule    string   `json:"rule"`
	By      string   `json:"by,omitempty"` // whose rule that is
	Ports   []int    `json:"ports,omitempty"`
	Packets *uint64  `json:"packets,omitempty"` // dropped so far
	If      []string `json:"if,omitempty"`      // what it depends on
	Behind  string   `json:"behind,omitempty"`  // the accept that comes first
	Command string   `json:"command"`
}

func (r *ruleset) guard(effect Effect, c *chain, ru *rule) Guard {
	g := Guard{Effect: effect, Chain: c.String(), Rule: "policy drop", Command: c.command()}
	if ru != nil {
		g.Rule = ru.text
		if ru.counted {
			g.Packets = &ru.packets
		}
	}
	g.By = owner(c)
	return g
}

// command lists the chain.
func (c *chain) command() string {
	if of, ok := strings.CutPrefix(c.family, "legacy "); ok {
		return legacyCommand(of) + fmt.Sprintf(" -t %s -vnL %s", c.table, c.name)
	}
	return fmt.Sprintf("nft -a list chain %s %s %s", c.family, c.table, c.name)
}

func legacyCommand(family string) string {
	if family == "ip6" {
		return "ip6tables-legacy"
	}
	return "iptables-legacy"
}

// owner recognises who writes a chain.
func owner(c *chain) string {
	for _, o := range []struct{ prefix, by string }{
		{"KUBE-", "kube-proxy"},
		{"cali-", "Calico"},
		{"cali:", "Calico"},
		{"ufw-", "ufw"},
		{"ufw6-", "ufw"},
		{"DOCKER", "Docker"},
		{"CNI-", "a CNI plugin"},
		{"NETAVARK", "Podman"},
		{"LIBVIRT_", "libvirt"},
	} {
		if strings.HasPrefix(c.name, o.prefix) {
			return o.by
		}
	}
	switch c.table {
	case "firewalld":
		return "firewalld"
	case "kube-proxy":
		return "kube-proxy"
	case "calico":
		return "Calico"
	case "docker-bridges":
		return "Docker"
	case tableName:
		return "rpush"
	}
	return ""
}

// judgement is that of the rules on INVALID packets.
type judgement struct {
	guards  []Guard
	open    []Mapping // that nothing protects, or not under all conditions
	endless bool      // a bound was reached
}

func (s judgement) effect() Effect {
	for _, e := range []Effect{Protects, Partly} {
		for _, g := range s.guards {
			if g.Effect == e {
				return e
			}
		}
	}
	return ""
}

// judge says what becomes of an INVALID packet for the host itself.
func (r *ruleset) judge(p packet) judgement {
	p.invalid = true
	var out judgement
	w := &walker{set: r, p: p}
	seesState := func(c *chain) bool {
		return c.kind != "nat" && (c.hook != prerouting || c.priority > afterConntrack)
	}
	for _, h := range []hook{prerouting, input} {
		for _, c := range r.at(h, p.v6, seesState) {
			e := w.walk(c)
			out.endless = out.endless || e.endless
			switch {
			case e.endless:
			case e.action == drop:
				g := r.guard(Protects, e.chain, e.rule)
				if g.If = e.step.open(); len(g.If) > 0 || len(e.sooner) > 0 {
					g.Effect = Partly
					g.Behind = first(e.sooner)
				}
				out.guards = append(out.guards, g)
			case e.action == reject && e.step.aboutState():
				out.guards = append(out.guards, r.guard(Answers, e.chain, e.rule))
			case e.action == accept && e.rule != nil:
				if late := r.behind(c, p); late != nil {
					late.Behind = e.rule.text
					out.guards = append(out.guards, *late)
				}
			}
		}
	}
	for _, c := range r.at(forward, p.v6, func(c *chain) bool { return c.kind != "nat" }) {
		if g := r.invalidDrop(c, p, ForwardOnly); g != nil {
			out.guards = append(out.guards, *g)
		}
	}
	return out
}

// behind looks for a drop of INVALID that an accept keeps from being reached.
func (r *ruleset) behind(c *chain, p packet) *Guard { return r.invalidDrop(c, p, AfterAccept) }

func (r *ruleset) invalidDrop(c *chain, p packet, effect Effect) *Guard {
	w := &walker{set: r, p: p, past: true}
	w.on = func(s step) bool { return s.action == drop && s.aboutState() }
	e := w.walk(c)
	if !e.stopped || e.endless || e.rule == nil {
		return nil
	}
	g := r.guard(effect, e.chain, e.rule)
	return &g
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// Mapping is a port of this host that is translated to somewhere else.
type Mapping struct {
	Port    int      `json:"port"`           // 0: any
	Last    int      `json:"last,omitempty"` // where Port is the first of several
	To      string   `json:"to,omitempty"`
	V6      bool     `json:"ipv6,omitempty"`
	Chain   string   `json:"chain"`
	Rule    string   `json:"rule"`
	By      string   `json:"by,omitempty"`
	If      []string `json:"if,omitempty"`
	Command string   `json:"command"`
}

const (
	lastPort = 65535
	// maxPorts bounds how many ports are looked at one by one.
	maxPorts = 1024
)

// covers reports whether a port is among those translated.
func (m Mapping) covers(port int) bool {
	return m.Port == 0 || m.Port <= port && port <= max(m.Port, m.Last)
}

// translations lists what the rules translate of new connections to the given
// address, or to any of this host's. Port 0 is any port. cut reports that a
// bound was reached, and that there may be more.
func (r *ruleset) translations(p packet) (all []Mapping, cut bool) {
	if p.port != 0 {
		m, ok, endless := r.translation(p)
		if ok {
			all = append(all, m)
		}
		return all, endless
	}
	ports, cut := r.ports()
	for i, port := range ports {
		p.port = uint16(port) //nolint:gosec // it is at most lastPort
		m, ok, endless := r.translation(p)
		cut = cut || endless
		if !ok {
			continue
		}
		m.Last = lastPort
		if i+1 < len(ports) {
			m.Last = ports[i+1] - 1
		}
		if n := len(all) - 1; n >= 0 && all[n].Last == port-1 && all[n].To == m.To && all[n].Chain == m.Chain && all[n].Rule == m.Rule {
			all[n].Last = m.Last
		} else {
			all = append(all, m)
		}
	}
	for i := range all {
		switch {
		case all[i].Port == 1 && all[i].Last == lastPort:
			all[i].Port, all[i].Last = 0, 0
		case all[i].Port == all[i].Last:
			all[i].Last = 0
		}
	}
	return all, cut
}

func (r *ruleset) translation(p packet) (m Mapping, ok, endless bool) {
	p.invalid = false
	for _, h := range []hook{prerouting, output} {
		p.sent = h == output
		for _, c := range r.at(h, p.v6, func(c *chain) bool { return c.kind == "nat" }) {
			w := &walker{set: r, p: p, on: func(s step) bool { return s.action == translate }}
			e := w.walk(c)
			endless = endless || e.endless
			if e.stopped && !e.endless && e.rule != nil {
				return Mapping{
					Port: int(p.port), To: e.step.to, V6: p.v6, Chain: e.chain.String(), Rule: e.rule.text,
					By: owner(e.chain), If: e.step.open(), Command: e.chain.command(),
				}, true, endless
			}
		}
	}
	return Mapping{}, false, endless
}

// ports are such that the rules treat each port like the last of them that is
// not greater. cut reports that there are too many.
func (r *ruleset) ports() (ports []int, cut bool) {
	seen := map[int]bool{1: true}
	for _, c := range r.chains {
		for i := range c.rules {
			cut = cut || c.rules[i].odd
			for _, p := range c.rules[i].bounds {
				switch {
				case p <= 1 || p > lastPort || seen[p]:
				case len(seen) == maxPorts:
					cut = true
				default:
					seen[p] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), cut
}

// untracked reports a rule that takes the port out of conntrack altogether.
func (r *ruleset) untracked(p packet) (Guard, bool) {
	p.invalid = false
	for _, c := range r.at(prerouting, p.v6, func(c *chain) bool { return c.priority <= afterConntrack }) {
		w := &walker{set: r, p: p, on: func(s step) bool { return s.action == untrack }}
		if e := w.walk(c); e.stopped && !e.endless && e.rule != nil {
			return r.guard("", e.chain, e.rule), true
		}
	}
	return Guard{}, false
}
