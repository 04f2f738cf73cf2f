// SPDX-License-Identifier: Apache-2.0

// Package trial puts the example programs on trial: a real registry behind
// connections that die.
package trial

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// MiB is 2^20 bytes.
const MiB = 1 << 20

// Image writes an OCI image layout of one layer per size.
func Image(t *testing.T, seed uint64, sizes ...int64) ocilayout.Image {
	t.Helper()
	img, err := ocilayout.Write(filepath.Join(t.TempDir(), "image"), seed, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Dying is an address whose connections to target each die after n bytes.
func Dying(t *testing.T, target string, n int64) *proxy.Proxy {
	t.Helper()
	p, err := proxy.Start(target, proxy.Options{Plan: proxy.Every(n, proxy.Fault{Kind: proxy.ResetClient})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Build makes the program in the test's directory.
func Build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "program")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// Run runs a program and returns its exit code and all that it said.
func Run(t *testing.T, env []string, bin string, args ...string) (exit int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append(cmd.Environ(), env...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

// Push is an example under trial: it pushes the image in dir to reference, with
// the transport or without.
type Push func(dir, reference string, resuming bool) error

// Arrives has 200 MiB pushed to distribution 3 through connections that die
// every 32 MiB: with the transport they arrive, for at most 1.02 times their
// bytes; without it the same push fails.
func Arrives(t *testing.T, push Push) {
	t.Helper()
	through(t, realreg.Start(t, realreg.Options{}), "", push, 1.02)
}

func through(t *testing.T, reg *realreg.Registry, front string, push Push, most float64) {
	t.Helper()
	if front == "" {
		front = reg.Addr
	}
	img := Image(t, 11, 200*MiB)
	p := Dying(t, front, 32*MiB)
	if err := push(img.Dir, p.Addr()+"/plain/app:1", false); err == nil {
		t.Fatal("it arrives without the transport too: what is tested?")
	} else {
		t.Logf("without the transport: %v", shown(err))
	}
	before := p.Stats()
	if err := push(img.Dir, p.Addr()+"/resuming/app:1", true); err != nil {
		t.Fatalf("with the transport: %v", err)
	}
	s := p.Stats()
	ratio := float64(s.Up-before.Up) / float64(img.Total)
	t.Logf("with the transport: %.4f x the image forwarded, %d connections died", ratio, s.Faults-before.Faults)
	if ratio > most {
		t.Errorf("forwarded %.4f x the image, want at most %.2f", ratio, most)
	}
	Same(t, img, reg.Addr+"/resuming/app:1")
}

// ArrivesBehind is Arrives with another registry, or a proxy in front of it.
func ArrivesBehind(t *testing.T, reg *realreg.Registry, front string, push Push, most float64) {
	t.Helper()
	through(t, reg, front, push, most)
}

// Same pulls reference with crane and compares it with the image.
func Same(t *testing.T, img ocilayout.Image, reference string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pulled")
	if out, err := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), "pull", "--format=oci", reference, dir).CombinedOutput(); err != nil {
		t.Fatalf("crane pull: %v\n%s", err, out)
	}
	if err := ocilayout.Compare(img.Dir, dir); err != nil {
		t.Error(err)
	}
}

// shown is the cause: what comes before may quote an upload location.
func shown(err error) string {
	s := err.Error()
	return s[strings.LastIndex(s, `": `)+1:]
}
