// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// through calls rpush gateway run with flags and a command, and returns its exit
// code and what both said on stderr.
func through(t *testing.T, env []string, args ...string) (int, string, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, string(rpush), append([]string{"gateway", "run"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// Clients that know nothing of rpush push through a line that resets every
// connection, to a registry with TLS and passwords. Without it they give up.
func TestClientsThroughTheGateway(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{TLS: true, BasicAuth: true, Names: []string{"reg.example"}})
	crane, skopeo := realreg.Tool(t, "crane"), realreg.Tool(t, "skopeo")
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	img := binary.Layout(t, 61, 40*mib, 3*mib)
	for name, push := range map[string]func(ref string) []string{
		"crane": func(ref string) []string { return []string{crane, "push", img.Dir, ref} },
		"skopeo": func(ref string) []string {
			return []string{skopeo, "--policy", policy, "copy", "--preserve-digests", "oci:" + img.Dir, "docker://" + ref}
		},
	} {
		t.Run(name, func(t *testing.T) {
			setup := func() (*proxy.Proxy, []string) {
				line := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(8*mib, proxy.Fault{Kind: proxy.ResetClient})})
				corporate := binary.StartForward(t, "127.0.0.1:0", map[string]string{"reg.example:443": line.Addr()})
				login := binary.Login(t, "reg.example")
				_, dir, _ := strings.Cut(login, "=")
				return line, binary.Environ(t, login, "REGISTRY_AUTH_FILE="+filepath.Join(dir, "config.json"),
					"SSL_CERT_FILE="+reg.CAFile, "HTTPS_PROXY=http://"+corporate.Addr)
			}
			line, env := setup()
			args := push("reg.example/" + name + "/alone:1")
			alone := exec.CommandContext(t.Context(), args[0], args[1:]...)
			alone.Env = env
			if out, err := alone.CombinedOutput(); err == nil {
				t.Errorf("it arrives without the gateway, with %.2f x the bytes\n%s", float64(line.Stats().Up)/float64(img.Total), out)
			}

			line, env = setup()
			args = push("reg.example/" + name + "/app:1")
			exit, _, said := through(t, env, append([]string{"--"}, args...)...)
			s := line.Stats()
			ratio := float64(s.Up) / float64(img.Total)
			t.Logf("%d resets, forwarded %.4f x the image\n%s", s.Faults, ratio, said)
			if exit != 0 || s.Faults < 4 || ratio > 1.02 {
				t.Errorf("exit %d, %d resets, forwarded %.4f x the image, want at most 1.02", exit, s.Faults, ratio)
			}
			if !strings.Contains(said, "breaks survived") {
				t.Errorf("nothing is said of the breaks:\n%s", said)
			}
			binary.Same(t, img, reg.Addr+"/"+name+"/app:1", "SSL_CERT_FILE="+reg.CAFile, binary.Login(t, reg.Addr))
		})
	}
}

// The command keeps its streams, its exit code and its signals.
func TestCommandOfTheGatewayIsItsOwn(t *testing.T) {
	env := binary.Environ(t, "MINE=1")
	sh := func(script string) []string { return []string{"--registry", "reg.example", "--", "sh", "-c", script} }
	for name, c := range map[string]struct {
		args []string
		exit int
		out  string
	}{
		"output":      {sh("echo out; echo $MINE; echo err >&2"), 0, "out\n1\n"},
		"exit code":   {sh("exit 42"), 42, ""},
		"a signal":    {sh("kill -TERM $$"), 128 + 15, ""},
		"not there":   {[]string{"--registry", "reg.example", "--", "no-such-command"}, 127, ""},
		"no program":  {[]string{"--registry", "reg.example", "--", os.TempDir() + "/"}, 126, ""},
		"no command":  {[]string{"--registry", "reg.example"}, 2, ""},
		"no registry": {[]string{"--", "true"}, 2, ""},
		"a daemon's":  {[]string{"--registry", "reg.example", "--", "docker", "push", "reg.example/app"}, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			exit, out, said := through(t, env, c.args...)
			if exit != c.exit || out != c.out {
				t.Errorf("exit %d, stdout %q, want %d, %q\n%s", exit, out, c.exit, c.out, said)
			}
		})
	}

	cmd := exec.CommandContext(t.Context(), string(rpush), append([]string{"gateway", "run"}, sh("trap 'echo stopped; exit 7' TERM; echo ready; while :; do sleep 0.1; done")...)...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest := new(bytes.Buffer)
	_, _ = rest.ReadFrom(out)
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 7 || rest.String() != "stopped\n" {
		t.Errorf("exit %d, %q", cmd.ProcessState.ExitCode(), rest.String())
	}
}

// Nothing is left behind, and no secret is written where others can read it.
func TestGatewayRunLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	env := slices.DeleteFunc(binary.Environ(t), func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR=") })
	env = append(env, "TMPDIR="+tmp)
	_, out, said := through(t, env, "--registry", "reg.example", "--", "sh", "-c", `stat -c %a "$(dirname "$SSL_CERT_FILE")"; grep -c PRIVATE "$SSL_CERT_FILE"; env`)
	if !strings.HasPrefix(out, "700\n0\n") {
		t.Errorf("%s\n%s", out, said)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
