//go:build unix

package resume

import "syscall"

func syscallUmask(mask int) int { return syscall.Umask(mask) }
