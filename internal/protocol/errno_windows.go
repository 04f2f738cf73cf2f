// SPDX-License-Identifier: Apache-2.0

package protocol

import "syscall"

// Windows reports sockets' errors by numbers of its own, from winsock2.h.
var breaks = []syscall.Errno{
	10054, // WSAECONNRESET
	10053, // WSAECONNABORTED
	10060, // WSAETIMEDOUT
	10061, // WSAECONNREFUSED
	10064, // WSAEHOSTDOWN
	10065, // WSAEHOSTUNREACH
	10050, // WSAENETDOWN
	10051, // WSAENETUNREACH
	10052, // WSAENETRESET
	10055, // WSAENOBUFS
	10058, // WSAESHUTDOWN
	109,   // ERROR_BROKEN_PIPE
	64,    // ERROR_NETNAME_DELETED
	121,   // ERROR_SEM_TIMEOUT
	syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.ETIMEDOUT, syscall.ECONNREFUSED,
}

// What of them ended a connection, and what was TCP's patience. The others keep
// connections from being made.
var (
	resets   = []syscall.Errno{10054, 10053, 10052, 10058, 109, 64, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED}
	timeouts = []syscall.Errno{10060, 121, syscall.ETIMEDOUT}
)
