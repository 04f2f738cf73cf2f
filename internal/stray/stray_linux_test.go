// SPDX-License-Identifier: Apache-2.0

package stray

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// frame is a segment of an upload, with and without timestamps.
func frame(timestamps bool) []byte {
	b := make([]byte, ethernet+ipHeader+20, 200)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[ethernet:]
	ip[0], ip[9] = 0x45, 6
	copy(ip[12:], []byte{10, 77, 1, 2, 10, 77, 1, 1})
	tcp := ip[ipHeader:]
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 5000)
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], 77)
	tcp[12], tcp[13] = 5<<4, flagACK
	if timestamps {
		tcp[12] = 8 << 4
		b = append(b, 1, 1, 8, 10, 0, 0, 0x20, 0, 0, 0, 0, 9)
	}
	binary.BigEndian.PutUint16(b[ethernet+2:], uint16(len(b)-ethernet+100)) // and 100 bytes that are cut off
	return b
}

func TestStray(t *testing.T) {
	for _, timestamps := range []bool{false, true} {
		s, ok := parse(frame(timestamps))
		if !ok || s.sport != 40000 || s.dport != 5000 || s.seq != 1000 || s.ack != 77 || s.length != 100 || (s.timestamps != nil) != timestamps {
			t.Fatalf("parsed %+v, %t", s, ok)
		}
		const newest = 10 // it wraps
		for kind, seq := range map[Kind]int64{Delayed: newest - far + 1<<32, Beyond: newest + far} {
			out := s.stray(kind, newest)
			got, ok := parse(out)
			if !ok || len(out) != ethernet+mtu || got.seq != uint32(seq) || got.ack != s.ack || got.dport != s.dport || !bytes.Equal(got.addresses, s.addresses) {
				t.Errorf("kind %d: got %+v", kind, got)
			}
			if timestamps && (kind == Delayed) != (binary.BigEndian.Uint32(got.timestamps) < 0x2000) {
				t.Errorf("kind %d: timestamp %x", kind, got.timestamps)
			}
			ip, tcp := out[ethernet:ethernet+ipHeader], out[ethernet+ipHeader:]
			pseudo := append(append([]byte{}, ip[12:20]...), 0, 6, byte(len(tcp)>>8), byte(len(tcp)))
			if checksum(0, ip) != 0 || checksum(sum(0, pseudo), tcp) != 0 {
				t.Errorf("kind %d: wrong checksums", kind)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(frame(false))
	f.Add(frame(true))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parse(b); ok {
			s.stray(Beyond, s.seq)
		}
	})
}
