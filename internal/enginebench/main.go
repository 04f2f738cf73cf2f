// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command enginebench sets rpush beside docker push: an image of the Docker
// engine to the same registry, in turns, and through resets. It prints figures
// and asserts none.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const mib = 1 << 20

func main() {
	bin := flag.String("rpush", "rpush", "the rpush to measure")
	rounds := flag.Int("rounds", 3, "pushes by each")
	flag.Parse()
	if err := run(context.Background(), *bin, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "enginebench:", err)
		os.Exit(1)
	}
}

// bench is an engine with an image, and a registry.
type bench struct {
	bin    string
	dir    string
	engine docker.Engine
	reg    *realreg.Registry
	image  string
	id     string
	n      int
}

// sample is one push.
type sample struct {
	wall, cpu time.Duration
	peak      int64 // bytes resident
	size      int64 // of the image at the registry
	err       error
}

func run(ctx context.Context, bin string, rounds int) error {
	command, ok := realreg.Find("docker")
	registry, ok2 := realreg.Find("registry")
	if !ok || !ok2 {
		return errors.New("docker and registry are needed")
	}
	b := &bench{bin: bin, engine: docker.Engine{Command: command}, image: fmt.Sprintf("rpush-bench-%d:1", os.Getpid())}
	if err := b.engine.Answers(ctx); err != nil {
		return err
	}
	var err error
	if b.dir, err = os.MkdirTemp("/var/tmp", "rpush-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.reg, err = realreg.Run(ctx, registry, filepath.Join(b.dir, "registry"), realreg.Options{}); err != nil {
		return err
	}
	defer b.reg.Stop()
	files := filepath.Join(b.dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		return err
	}
	defer b.docker("rmi", "-f", b.image) //nolint:errcheck // it may not be there
	err = b.engine.Build(ctx, files, b.image, "scratch", 1,
		docker.Layer{Text: 170 * mib}, docker.Layer{Random: 160 * mib}, docker.Layer{Text: 130 * mib, Random: 40 * mib})
	if err != nil {
		return err
	}
	os.RemoveAll(files)
	if b.id, err = b.engine.Run(ctx, "inspect", "-f", "{{.Id}}", b.image); err != nil {
		return err
	}
	if err := b.clean(rounds); err != nil {
		return err
	}
	return b.resets()
}

func (b *bench) docker(args ...string) (string, error) {
	return b.engine.Run(context.Background(), args...)
}

// push has one of them push to a repository of its own, without a cache; via is
// where the registry is reached.
func (b *bench) push(name, via string) (s sample) {
	b.n++
	path := fmt.Sprintf("bench/%s%d", name, b.n)
	ref := fmt.Sprintf("%s/%s:1", via, path)
	if _, err := b.docker("tag", b.image, ref); err != nil {
		return sample{err: err}
	}
	defer b.docker("rmi", ref) //nolint:errcheck // a tag
	home := filepath.Join(b.dir, "home")
	os.RemoveAll(home)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return sample{err: err}
	}
	// What one has sent must not be there for the other to mount.
	defer os.RemoveAll(filepath.Join(b.reg.Root, "docker", "registry", "v2", "blobs"))
	defer os.RemoveAll(filepath.Join(b.reg.Root, "docker", "registry", "v2", "repositories"))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.bin, "-q", "--output", "json", "--no-engine-update", ref)
	if name == "docker" {
		cmd = exec.CommandContext(ctx, b.engine.Command, "push", "-q", ref)
	}
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "DOCKER_HOST=" + os.Getenv("DOCKER_HOST")}
	began := time.Now()
	s.err = cmd.Run()
	s.wall = time.Since(began)
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.peak = u.Maxrss << 10
		s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if s.err == nil {
		s.size, s.err = b.arrived(path)
	}
	return s
}

// arrived compares the image ID, and adds up the layers.
func (b *bench) arrived(path string) (size int64, err error) {
	crane, ok := realreg.Find("crane")
	if !ok {
		return 0, errors.New("crane is needed")
	}
	out, err := exec.Command(crane, "manifest", b.reg.Addr+"/"+path+":1").Output()
	if err != nil {
		return 0, err
	}
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Size int64 }
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return 0, err
	}
	if m.Config.Digest != b.id {
		return 0, fmt.Errorf("the image at the registry is %s, not %s", m.Config.Digest, b.id)
	}
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}

func (b *bench) clean(rounds int) error {
	all := map[string][]sample{}
	for i := range rounds {
		order := []string{"rpush", "docker"}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, name := range order {
			s := b.push(name, b.reg.Addr)
			if s.err != nil {
				return fmt.Errorf("%s: %w", name, s.err)
			}
			all[name] = append(all[name], s)
		}
	}
	fmt.Printf("500 MiB in 3 layers, from the Docker engine, in turns, median (least) of %d\n\n", rounds)
	fmt.Printf("  %-8s %18s %12s %12s %12s\n", "", "wall", "at registry", "peak", "CPU")
	var wall [2]time.Duration
	for i, name := range []string{"rpush", "docker"} {
		ds := all[name]
		slices.SortFunc(ds, func(a, b sample) int { return int(a.wall - b.wall) })
		wall[i] = ds[len(ds)/2].wall
		peak, cpu := "the engine's", "the engine's"
		if name == "rpush" {
			peak = fmt.Sprintf("%.0f MiB", float64(ds[len(ds)/2].peak)/mib)
			cpu = fmt.Sprintf("%.2f s", ds[len(ds)/2].cpu.Seconds())
		}
		fmt.Printf("  %-8s %8.2f (%5.2f) s %8.1f MiB %12s %12s\n", name, wall[i].Seconds(), ds[0].wall.Seconds(), float64(ds[0].size)/mib, peak, cpu)
	}
	fmt.Printf("  %-8s %15.2f x\n\n", "ratio", float64(wall[0])/float64(wall[1]))
	return nil
}

// resets pushes over a link of 50 MiB/s, without and with a reset of every
// connection after 64 MiB.
func (b *bench) resets() error {
	const rate = 50 * mib
	fmt.Printf("over %d MiB/s, without and with every connection reset after 64 MiB\n\n", rate/mib)
	for _, name := range []string{"rpush", "docker"} {
		var took [2]sample
		var up int64
		var hit int
		for i, plan := range []proxy.Plan{nil, proxy.Every(64*mib, proxy.Fault{Kind: proxy.ResetClient})} {
			p, err := proxy.Start(b.reg.Addr, proxy.Options{Rate: rate, Plan: plan})
			if err != nil {
				return err
			}
			took[i] = b.push(name, p.Addr())
			up, hit = p.Stats().Up, p.Stats().Faults
			p.Close()
		}
		if took[0].err != nil {
			return fmt.Errorf("%s: %w", name, took[0].err)
		}
		with := fmt.Sprintf("%.2f s, %.2f x", took[1].wall.Seconds(), float64(took[1].wall)/float64(took[0].wall))
		if took[1].err != nil {
			with = "failed after " + took[1].wall.Round(time.Second).String()
		}
		fmt.Printf("  %-8s %8.2f s %24s %8.3f x sent (%d resets)\n", name, took[0].wall.Seconds(), with, float64(up)/float64(took[0].size), hit)
	}
	return nil
}
