// SPDX-License-Identifier: Apache-2.0

//go:build unix

package resume

import "syscall"

func syscallUmask(mask int) int { return syscall.Umask(mask) }
