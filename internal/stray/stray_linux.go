// SPDX-License-Identifier: Apache-2.0

package stray

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Kind of a segment.
type Kind int

// The kinds.
const (
	// Delayed is far behind what was sent: an old segment that comes late.
	Delayed Kind = iota
	// Beyond is far ahead of what the receiver's window allows.
	Beyond
)

// far is more than any window.
const far = 50 << 20

// Strays says what to send into which connections.
type Strays struct {
	// Interface is watched for the connections, and sent out of. It belongs to
	// the network namespace of the calling thread.
	Interface string
	// Port is the destination of the connections. IPv4 only.
	Port uint16
	// To, where it is valid, is their destination address.
	To   netip.Addr
	Kind Kind
	// After so many bytes of a connection its strays are sent, Count of them.
	After int64
	Count int
	// Connections is how many get strays. Then Run ends.
	Connections int
}

// Run watches and sends until it is done or the context ends, and returns how
// many connections got strays. The calling goroutine must be locked to its
// thread, where that is in another network namespace.
func (s Strays) Run(ctx context.Context) (connections int, err error) {
	link, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return 0, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}
	if err := unix.Bind(fd, to); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
		return 0, err
	}
	flows := map[uint16]*flow{}
	buf := make([]byte, 256)
	for connections < s.Connections && ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS):
			continue
		case err != nil:
			return connections, err
		}
		seg, ok := parse(buf[:n])
		if !ok || seg.dport != s.Port || s.To.IsValid() && [4]byte(seg.addresses[4:]) != s.To.As4() {
			continue
		}
		f := flows[seg.sport]
		if f == nil || seg.flags&flagSYN != 0 {
			f = &flow{first: seg.seq, newest: seg.seq}
			flows[seg.sport] = f
		}
		if ahead := seg.seq + seg.length - f.newest; ahead < far/2 { // else it is a stray of ours
			f.newest += ahead
		}
		if f.done || int64(f.newest-f.first) < s.After || seg.flags&(flagSYN|flagFIN|flagRST) != 0 {
			continue
		}
		for range s.Count {
			if err := unix.Sendto(fd, seg.stray(s.Kind, f.newest), 0, to); err != nil {
				return connections, err
			}
			time.Sleep(time.Millisecond)
		}
		f.done = true
		connections++
	}
	return connections, nil
}

// flow is one connection. Numbers are modulo 2^32, as TCP's are.
type flow struct {
	first, newest uint32
	done          bool
}

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

const (
	ethernet = 14
	ipHeader = 20
	mtu      = 1500
)

// segment is a frame on its way to the port.
type segment struct {
	ethernet, addresses []byte
	sport, dport        uint16
	seq, ack, length    uint32
	flags               byte
	window              uint16
	timestamps          []byte // the option's two values
}

func parse(b []byte) (s segment, ok bool) {
	if len(b) < ethernet+ipHeader || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP {
		return s, false
	}
	ip := b[ethernet:]
	ihl := int(ip[0]&0xf) * 4
	if ip[0]>>4 != 4 || ihl < ipHeader || ip[9] != unix.IPPROTO_TCP || len(ip) < ihl+20 {
		return s, false
	}
	tcp := ip[ihl:]
	head := int(tcp[12]>>4) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if head < 20 || len(tcp) < head || total < ihl+head {
		return s, false
	}
	s = segment{
		ethernet: b[:ethernet], addresses: ip[12:20],
		sport: binary.BigEndian.Uint16(tcp), dport: binary.BigEndian.Uint16(tcp[2:]),
		seq: binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]),
		length: uint32(total - ihl - head), flags: tcp[13], window: binary.BigEndian.Uint16(tcp[14:]),
	}
	for o := tcp[20:head]; len(o) > 0 && o[0] != 0; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			break
		}
		if o[0] == 8 && o[1] == 10 {
			s.timestamps = o[2:10]
		}
		o = o[o[1]:]
	}
	return s, true
}

// stray is a full frame of the same connection.
func (s segment) stray(kind Kind, newest uint32) []byte {
	seq, age := newest+far, uint32(0)
	if kind == Delayed {
		seq, age = newest-far, 3000
	}
	var options []byte
	if s.timestamps != nil {
		options = append(options, 1, 1, 8, 10)
		options = binary.BigEndian.AppendUint32(options, binary.BigEndian.Uint32(s.timestamps)-age)
		options = append(options, s.timestamps[4:]...)
	}
	ip := make([]byte, ipHeader, mtu)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], mtu)
	copy(ip[12:], s.addresses)
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))

	tcp := binary.BigEndian.AppendUint16(nil, s.sport)
	tcp = binary.BigEndian.AppendUint16(tcp, s.dport)
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = binary.BigEndian.AppendUint32(tcp, s.ack)
	tcp = append(tcp, byte((20+len(options))/4)<<4, flagACK)
	tcp = binary.BigEndian.AppendUint16(tcp, s.window)
	tcp = append(append(tcp, 0, 0, 0, 0), options...)
	tcp = append(tcp, make([]byte, mtu-ipHeader-len(tcp))...)
	pseudo := append([]byte{}, s.addresses...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(tcp))) //nolint:gosec // less than the MTU
	binary.BigEndian.PutUint16(tcp[16:], checksum(sum(0, pseudo), tcp))

	return append(append(append([]byte{}, s.ethernet...), ip...), tcp...)
}

func sum(start uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	return start
}

// checksum is that of the Internet.
func checksum(start uint32, b []byte) uint16 {
	s := sum(start, b)
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s) //nolint:gosec // folded
}
