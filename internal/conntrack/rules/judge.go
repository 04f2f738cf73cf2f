// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

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

func (r *Set) guard(effect Effect, c *Chain, ru *Rule) Guard {
	g := Guard{Effect: effect, Chain: c.String(), Rule: "policy drop", Command: c.command()}
	if ru != nil {
		g.Rule = ru.Text
		if ru.IsCounted {
			g.Packets = &ru.Packets
		}
	}
	g.By = owner(c)
	return g
}

// command lists the chain.
func (c *Chain) command() string {
	if of, ok := strings.CutPrefix(c.Family, "legacy "); ok {
		return legacyCommand(of) + fmt.Sprintf(" -t %s -vnL %s", c.Table, c.Name)
	}
	return fmt.Sprintf("nft -a list chain %s %s %s", c.Family, c.Table, c.Name)
}

func legacyCommand(family string) string {
	if family == "ip6" {
		return "ip6tables-legacy"
	}
	return "iptables-legacy"
}

// OwnTable is the table of family inet that rpush doctor makes.
const OwnTable = "rpush"

// owner recognises who writes a chain.
func owner(c *Chain) string {
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
		if strings.HasPrefix(c.Name, o.prefix) {
			return o.by
		}
	}
	switch c.Table {
	case "firewalld":
		return "firewalld"
	case "kube-proxy":
		return "kube-proxy"
	case "calico":
		return "Calico"
	case "docker-bridges":
		return "Docker"
	case OwnTable:
		return "rpush"
	}
	return ""
}

// Judgement is what the rules do to INVALID packets.
type Judgement struct {
	Guards    []Guard
	Open      []Mapping // that nothing protects, or not under all conditions
	IsEndless bool      // a bound was reached
}

// Effect is the best effect of the guards that drop, or empty.
func (s Judgement) Effect() Effect {
	for _, e := range []Effect{Protects, Partly} {
		for _, g := range s.Guards {
			if g.Effect == e {
				return e
			}
		}
	}
	return ""
}

// Judge says what becomes of an INVALID packet for the host itself.
func (r *Set) Judge(p Packet) Judgement {
	p.IsInvalid = true
	var out Judgement
	w := &walker{set: r, p: p}
	seesState := func(c *Chain) bool {
		return c.Kind != "nat" && (c.Hook != Prerouting || c.Priority > afterConntrack)
	}
	for _, h := range []Hook{Prerouting, Input} {
		for _, c := range r.at(h, p.IsV6, seesState) {
			e := w.walk(c)
			out.IsEndless = out.IsEndless || e.endless
			switch {
			case e.endless:
			case e.action == Drop:
				g := r.guard(Protects, e.chain, e.rule)
				if g.If = e.step.open(); len(g.If) > 0 || len(e.sooner) > 0 {
					g.Effect = Partly
					g.Behind = first(e.sooner)
				}
				out.Guards = append(out.Guards, g)
			case e.action == Reject && e.step.aboutState():
				out.Guards = append(out.Guards, r.guard(Answers, e.chain, e.rule))
			case e.action == Accept && e.rule != nil:
				if late := r.behind(c, p); late != nil {
					late.Behind = e.rule.Text
					out.Guards = append(out.Guards, *late)
				}
			}
		}
	}
	for _, c := range r.at(Forward, p.IsV6, func(c *Chain) bool { return c.Kind != "nat" }) {
		if g := r.invalidDrop(c, p, ForwardOnly); g != nil {
			out.Guards = append(out.Guards, *g)
		}
	}
	return out
}

// behind looks for a drop of INVALID that an accept keeps from being reached.
func (r *Set) behind(c *Chain, p Packet) *Guard { return r.invalidDrop(c, p, AfterAccept) }

func (r *Set) invalidDrop(c *Chain, p Packet, effect Effect) *Guard {
	w := &walker{set: r, p: p, past: true}
	w.on = func(s Step) bool { return s.Action == Drop && s.aboutState() }
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

// JudgeMappings judges each port that is translated. to is the only address of
// this host in a family, or not valid.
func (r *Set) JudgeMappings(mappings []Mapping, to func(v6 bool) netip.Addr) Judgement {
	var out Judgement
	bounds, _ := r.ports()
	for _, m := range mappings {
		open := false
		for _, port := range judged(m, bounds) {
			s := r.Judge(Packet{IsV6: m.V6, Port: uint16(port), IsLocal: Yes, To: to(m.V6)}) //nolint:gosec // it was read as one
			out.IsEndless = out.IsEndless || s.IsEndless
			open = open || s.Effect() != Protects
			for _, g := range s.Guards {
				out.add(g, m.Port)
			}
		}
		if open {
			out.Open = append(out.Open, m)
		}
	}
	return out
}

// judged are the ports of a mapping that rules may treat differently.
func judged(m Mapping, bounds []int) []int {
	first := max(m.Port, 1)
	ports := []int{first}
	for _, b := range bounds {
		if b != first && m.covers(b) {
			ports = append(ports, b)
		}
	}
	return ports
}

func (s *Judgement) add(g Guard, port int) {
	i := slices.IndexFunc(s.Guards, func(o Guard) bool {
		return o.Chain == g.Chain && o.Rule == g.Rule && o.Effect == g.Effect
	})
	if i < 0 {
		i = len(s.Guards)
		s.Guards = append(s.Guards, g)
	}
	if !slices.Contains(s.Guards[i].Ports, port) {
		s.Guards[i].Ports = append(s.Guards[i].Ports, port)
	}
}
