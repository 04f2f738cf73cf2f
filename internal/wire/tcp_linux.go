// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout makes the kernel give up on bytes that nobody acknowledges.
// What the kernel accepted says nothing about what arrived.
func setUserTimeout(c *net.TCPConn, d time.Duration) {
	if d <= 0 {
		return
	}
	control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// acked is how many bytes the peer's kernel has acknowledged, -1 if unknown.
func acked(c net.Conn) int64 {
	n := int64(-1)
	if tc, ok := c.(*net.TCPConn); ok {
		control(tc, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				n = int64(info.Bytes_acked)
			}
			return err
		})
	}
	return n
}

// control ignores errors: all it is used for is better to have, not needed.
func control(c *net.TCPConn, f func(fd int) error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { f(int(fd)) }) //nolint:errcheck // see above
}
