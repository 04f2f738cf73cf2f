// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// LookPath finds a program, also where an ordinary user has no PATH to it.
func LookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// maxOutput bounds what is read of a program's output.
const maxOutput = 64 << 20

const programTime = 20 * time.Second

// Program runs a program. in is its standard input. Its standard output is
// returned, also with an error.
type Program func(ctx context.Context, in []byte, path string, args ...string) ([]byte, error)

// Output keeps what is written to it, at most 64 MiB; more is an error.
type Output struct{ b bytes.Buffer }

// Bytes is all that was written.
func (b *Output) Bytes() []byte { return b.b.Bytes() }

// Write appends to the output.
func (b *Output) Write(p []byte) (int, error) {
	if b.b.Len()+len(p) > maxOutput {
		return 0, errors.New("too much output")
	}
	return b.b.Write(p)
}

// Run is a Program that runs for at most 20 s. An error has the first line of
// standard error.
func Run(ctx context.Context, in []byte, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out Output
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n")
		return out.Bytes(), fmt.Errorf("%s: %w: %s", filepath.Base(path), err, said)
	}
	return out.Bytes(), nil
}
