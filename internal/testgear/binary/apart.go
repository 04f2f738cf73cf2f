// SPDX-License-Identifier: Apache-2.0

//go:build linux

package binary

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

// inside is set in a process that has namespaces of its own.
const inside = "RPUSH_LAB"

// Apart runs the rest of the test in a process with network, mount and process
// namespaces of its own. It returns true there. What the test does to the
// network and mounts, and all processes it leaves behind, end with it. /run is
// empty.
func (b Rpush) Apart(t *testing.T, tools ...string) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			require.Missing(t, "mount /: %v", err)
		}
		Mount(t, "tmpfs", "/run")
		Mount(t, "proc", "/proc")
		return true
	}
	if os.Geteuid() != 0 {
		require.Missing(t, "it takes root")
	}
	for _, tool := range tools {
		realreg.Tool(t, tool)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		require.Missing(t, "no namespaces here: %v", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in its namespaces: %v", err)
	}
	return false
}

// Mount puts an empty file system of a kind at a directory, in a test that runs
// apart.
func Mount(t testing.TB, kind, at string) {
	t.Helper()
	data := ""
	if kind == "tmpfs" {
		data = "mode=755"
	}
	if err := unix.Mount(kind, at, kind, 0, data); err != nil {
		require.Missing(t, "mount %s: %v", at, err)
	}
}
