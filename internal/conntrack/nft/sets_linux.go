// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// set is a set or map.
type set struct {
	keyLen   int
	interval bool
	dynamic  bool
	elements []element
	cut      bool // it has more
}

type element struct {
	key, end, value []byte
	last            bool // the end of an interval
	verdict         *expr.Verdict
}

const (
	setElemKeyEnd = 10 // NFTA_SET_ELEM_KEY_END
	setDynamic    = 0x10 | 0x20
)

func parseSets(d *Dump) (map[string]*set, error) {
	sets := map[string]*set{}
	key := func(family byte, table, name string) string { return fmt.Sprintf("%d %s %s", family, table, name) }
	for _, m := range d.Sets {
		a, err := attributes(m.Data)
		if err != nil {
			return nil, err
		}
		flags := a.number(unix.NFTA_SET_FLAGS)
		sets[key(m.Family, a.text(unix.NFTA_SET_TABLE), a.text(unix.NFTA_SET_NAME))] = &set{
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
			s.elements = append(s.elements, element{
				key: value(el.get(unix.NFTA_SET_ELEM_KEY)), end: value(el.get(setElemKeyEnd)),
				value: value(el.get(unix.NFTA_SET_ELEM_DATA)), verdict: verdict(el.get(unix.NFTA_SET_ELEM_DATA)),
				last: el.number(unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0,
			})
		}
	}
	for _, s := range sets {
		slices.SortStableFunc(s.elements, func(a, b element) int { return bytes.Compare(a.key, b.key) })
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
func (s *set) holds(v []byte) (*element, rules.Truth) {
	missing := rules.No
	if s.dynamic || s.cut {
		missing = rules.Maybe // it changes with the packets, or was not read whole
	}
	var open *element
	for i := range s.elements {
		e := &s.elements[i]
		switch {
		case e.end != nil && len(e.end) == len(v):
			if bytes.Compare(e.key, v) <= 0 && bytes.Compare(v, e.end) <= 0 {
				return e, rules.Yes
			}
		case !s.interval:
			if bytes.Equal(e.key, v) {
				return e, rules.Yes
			}
		case bytes.Compare(e.key, v) > 0:
		case e.last:
			open = nil
		default:
			open = e
		}
	}
	if open != nil {
		return open, rules.Yes
	}
	return nil, missing
}

// holdsAll is holds for a key of several values, some of which may not be known.
// Then it returns all elements that may be the one.
func (s *set) holdsAll(fields []field) ([]*element, rules.Truth) {
	var all []*element
	best := rules.No
	if s.dynamic || s.cut {
		best = rules.Maybe
	}
	for i := range s.elements {
		e := &s.elements[i]
		is := rules.Yes
		for _, f := range fields {
			is = min(is, f.in(e))
		}
		if is == rules.Yes {
			return []*element{e}, rules.Yes
		}
		if is == rules.Maybe {
			best, all = rules.Maybe, append(all, e)
		}
	}
	return all, best
}

// field is one value of a key of several.
type field struct {
	register
	offset int
}

func (f field) in(e *element) rules.Truth {
	to := f.offset + len(f.value)
	switch {
	case f.value == nil:
		return rules.Maybe
	case len(e.key) < to:
		return rules.No
	case len(e.end) >= to:
		return rules.Known(bytes.Compare(e.key[f.offset:to], f.value) <= 0 && bytes.Compare(f.value, e.end[f.offset:to]) <= 0)
	}
	return rules.Known(bytes.Equal(e.key[f.offset:to], f.value))
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

// mapVerdict is what a map may do. If all that may apply do the same, that is
// it. Else it is taken for an accept, the one that protects from nothing.
func mapVerdict(may []*element, s *rules.Step) {
	var all []rules.Step
	for _, e := range may {
		if e.verdict == nil {
			continue
		}
		a, to := verdictAction(e.verdict)
		if !slices.ContainsFunc(all, func(o rules.Step) bool { return o.Action == a && o.To == to }) {
			all = append(all, rules.Step{Action: a, To: to})
		}
	}
	switch len(all) {
	case 0:
	case 1:
		s.Action, s.To = all[0].Action, all[0].To
	default:
		s.Action = rules.Accept
		for _, o := range all {
			if o.Action == rules.Jump || o.Action == rules.Goto {
				s.Also = append(s.Also, o.To)
			}
		}
	}
}

func (s *set) words(r register) string {
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
			a, to := verdictAction(e.verdict)
			t += " : " + strings.TrimSpace(a.String()+" "+to)
		}
		all = append(all, t)
	}
	return "{ " + strings.Join(all, ", ") + " }"
}
