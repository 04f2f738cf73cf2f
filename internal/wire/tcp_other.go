// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package wire

import (
	"net"
	"time"
)

func setUserTimeout(*net.TCPConn, time.Duration) {}

func acked(net.Conn) int64 { return -1 }
