// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/gateway/setup"
	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/process"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

// What gateway setup prints, does and takes back, below a root of the test's own.
func TestGatewaySetup(t *testing.T) {
	env := binary.Environ(t)
	call := func(args ...string) (int, string, string) {
		t.Helper()
		var out, errs strings.Builder
		cmd := exec.CommandContext(t.Context(), string(rpush), append([]string{"gateway", "setup"}, args...)...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	root := t.TempDir()
	file := filepath.Join(root, "etc/buildkit/buildkitd.toml")
	if os.Geteuid() != 0 {
		require.Missing(t, "root sets up the files of root")
	}
	plan := []string{"buildkit", "--root", root}
	exit, printed, said := call(plan...)
	if exit != 0 || !strings.Contains(printed, "cat >> /etc/buildkit/buildkitd.toml") || !strings.Contains(printed, "nothing was changed") {
		t.Fatalf("exit %d\n%s%s", exit, printed, said)
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("a plan alone has written a file")
	}
	if exit, out, said := call(append(plan, "--apply")...); exit != 0 || !strings.Contains(out, "# done: write /etc/buildkit/buildkitd.toml") {
		t.Fatalf("--apply: exit %d\n%s%s", exit, out, said)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `[registry."localhost:5077"]`) {
		t.Fatalf("%v\n%s", err, b)
	}
	if exit, out, said := call(append(plan, "--undo", "--apply")...); exit != 0 || !strings.Contains(out, "# done: delete /etc/buildkit/buildkitd.toml") {
		t.Fatalf("--undo --apply: exit %d\n%s%s", exit, out, said)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) > 1 || len(left) == 1 && left[0].Name() != "var" {
		t.Errorf("undo left %v, %v", left, err)
	}
	// As it is printed it can be fed to a shell.
	script := strings.ReplaceAll(printed, " /etc/", " "+root+"/etc/")
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", "mkdir -p "+root+"/etc/buildkit\n"+script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if exit, out, _ := call(append(plan, "--gateway", "http://localhost:5078")...); exit != 0 {
		t.Errorf("beside a table of others: exit %d\n%s", exit, out)
	}
	if exit, out, _ := call(plan...); exit != 1 || !strings.Contains(out, "# refused: /etc/buildkit/buildkitd.toml") {
		t.Errorf("a table of others: exit %d\n%s", exit, out)
	}
	if exit, out, _ := call("kaniko", "registry.example"); exit != 0 || !strings.Contains(out, "--destination=localhost:5077/team/app:1") {
		t.Errorf("kaniko: exit %d\n%s", exit, out)
	}
	for _, args := range [][]string{{}, {"helm"}, {"docker"}, {"docker", "a/b"}, {"docker", "r.example", "x"}, {"kaniko", "--apply"}, {"podman", "--gateway", "x"}} {
		if exit, out, said := call(args...); exit != 2 || out != "" {
			t.Errorf("%v: exit %d\n%s%s", args, exit, out, said)
		}
	}
}

// skopeo pushes over plain HTTP once it is set up, and not before and after that.
// The line to the registry resets every connection.
func TestGatewaySetupSkopeo(t *testing.T) {
	skopeo := realreg.Tool(t, "skopeo")
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 311, 24*mib)
	line := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(8*mib, proxy.Fault{Kind: proxy.ResetClient})})
	s := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", line.Addr())
	home := t.TempDir()
	policy := filepath.Join(home, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	push := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), skopeo, "--policy", policy, "copy", "--preserve-digests", "oci:"+img.Dir, "docker://"+s.addr+"/team/app:1")
		cmd.Env = append(binary.Environ(t), "HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	o := setup.Options{Client: setup.Podman, Gateway: "http://" + s.addr, Config: filepath.Join(home, ".config"), State: home}
	apply := func(plan func(setup.Options) (*setup.Plan, error)) {
		t.Helper()
		p, err := plan(o)
		if err == nil {
			err = p.Apply()
		}
		if err != nil || len(p.Steps) != 1 {
			t.Fatalf("%v: %+v", err, p)
		}
	}
	if out, err := push(); err == nil {
		t.Errorf("it pushes before it is set up:\n%s", out)
	}
	apply(setup.Fix)
	if out, err := push(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if st := line.Stats(); st.Faults < 2 || float64(st.Up) > 1.02*float64(img.Total) {
		t.Errorf("%d resets, forwarded %.4f x the image", st.Faults, float64(st.Up)/float64(img.Total))
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
	apply(setup.Undo)
	if out, err := push(); err == nil {
		t.Errorf("it pushes after undo:\n%s", out)
	}
}

// ctr, a client of containerd, pushes by an unchanged name through the gateway
// that hosts.toml names.
func TestGatewaySetupContainerd(t *testing.T) {
	if os.Geteuid() != 0 {
		require.Missing(t, "containerd needs root")
	}
	containerd, ctr := realreg.Tool(t, "containerd"), realreg.Tool(t, "ctr")
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 312, 24*mib)
	line := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(8*mib, proxy.Fault{Kind: proxy.ResetClient})})
	s := serve(t, binary.Environ(t), "--listen", "127.0.0.1:0", "--upstream", line.Addr())

	dir, err := os.MkdirTemp("", "rpush-test-") // short, for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(conf, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	address := "--address=" + filepath.Join(dir, "c.sock")
	run := func(ctx context.Context, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, ctr, append([]string{address}, args...)...)
		cmd.Env = binary.Environ(t)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	cmd := exec.Command(containerd, "--config", conf, address, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"))
	cmd.Stdout, cmd.Stderr = log, log
	daemon, err := process.Start(t.Context(), cmd, func(ctx context.Context) bool {
		_, err := run(ctx, "version")
		return err == nil
	})
	if err != nil {
		b, _ := os.ReadFile(log.Name())
		t.Fatalf("%v\n%s", err, b)
	}
	t.Cleanup(func() { daemon.End(syscall.SIGTERM, time.Minute) })

	tar := filepath.Join(dir, "image.tar")
	if err := ocilayout.Tar(img.Dir, tar); err != nil {
		t.Fatal(err)
	}
	ref := line.Addr() + "/team/app:1"
	if out, err := run(t.Context(), "images", "import", "--no-unpack", "--index-name", ref, tar); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	push := func() (string, error) {
		return run(t.Context(), "images", "push", "--hosts-dir", filepath.Join(dir, "etc/containerd/certs.d"), ref)
	}
	o := setup.Options{Client: setup.Containerd, Registry: line.Addr(), Gateway: "http://" + s.addr, Root: dir}
	if out, err := push(); err == nil {
		t.Errorf("it pushes before it is set up:\n%s", out)
	}
	before := line.Stats()
	p, err := setup.Fix(o)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := push(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	st := line.Stats()
	if up := float64(st.Up - before.Up); st.Faults-before.Faults < 2 || up > 1.02*float64(img.Total) {
		t.Errorf("%d resets, forwarded %.4f x the image", st.Faults-before.Faults, up/float64(img.Total))
	}
	// ctr keeps the index of the layout, and pushes it under the tag.
	binary.Same(t, img, reg.Addr+"/team/app@"+img.Manifest.Digest)
}
