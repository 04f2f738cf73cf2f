// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
)

const dockerProgram = "docker.exe"

func isProgram(fi os.FileInfo) bool { return fi.Mode().IsRegular() }

// become runs another program in place of this one, and returns its exit code.
func become(path string, argv []string, stderr io.Writer) int {
	signal.Ignore(os.Interrupt) // it is for the other program, which gets it too
	cmd := exec.Command(path, argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintf(stderr, "rpush: %s: %v\n", path, err)
	return 126
}
