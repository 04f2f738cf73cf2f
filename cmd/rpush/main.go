// SPDX-License-Identifier: Apache-2.0

// Command rpush pushes container images with uploads that continue after a
// broken connection.
package main

import (
	"os"

	"github.com/rpush-go/rpush/internal/cli"
)

func main() {
	os.Exit(cli.Run(os.Args, os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}
