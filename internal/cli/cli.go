// SPDX-License-Identifier: Apache-2.0

// Package cli is the command rpush: its verbs and flags, what it says, and its
// exit codes. Results go to stdout, all else to stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rpush-go/rpush/pusher"
)

// The exit codes. A signal's is 128 and its number.
const (
	exitOK          = 0
	exitPermanent   = 1 // trying again changes nothing
	exitUsage       = 2
	exitInterrupted = 3 // the same command again continues
	exitFault       = 4 // doctor or probe --strict found what they look for
	exitBug         = 70
)

// stopWithin is how long a push may take to end after a signal.
const stopWithin = 2 * time.Second

// Main runs rpush and returns its exit code. environ is as of os.Environ; it
// decides what the RPUSH_ variables are, and nothing else.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	log.SetOutput(io.Discard) // net/http tells of connections that no request uses any more

	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // nohup rpush
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	// Whoever reads stdout or stderr may go away. That is an error of a write,
	// not the end of a push.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	defer signal.Stop(pipes)

	system, user := configFiles()
	a := &app{
		systemConfig: system, userConfig: user,
		stdin: stdin, stdout: stdout, out: &printer{w: stderr, last: time.Now()},
		env: map[string]string{}, signals: signals, push: push, probeFor: probeFor,
	}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		a.terminal = true
		a.size = func() (int, int) { return terminalSize(term.GetSize(int(f.Fd()))) }
	}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			a.env[k] = v
		}
	}
	return a.main(args)
}

// pushFunc is pusher.New and Push; tests have others.
type pushFunc func(context.Context, pusher.Options, name.Reference, remote.Taggable) (*pusher.Report, error)

func push(ctx context.Context, o pusher.Options, ref name.Reference, img remote.Taggable) (*pusher.Report, error) {
	p, err := pusher.New(o)
	if err != nil {
		return nil, err
	}
	return p.Push(ctx, ref, img)
}

// app is one run of rpush.
type app struct {
	stdin    io.Reader
	stdout   io.Writer
	out      *printer // stderr
	env      map[string]string
	signals  <-chan os.Signal
	terminal bool              // stderr is one
	size     func() (int, int) // of the terminal, in columns and rows; nil if there is none
	push     pushFunc
	probeFor time.Duration // how long a probe may take

	systemConfig, userConfig string // configuration files; empty is none

	exit int // set by the verb that ran

	// stopWithin, unless 0, is how long the verb that runs may take to end after a
	// signal, in nanoseconds.
	stopWithin atomic.Int64
	// relay, unless nil, gets the signals in place of the verb that runs.
	relay atomic.Pointer[func(os.Signal)]
}

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string { return "stopped by the signal " + e.signal.String() }

func (e *signalError) exit() int {
	n, _ := e.signal.(syscall.Signal)
	return 128 + int(n)
}

// main runs the command beside the signals. The first one asks it to end and
// gives it a moment, the second does not.
func (a *app) main(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	done := make(chan int, 1)
	go func() { done <- a.run(ctx, args) }()

	var stopped *signalError
	var late <-chan time.Time
	for {
		select {
		case code := <-done:
			return code
		case s := <-a.signals:
			if relay := a.relay.Load(); relay != nil {
				(*relay)(s)
				continue
			}
			if stopped != nil {
				return stopped.exit()
			}
			stopped = &signalError{s}
			a.out.line(stoppingWords(s))
			cancel(stopped)
			within := stopWithin
			if d := a.stopWithin.Load(); d > 0 {
				within = time.Duration(d)
			}
			timer := time.NewTimer(within)
			defer timer.Stop()
			late = timer.C
		case <-late:
			a.out.line(lateWords)
			return stopped.exit()
		}
	}
}

// run executes the command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) (code int) {
	defer func() {
		if r := recover(); r != nil {
			a.out.lines(bugWords(r, debug.Stack()))
			code = exitBug
		}
	}()
	cmd := a.command()
	cmd.SetArgs(spellOut(args))
	began := time.Now()
	if verb, err := cmd.ExecuteContextC(ctx); err != nil {
		// Whatever went wrong later has been said and is in a.exit.
		a.out.line(err.Error())
		a.out.line(usageHint)
		if pushes := verb == cmd || verb.Name() == "push"; pushes && asksForJSON(args, a.env) {
			a.written(writeDocument(a.stdout, usageDocument(err, began)))
		}
		return exitUsage
	}
	return a.exit
}

// asksForJSON reports whether a call that is wrong, so that its flags may not have
// been read, has --output json.
func asksForJSON(args []string, env map[string]string) bool {
	format := env[envName("output")]
	for i, arg := range args {
		switch {
		case arg == "--output" && i+1 < len(args):
			format = args[i+1]
		case strings.HasPrefix(arg, "--output="):
			format = strings.TrimPrefix(arg, "--output=")
		case arg == "--":
			return format == "json"
		}
	}
	return format == "json"
}

func (a *app) command() *cobra.Command {
	root := a.pushCommand("rpush [SOURCE] REFERENCE")
	root.Version = versionLine()
	root.PersistentPreRunE = a.configure
	root.SetVersionTemplate("{{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.out)

	root.AddCommand(a.pushCommand("push [SOURCE] REFERENCE"), a.sessionsCommand(), a.probeCommand(), a.doctorCommand(), a.gatewayCommand(), a.selfTestCommand(), a.versionCommand(), a.configCommand())
	return root
}

func (a *app) pushCommand(use string) *cobra.Command {
	var o options
	cmd := &cobra.Command{Use: use, Short: pushShort, Args: checkArgs}
	groups := o.pushFlags()
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.Flags().SetNormalizeFunc(alias)
	usual := cmd.HelpFunc()
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		if c != cmd { // completion has a help of its own
			usual(c, args)
			return
		}
		_, err := io.WriteString(a.stdout, helpText(pushHelp, groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.load(cmd.Flags(), a.env); err != nil {
			return err
		}
		if err := o.trusted(a.env); err != nil {
			return err
		}
		call, err := parseCall(args)
		if err != nil {
			return err
		}
		a.exit, err = a.pushImage(cmd.Context(), &o, call)
		return err
	}
	return cmd
}

func checkArgs(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return errors.New(noReference)
	case 1, 2:
		return nil
	default:
		if err := otherVerb(args); err != nil {
			return err
		}
		return fmt.Errorf(tooManyArguments, args[2])
	}
}

// written turns a failure to write a result into an exit code: somebody waits
// for a line that will not come.
func (a *app) written(err error) int {
	if err != nil {
		a.out.line(fmt.Sprintf(resultNotWritten, err))
		return exitPermanent
	}
	return exitOK
}

// isTerminal holds for a character device. That may also be /dev/null, where
// nobody minds.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
