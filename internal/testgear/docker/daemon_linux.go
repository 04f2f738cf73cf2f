// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// Daemon is an engine that the test started. It has to be one that runs apart:
// what a killed engine leaves running and mounted ends with the namespaces.
type Daemon struct {
	Engine
	// Socket is the path of its socket.
	Socket string
	// Args are further ones of dockerd, Env is beside the test's own. Both count
	// at the next Start.
	Args, Env []string

	dir  string
	proc *process.Process
}

// StartDaemon runs dockerd, with a containerd of its own, until the end of the
// test. Without the binary the test is skipped, see realreg.Tool.
func StartDaemon(t realreg.TB, args, env []string) *Daemon {
	t.Helper()
	d := &Daemon{dir: t.TempDir(), Args: args, Env: env}
	d.Socket = filepath.Join(d.dir, "docker.sock")
	d.Engine = Engine{Command: realreg.Tool(t, "docker"), Host: "unix://" + d.Socket}
	d.Start(t)
	t.Cleanup(func() {
		d.proc.End(os.Interrupt, 5*time.Second)
		for syscall.Unmount(d.data(), syscall.MNT_DETACH) == nil { // a killed one leaves its own
		}
		if t.Failed() {
			t.Logf("the engine's log:\n%s", d.log())
		}
	})
	return d
}

// Start runs it again after Kill, with the images it had.
func (d *Daemon) Start(t realreg.TB) {
	t.Helper()
	if err := d.start(realreg.Tool(t, "dockerd")); err != nil {
		t.Fatalf("%v\n%s", err, d.log())
	}
}

func (d *Daemon) start(bin string) error {
	// The machine's own settings are none of ours.
	config := filepath.Join(d.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// A killed one leaves its number behind.
	if err := os.Remove(filepath.Join(d.dir, "pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// So does its containerd, which is waited for if it is found.
	run, err := os.MkdirTemp(d.dir, "exec-")
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, append([]string{
		"--config-file", config, "--host", d.Host, "--pidfile", filepath.Join(d.dir, "pid"),
		"--data-root", d.data(), "--exec-root", run,
		"--bridge", "none",
		"--iptables=false", "--ip-forward=false", "--ip-masq=false",
	}, d.Args...)...)
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := process.Start(context.Background(), cmd, func(ctx context.Context) bool {
		return d.Answers(ctx) == nil
	})
	if err == nil {
		d.proc = p
	}
	return err
}

// Kill ends it as a crash does.
func (d *Daemon) Kill() { d.proc.End(syscall.SIGKILL, time.Second) }

func (d *Daemon) data() string { return filepath.Join(d.dir, "data") }

func (d *Daemon) logFile() string { return filepath.Join(d.dir, "log") }

func (d *Daemon) log() string {
	b, _ := os.ReadFile(d.logFile())
	return string(b)
}
