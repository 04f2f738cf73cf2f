// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Message is one netlink message of nf_tables without its header.
type Message struct {
	Family byte   `json:"family"`
	Data   []byte `json:"data"` // attributes
}

// Dump is all that is read of nf_tables.
type Dump struct {
	Chains   []Message `json:"chains"`
	Rules    []Message `json:"rules"`
	Sets     []Message `json:"sets"`
	Elements []Message `json:"elements"`
}

const (
	netlinkTime  = 10 * time.Second
	maxMessages  = 500_000
	maxElements  = 65_536
	nfgenmsgSize = 4
)

// Read asks the kernel. Without privileges it is refused.
func Read() (*Dump, error) {
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

func dumpNFT(c *netlink.Conn) (*Dump, error) {
	var d Dump
	for _, part := range []struct {
		ask int
		to  *[]Message
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

func dump(c *netlink.Conn, ask int, family byte, attrs []byte) ([]Message, error) {
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
	var all []Message
	for _, a := range answers {
		if len(a.Data) >= nfgenmsgSize {
			all = append(all, Message{a.Data[0], a.Data[nfgenmsgSize:]})
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
