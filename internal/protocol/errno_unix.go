// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package protocol

import "syscall"

var breaks = []syscall.Errno{
	syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.ETIMEDOUT,
	syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	syscall.ENETDOWN, syscall.ENETRESET, syscall.EHOSTDOWN, syscall.ENOBUFS,
	syscall.EADDRNOTAVAIL, syscall.EMFILE, syscall.ENFILE,
}

// What of them ended a connection, and what was TCP's patience. The others keep
// connections from being made.
var (
	resets   = []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.ENETRESET}
	timeouts = []syscall.Errno{syscall.ETIMEDOUT}
)
