// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
)

// traced is what became of a connection made from here.
type traced struct {
	// back: it came in again, for another address of this machine, and was
	// translated.
	back bool
}

// mostFlows bounds the memory that looking through the table takes.
const mostFlows = 200_000

var errCrowded = fmt.Errorf("the conntrack table has more than %d entries", mostFlows)

// trace connects, and looks for the connection in the conntrack table.
func trace(ctx context.Context, to netip.AddrPort, own []netip.Addr) (traced, error) {
	if n, err := host.ThisHost().ReadNumber(host.Sysctls + "nf_conntrack_count"); err != nil || n > mostFlows {
		return traced{}, errors.Join(err, errCrowded)
	}
	d := net.Dialer{Timeout: 3 * time.Second}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return traced{}, err
	}
	defer c.Close()
	from, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return traced{}, err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		return traced{}, err
	}
	for _, f := range flows {
		if f.Forward.Protocol != unix.IPPROTO_TCP || f.Forward.SrcPort != from.Port() || f.Forward.DstPort != to.Port() {
			continue
		}
		came, ok := netip.AddrFromSlice(f.Forward.DstIP)
		answers, ok1 := netip.AddrFromSlice(f.Reverse.SrcIP)
		came, answers = came.Unmap(), answers.Unmap()
		if ok && ok1 && slices.Contains(own, came) && came != to.Addr() && answers != came {
			return traced{back: true}, nil
		}
	}
	return traced{}, nil
}
