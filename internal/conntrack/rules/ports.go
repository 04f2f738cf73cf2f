// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PortRange is one port or several: the first and the last.
type PortRange struct{ First, Last int }

// Range is the ports of a mapping; 0 to 0 if it is any.
func (m Mapping) Range() PortRange { return PortRange{m.Port, max(m.Port, m.Last)} }

// String is the range in the syntax of nft.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText is String.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what String writes, and refuses all else.
func (r *PortRange) UnmarshalText(b []byte) error {
	from, to, ranged := strings.Cut(string(b), "-")
	first, err := strconv.ParseUint(from, 10, 16)
	last := first
	if ranged && err == nil {
		last, err = strconv.ParseUint(to, 10, 16)
	}
	if err != nil || first == 0 || last < first {
		return fmt.Errorf("%q is no port", b)
	}
	r.First, r.Last = int(first), int(last) //nolint:gosec // of 16 bits
	return nil
}

// Union is all of them, sorted, each port once.
func Union(lists ...[]PortRange) []PortRange {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b PortRange) int {
		return cmp.Or(a.First-b.First, a.Last-b.Last)
	})
	var out []PortRange
	for _, r := range all {
		if n := len(out) - 1; n >= 0 && r.First <= out[n].Last {
			out[n].Last = max(out[n].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// JoinPorts lists them as nft does.
func JoinPorts(ports []PortRange) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = p.String()
	}
	return strings.Join(list, ", ")
}
