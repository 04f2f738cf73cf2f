// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// Podman is one with a storage of its own, and the socket that speaks docker's
// API. As Daemon, it has to be of a test that runs apart.
type Podman struct {
	Engine
	// Socket is the path of its socket.
	Socket string
	bin    string
	args   []string
	env    []string
}

// StartPodman serves the socket until the end of the test. It speaks plain HTTP
// to the registries named. Without the binary the test is skipped, see
// realreg.Tool.
func StartPodman(t realreg.TB, registries ...string) *Podman {
	t.Helper()
	dir := t.TempDir()
	p := &Podman{Socket: filepath.Join(dir, "podman.sock"), bin: realreg.Tool(t, "podman")}
	p.Engine = Engine{Command: realreg.Tool(t, "docker"), Host: "unix://" + p.Socket}
	conf := filepath.Join(dir, "registries.conf")
	text := ""
	for _, r := range registries {
		text += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	p.env = append(os.Environ(), "HOME="+dir, "CONTAINERS_REGISTRIES_CONF="+conf)
	p.args = []string{
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer log.Close()
	said := func() string { b, _ := os.ReadFile(log.Name()); return string(b) }
	cmd := p.command(context.Background(), "system", "service", "--time=0", p.Host)
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := process.Start(context.Background(), cmd, func(ctx context.Context) bool { return p.Answers(ctx) == nil })
	if err != nil {
		t.Fatalf("%v\n%s", err, said())
	}
	t.Cleanup(func() {
		proc.End(os.Interrupt, 5*time.Second)
		if t.Failed() {
			t.Logf("podman's log:\n%s", said())
		}
	})
	return p
}

func (p *Podman) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.bin, slices.Concat(p.args, args)...)
	cmd.Env = p.env
	return cmd
}

// Podman calls the command itself, on the same storage.
func (p *Podman) Podman(ctx context.Context, args ...string) error {
	if out, err := p.command(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Pipe is Podman with its output piped into a command.
func (p *Podman) Pipe(ctx context.Context, to *exec.Cmd, args ...string) error {
	from := p.command(ctx, args...)
	var errs, out strings.Builder
	from.Stderr, to.Stdout, to.Stderr = &errs, &out, &out
	pipe, err := from.StdoutPipe()
	if err != nil {
		return err
	}
	if err := from.Start(); err != nil {
		return err
	}
	to.Stdin = pipe
	err = to.Run()
	pipe.Close() // or podman would wait for one who reads
	if err := errors.Join(err, from.Wait()); err != nil {
		return fmt.Errorf("podman %s: %w: %s%s", strings.Join(args, " "), err, errs.String(), out.String())
	}
	return nil
}
