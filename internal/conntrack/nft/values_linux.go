// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

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

func metaValue(k expr.MetaKey, p rules.Packet) register {
	switch k {
	case expr.MetaKeyL4PROTO:
		return register{what: "meta l4proto", value: []byte{unix.IPPROTO_TCP}, kind: protoValue}
	case expr.MetaKeyNFPROTO:
		return register{what: "meta nfproto", value: []byte{familyByte(p.IsV6)}, kind: protoValue}
	case expr.MetaKeyPROTOCOL:
		proto := []byte{0x08, 0x00}
		if p.IsV6 {
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
func stateBits(p rules.Packet) uint32 {
	if p.IsInvalid {
		return expr.CtStateBitINVALID
	}
	return expr.CtStateBitNEW
}

func ctValue(k expr.CtKey, p rules.Packet) register {
	if k == expr.CtKeySTATE {
		return register{what: "ct state", kind: ctState, value: binary.NativeEndian.AppendUint32(nil, stateBits(p))}
	}
	// An INVALID packet has no entry, and without one the rule does not apply.
	return register{what: fmt.Sprintf("ct %d", k), never: p.IsInvalid}
}

func payloadValue(e *expr.Payload, p rules.Packet) register {
	switch {
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2:
		return register{what: "tcp dport", kind: portValue, value: binary.BigEndian.AppendUint16(nil, p.Port)}
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 13 && e.Len == 1:
		flags := byte(0x10) // a segment of an upload: ACK
		if !p.IsInvalid {
			flags = 0x02
		}
		return register{what: "tcp flags", value: []byte{flags}}
	case e.Base == expr.PayloadBaseNetworkHeader && (!p.IsV6 && e.Offset == 16 && e.Len == 4 || p.IsV6 && e.Offset == 24 && e.Len == 16):
		r := register{what: "daddr", kind: addrValue}
		if p.To.IsValid() && p.To.Is4() != p.IsV6 {
			r.value = p.To.AsSlice()
		}
		return r
	case e.Base == expr.PayloadBaseNetworkHeader && (!p.IsV6 && e.Offset == 12 && e.Len == 4 || p.IsV6 && e.Offset == 8 && e.Len == 16):
		return register{what: "saddr", kind: addrValue}
	case e.Base == expr.PayloadBaseNetworkHeader && !p.IsV6 && e.Offset == 9 && e.Len == 1,
		e.Base == expr.PayloadBaseNetworkHeader && p.IsV6 && e.Offset == 6 && e.Len == 1:
		return register{what: "protocol", value: []byte{unix.IPPROTO_TCP}, kind: protoValue}
	}
	return register{what: fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset*8, e.Len*8)}
}

func fibValue(e *expr.Fib, p rules.Packet) register {
	if e.ResultADDRTYPE && e.FlagDADDR {
		r := register{what: "fib daddr type", kind: localValue}
		switch p.IsLocal {
		case rules.Yes:
			r.value = binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)
		case rules.No:
			r.value = binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)
		}
		return r
	}
	return register{what: "fib"}
}

func compare(op expr.CmpOp, r register, data []byte, p rules.Packet) rules.Truth {
	if r.kind == nameValue || r.kind == ifNumber {
		return compareInterface(op, r, data, p)
	}
	if r.kind == addrValue && r.what == "daddr" && p.IsFromOutside && loopbackData(data) {
		// The address is not known, only that it is no loopback address.
		switch op {
		case expr.CmpOpEq:
			return rules.No
		case expr.CmpOpNeq:
			return rules.Yes
		}
		return rules.Maybe
	}
	if r.value == nil || len(r.value) < len(data) {
		return rules.Maybe
	}
	c := bytes.Compare(r.value[:len(data)], data)
	switch op {
	case expr.CmpOpEq:
		return rules.Known(c == 0)
	case expr.CmpOpNeq:
		return rules.Known(c != 0)
	case expr.CmpOpLt:
		return rules.Known(c < 0)
	case expr.CmpOpLte:
		return rules.Known(c <= 0)
	case expr.CmpOpGt:
		return rules.Known(c > 0)
	case expr.CmpOpGte:
		return rules.Known(c >= 0)
	}
	return rules.Maybe
}

// loopbackData tells whether the start of an address is that of a loopback one.
func loopbackData(data []byte) bool {
	a, ok := netip.AddrFromSlice(data)
	return len(data) > 0 && len(data) <= 4 && data[0] == 127 || ok && a.IsLoopback()
}

// compareInterface knows that the packet does not come in by loopback, and that
// one sent by this host comes in by none.
func compareInterface(op expr.CmpOp, r register, data []byte, p rules.Packet) rules.Truth {
	const loopback = 1
	lo := string(bytes.TrimRight(data, "\x00")) == "lo"
	if r.kind == ifNumber {
		lo = len(data) == 4 && binary.NativeEndian.Uint32(data) == loopback
	}
	same := rules.Maybe
	if r.what != "oifname" && (lo || p.IsSent) {
		same = rules.No
	}
	switch op {
	case expr.CmpOpEq:
		return same
	case expr.CmpOpNeq:
		return same.Not()
	}
	return rules.Maybe
}

func opWord(op expr.CmpOp) string {
	return map[expr.CmpOp]string{
		expr.CmpOpNeq: " !=", expr.CmpOpLt: " <", expr.CmpOpLte: " <=", expr.CmpOpGt: " >", expr.CmpOpGte: " >=",
	}[op]
}

// words is a comparison in the syntax of nft.
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
