// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package cli

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

const dockerProgram = "docker"

func isProgram(fi os.FileInfo) bool { return fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 }

// become replaces this process by another program. It returns only if that
// fails.
func become(path string, argv []string, stderr io.Writer) int {
	err := syscall.Exec(path, argv, os.Environ()) //nolint:gosec // it is what the user called
	fmt.Fprintf(stderr, "rpush: %s: %v\n", path, err)
	return 126 // as a shell that may not run a command
}
