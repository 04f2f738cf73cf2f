// SPDX-License-Identifier: Apache-2.0

// Command demo pushes an image to a real registry through a proxy that resets
// every connection, has crane read it back, and compares all of it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const mib = 1 << 20

func main() {
	bin := flag.String("rpush", "rpush", "the rpush to show")
	size := flag.Int64("size", 256, "size of the layer, in MiB")
	every := flag.Int64("every", 32, "reset each connection after so many MiB")
	rate := flag.Int64("rate", 64, "speed of the link, in MiB/s")
	flag.Parse()
	if err := demo(*bin, *size*mib, *every*mib, *rate*mib); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(bin string, size, every, rate int64) error {
	dir, err := os.MkdirTemp("", "rpush-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	registry, ok1 := realreg.Find("registry")
	crane, ok2 := realreg.Find("crane")
	if !ok1 || !ok2 {
		return errors.New("registry and crane are needed: make tools")
	}
	say("making an image with a layer of %d MiB", size/mib)
	img, err := ocilayout.Write(filepath.Join(dir, "image"), uint64(os.Getpid()), size)
	if err != nil {
		return err
	}
	reg, err := realreg.Run(context.Background(), registry, filepath.Join(dir, "registry"), realreg.Options{})
	if err != nil {
		return err
	}
	defer reg.Stop()
	p, err := proxy.Start(reg.Addr, proxy.Options{
		Rate: rate, Plan: proxy.Every(every, proxy.Fault{Kind: proxy.ResetClient}),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	say("distribution 3.1.1 listens on %s", reg.Addr)
	say("a proxy on %s resets every connection after %d MiB", p.Addr(), every/mib)

	args := []string{"--output", "json", "oci:" + img.Dir, p.Addr() + "/demo/app:1"}
	say("rpush oci:image %s/demo/app:1", p.Addr())
	var out bytes.Buffer
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("rpush: %w", err)
	}
	took := time.Since(began)
	var report struct{ BreakCount, Resumes, Restarts int }
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		return err
	}

	say("crane pulls it back, straight from the registry")
	pulled := filepath.Join(dir, "pulled")
	pull := exec.Command(crane, "pull", "--format=oci", reg.Addr+"/demo/app:1", pulled)
	pull.Stdout, pull.Stderr = io.Discard, os.Stderr
	if err := pull.Run(); err != nil {
		return fmt.Errorf("crane pull: %w", err)
	}
	if err := ocilayout.Compare(img.Dir, pulled); err != nil {
		return fmt.Errorf("what arrived is not what was sent: %w", err)
	}
	s := p.Stats()
	if s.Faults == 0 {
		return errors.New("no connection was reset")
	}
	fmt.Printf(`
  image        %.1f MiB, manifest %.19s...
  resets       %d; %d breaks noticed, %d resumes, %d restarts
  forwarded    %.1f MiB = %.4f x the image
  time         %.1f s; the link alone needs %.1f s
  peak memory  %.1f MiB
  read back    identical, byte for byte

`, float64(img.Total)/mib, img.Manifest.Digest,
		s.Faults, report.BreakCount, report.Resumes, report.Restarts,
		float64(s.Up)/mib, float64(s.Up)/float64(img.Total),
		took.Seconds(), float64(img.Total)/float64(rate),
		float64(peak(cmd.ProcessState))/mib)
	return nil
}

func say(format string, args ...any) { fmt.Printf("demo: "+format+"\n", args...) }
