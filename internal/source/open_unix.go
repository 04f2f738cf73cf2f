// SPDX-License-Identifier: Apache-2.0

//go:build unix

package source

import "golang.org/x/sys/unix"

// nonblock keeps opening a named pipe from waiting for its other end.
const nonblock = unix.O_NONBLOCK
