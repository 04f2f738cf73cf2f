// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/xtables"
)

// The rules of iptables-nft are nft rules with parts of xtables in them.

// match is a condition of iptables.
func (in *reading) match(e *expr.Match, p rules.Packet) rules.Condition {
	switch info := e.Info.(type) {
	case *xt.ConntrackMtinfo1:
		return xtState(info.MatchFlags, info.InvertFlags, uint16(info.StateMask), p)
	case *xt.ConntrackMtinfo2:
		return xtState(info.MatchFlags, info.InvertFlags, info.StateMask, p)
	case *xt.ConntrackMtinfo3:
		return xtState(info.MatchFlags, info.InvertFlags, info.StateMask, p)
	case *xt.Tcp:
		in.bounds = append(in.bounds, int(info.DstPorts[0]), int(info.DstPorts[1])+1)
		return xtTCP(info, p)
	case *xt.AddrType:
		return xtAddrType(info.Dest, info.Source, info.InvertDest, false, p)
	case *xt.AddrTypeV1:
		const invertDest, limited = 0x2, 0x4 | 0x8
		return xtAddrType(info.Dest, info.Source, info.Flags&invertDest != 0, info.Flags&limited != 0, p)
	case *xt.Comment:
		return rules.Condition{Holds: rules.Yes}
	case *xt.Unknown:
		if e.Name == "multiport" {
			c, bounds := xtMultiport(*info, p)
			in.bounds = append(in.bounds, bounds...)
			return c
		}
	}
	return rules.Condition{Holds: rules.Maybe, Text: "-m " + e.Name}
}

func xtState(flags, invert, mask uint16, p rules.Packet) rules.Condition {
	const state, bits = 1, 0x1 | 0x2 | 0x4 | 0x8
	if flags&state == 0 {
		if p.IsInvalid { // without an entry nothing else can match
			return rules.Condition{Holds: rules.No, Text: "-m conntrack"}
		}
		return rules.Condition{Holds: rules.Maybe, Text: "-m conntrack"}
	}
	is := rules.Known(uint32(mask)&stateBits(p) != 0)
	if invert&state != 0 {
		is = is.Not()
	}
	if flags&^state != 0 && !p.IsInvalid {
		is = min(is, rules.Maybe)
	}
	not := map[bool]string{true: "!= "}[invert&state != 0]
	return rules.Condition{Holds: is, Text: "ct state " + not + stateWords(uint32(mask)&bits), IsAboutState: true}
}

func xtTCP(t *xt.Tcp, p rules.Packet) rules.Condition {
	is, text := rules.Yes, []string{}
	if t.DstPorts != [2]uint16{0, math.MaxUint16} {
		in := rules.Known(t.DstPorts[0] <= p.Port && p.Port <= t.DstPorts[1])
		word := "tcp dport "
		if t.InvFlags&xt.TcpInvDestPorts != 0 {
			in, word = in.Not(), "tcp dport != "
		}
		is = min(is, in)
		text = append(text, word+portRange(t.DstPorts[0], t.DstPorts[1]))
	}
	if t.SrcPorts != [2]uint16{0, math.MaxUint16} {
		is = min(is, rules.Maybe)
		text = append(text, "tcp sport "+portRange(t.SrcPorts[0], t.SrcPorts[1]))
	}
	if t.FlagsMask != 0 || t.Option != 0 {
		is = min(is, rules.Maybe)
		text = append(text, "tcp flags ...")
	}
	return rules.Condition{Holds: is, Text: strings.Join(text, " ")}
}

func portRange(a, b uint16) string {
	if a == b {
		return strconv.Itoa(int(a))
	}
	return fmt.Sprintf("%d-%d", a, b)
}

func xtAddrType(dest, source uint16, invert, limited bool, p rules.Packet) rules.Condition {
	const local = 1 << unix.RTN_LOCAL
	is := rules.Maybe
	if source == 0 && !limited && dest == local {
		if is = p.IsLocal; invert {
			is = is.Not()
		}
	}
	return rules.Condition{Holds: is, Text: map[bool]string{true: "daddr type local", false: "-m addrtype"}[dest == local]}
}

// xtMultiport reads struct xt_multiport_v1.
func xtMultiport(b []byte, p rules.Packet) (rules.Condition, []int) {
	const ports, destination, either = 15, 1, 2
	c := rules.Condition{Holds: rules.Maybe, Text: "-m multiport"}
	if len(b) < 2+2*ports+ports+1 || int(b[1]) > ports || b[0] != destination && b[0] != either {
		return c, nil
	}
	var bounds []int
	var texts []string
	is := rules.No
	for i := 0; i < int(b[1]); i++ {
		from := binary.NativeEndian.Uint16(b[2+2*i:])
		to := from
		if b[2+2*ports+i] != 0 && i+1 < int(b[1]) {
			i++
			to = binary.NativeEndian.Uint16(b[2+2*i:])
		}
		bounds = append(bounds, int(from), int(to)+1)
		texts = append(texts, portRange(from, to))
		if from <= p.Port && p.Port <= to {
			is = rules.Yes
		}
	}
	if b[0] == either && is == rules.No {
		is = rules.Maybe // it may be the source port
	}
	word := "tcp dport "
	if b[2+2*ports+ports] != 0 {
		is, word = is.Not(), "tcp dport != "
	}
	return rules.Condition{Holds: is, Text: word + "{ " + strings.Join(texts, ", ") + " }"}, bounds
}

// target is what a rule of iptables does.
func target(e *expr.Target, s *rules.Step) {
	s.Action, s.To = xtables.Target(e.Name), ""
	if s.Action == rules.Translate {
		switch info := e.Info.(type) {
		case *xt.NatRange:
			s.To = natRange(info)
		case *xt.NatRange2:
			s.To = natRange(&info.NatRange)
		case *xt.NatIPv4MultiRangeCompat:
			if len(*info) > 0 {
				r := (*info)[0]
				s.To = natRange(&xt.NatRange{MinIP: r.MinIP, MinPort: r.MinPort})
			}
		}
	}
}

func natRange(r *xt.NatRange) string {
	a, ok := netip.AddrFromSlice(r.MinIP)
	if !ok || a.IsUnspecified() {
		return "this host" + portSuffix(binary.BigEndian.AppendUint16(nil, r.MinPort))
	}
	return withPort(a.Unmap(), r.MinPort)
}
