// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"maps"
	"slices"
)

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
	// MaxPorts bounds how many ports are looked at one by one.
	MaxPorts = 1024
)

// covers reports whether a port is among those translated.
func (m Mapping) covers(port int) bool {
	return m.Port == 0 || m.Port <= port && port <= max(m.Port, m.Last)
}

// Translations lists what the rules translate of new connections to the given
// address, or to any of this host's. Port 0 is any port. cut reports that a
// bound was reached, and that there may be more.
func (r *Set) Translations(p Packet) (all []Mapping, cut bool) {
	if p.Port != 0 {
		m, ok, endless := r.translation(p)
		if ok {
			all = append(all, m)
		}
		return all, endless
	}
	ports, cut := r.ports()
	for i, port := range ports {
		p.Port = uint16(port) //nolint:gosec // it is at most lastPort
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

func (r *Set) translation(p Packet) (m Mapping, ok, endless bool) {
	p.IsInvalid = false
	for _, h := range []Hook{Prerouting, Output} {
		p.IsSent = h == Output
		for _, c := range r.at(h, p.IsV6, func(c *Chain) bool { return c.Kind == "nat" }) {
			w := &walker{set: r, p: p, on: func(s Step) bool { return s.Action == Translate }}
			e := w.walk(c)
			endless = endless || e.endless
			if e.stopped && !e.endless && e.rule != nil {
				return Mapping{
					Port: int(p.Port), To: e.step.To, V6: p.IsV6, Chain: e.chain.String(), Rule: e.rule.Text,
					By: owner(e.chain), If: e.step.open(), Command: e.chain.command(),
				}, true, endless
			}
		}
	}
	return Mapping{}, false, endless
}

// ports are such that the rules treat each port like the last of them that is
// not greater. cut reports that there are too many.
func (r *Set) ports() (ports []int, cut bool) {
	seen := map[int]bool{1: true}
	for _, c := range r.chains {
		for i := range c.Rules {
			cut = cut || c.Rules[i].IsUnbounded
			for _, p := range c.Rules[i].Bounds {
				switch {
				case p <= 1 || p > lastPort || seen[p]:
				case len(seen) == MaxPorts:
					cut = true
				default:
					seen[p] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), cut
}

// Untracked reports a rule that takes the port out of conntrack altogether.
func (r *Set) Untracked(p Packet) (Guard, bool) {
	p.IsInvalid = false
	for _, c := range r.at(Prerouting, p.IsV6, func(c *Chain) bool { return c.Priority <= afterConntrack }) {
		w := &walker{set: r, p: p, on: func(s Step) bool { return s.Action == Untrack }}
		if e := w.walk(c); e.stopped && !e.endless && e.rule != nil {
			return r.guard("", e.chain, e.rule), true
		}
	}
	return Guard{}, false
}

// Mappings lists the ports that are translated for any of these packets, each
// mapping once. cut reports that there may be more.
func (r *Set) Mappings(kinds []Packet) (all []Mapping, cut bool) {
	for _, p := range kinds {
		found, more := r.Translations(p)
		cut = cut || more
		for _, m := range found {
			same := func(o Mapping) bool { return o.Port == m.Port && o.Last == m.Last && o.V6 == m.V6 && o.To == m.To }
			if !slices.ContainsFunc(all, same) {
				all = append(all, m)
			}
		}
	}
	return all, cut
}
