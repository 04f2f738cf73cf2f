// SPDX-License-Identifier: Apache-2.0

// Package process runs the server programs of the tests on loopback.
package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// startTime bounds how long a program may take to answer.
const startTime = 20 * time.Second

// ErrEnded is in the error of Start when the program ended by itself.
var ErrEnded = errors.New("it ended")

// Process is a program that was started. Its methods may be called from any
// goroutine.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has been waited for
}

// Start runs cmd and returns when answers says that it serves. The context
// bounds the start only. Output has to go to files: nothing is copied.
func Start(ctx context.Context, cmd *exec.Cmd, answers func(context.Context) bool) (*Process, error) {
	name := filepath.Base(cmd.Path)
	noOrphan(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() { cmd.Wait(); close(p.done) }()

	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		if answers(ctx) {
			select {
			case <-p.done: // somebody else on that port answered
			default:
				return p, nil
			}
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("process: %s: %w: %s", name, ErrEnded, cmd.ProcessState)
		case <-ctx.Done():
			p.End(os.Interrupt, time.Second)
			return nil, fmt.Errorf("process: %s does not answer: %w", name, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// End sends the signal, and kills what has not ended after the grace. It
// returns when the process is gone, and may be called again.
func (p *Process) End(sig os.Signal, grace time.Duration) {
	select {
	case <-p.done:
		return
	default:
	}
	p.cmd.Process.Signal(sig)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.cmd.Process.Kill()
		<-p.done
	}
}

// Signal sends one to the process.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// FreePort is an address of loopback that was free a moment ago.
func FreePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// tries is how often a program is started whose port is taken.
const tries = 5

// OnFreePort calls start, which takes a port of FreePort and starts a program
// there. Somebody else may take the port before the program does: if log, what the
// program has said, complains of that, start is called again. The error has the
// last line of log.
func OnFreePort(start func() error, log func() string) error {
	for try := 1; ; try++ {
		err := start()
		if err == nil {
			return nil
		}
		said := log()
		if try == tries || !portTaken(said) {
			return fmt.Errorf("%w: %s", err, LastLine(said))
		}
	}
}

// Probe is the User-Agent of Answers.
const Probe = "test-probe"

// Answers is for Start: it reports whether a GET of the URL is answered, and good
// accepts the answer. nil accepts any.
func Answers(client *http.Client, url string, good func(*http.Response) bool) func(context.Context) bool {
	return func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		req.Header.Set("User-Agent", Probe)
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		res.Body.Close()
		return good == nil || good(res)
	}
}

func portTaken(log string) bool {
	return strings.Contains(strings.ToLower(log), "address already in use")
}

// LastLine is the end of a log.
func LastLine(log string) string {
	log = strings.TrimSpace(log)
	return log[strings.LastIndexByte(log, '\n')+1:]
}
