// SPDX-License-Identifier: Apache-2.0

// Command bench sets rpush beside crane, and go-containerregistry over the
// transport of package resume beside itself without: on a clean link, in turns,
// and on a slow link through resets. It prints figures and asserts none: machines differ
// and are noisy, ratios within one run less so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const mib = 1 << 20

// client is one of those compared: a binary and its arguments before REF.
type client struct {
	name string
	args func(dir, ref string) []string
	bin  string
}

// sample is one push.
type sample struct {
	wall, cpu time.Duration
	err       error
}

type bench struct {
	dir    string
	rounds int
	pushes int
	rpush  client
	crane  client
}

func main() {
	bin := flag.String("rpush", "rpush", "the rpush to measure")
	rounds := flag.Int("rounds", 9, "pushes by each client on the clean link")
	transport := flag.Bool("transport", true, "measure the transport too")
	one := flag.String("one", "", "push one image as a client of this kind, plain or resuming, instead of measuring")
	at := flag.String("dir", "", "where images and registry go; default is memory where there is some")
	flag.Parse()
	if *one != "" {
		if err := write(flag.Arg(0), flag.Arg(1), *one == "resuming"); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if *at == "" {
		if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
			*at = "/dev/shm" // a disk would be measured instead
		}
	}
	if err := run(*bin, *at, *rounds, *transport); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(bin, at string, rounds int, transport bool) error {
	dir, err := os.MkdirTemp(at, "rpush-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	registry, ok1 := realreg.Find("registry")
	crane, ok2 := realreg.Find("crane")
	if !ok1 || !ok2 {
		return errors.New("registry and crane are needed: make tools")
	}
	b := &bench{
		dir: dir, rounds: rounds,
		rpush: client{"rpush", func(dir, ref string) []string { return []string{"-q", "oci:" + dir, ref} }, bin},
		crane: client{"crane", func(dir, ref string) []string { return []string{"push", dir, ref} }, crane},
	}
	reg, err := realreg.Run(context.Background(), registry, filepath.Join(dir, "registry"), realreg.Options{})
	if err != nil {
		return err
	}
	defer reg.Stop()
	if transport {
		if err := b.transport(reg); err != nil {
			return err
		}
	}
	for i, sizes := range [][]int64{{256 * mib}, {64 * mib, 64 * mib, 64 * mib, 64 * mib}} {
		img, err := ocilayout.Write(filepath.Join(dir, fmt.Sprint("image", i)), uint64(i), sizes...)
		if err != nil {
			return err
		}
		if err := b.clean(img, reg, b.rpush, b.crane); err != nil {
			return err
		}
		os.RemoveAll(img.Dir)
	}
	img, err := ocilayout.Write(filepath.Join(dir, "image"), 7, 200*mib)
	if err != nil {
		return err
	}
	return b.resets(img, reg)
}

// push has a client push to a repository of its own.
func (b *bench) push(c client, img ocilayout.Image, addr string) sample {
	b.pushes++
	ref := fmt.Sprintf("%s/bench/%s%d:1", addr, c.name, b.pushes)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, c.args(img.Dir, ref)...)
	began := time.Now()
	err := cmd.Run()
	return sample{wall: time.Since(began), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err: err}
}

// clean pushes in turns, each time in the other order, after a round that is
// not counted.
func (b *bench) clean(img ocilayout.Image, reg *realreg.Registry, one, other client) error {
	all := map[string][]sample{}
	for i := -1; i < b.rounds; i++ {
		order := []client{one, other}
		if i%2 == 0 {
			slices.Reverse(order)
		}
		for _, c := range order {
			s := b.push(c, img, reg.Addr)
			if s.err != nil {
				return fmt.Errorf("%s: %w", c.name, s.err)
			}
			if i >= 0 {
				all[c.name] = append(all[c.name], s)
			}
		}
	}
	fmt.Printf("clean link, %d x %d MiB, median (least) of %d\n\n", len(img.Layers), img.Layers[0].Size/mib, b.rounds)
	fmt.Printf("  %-8s %18s %20s\n", "", "wall", "CPU")
	var wall, cpu [2]time.Duration
	for i, c := range []client{one, other} {
		var least [2]time.Duration
		wall[i], least[0] = median(all[c.name], func(s sample) time.Duration { return s.wall })
		cpu[i], least[1] = median(all[c.name], func(s sample) time.Duration { return s.cpu })
		fmt.Printf("  %-8s %8.0f (%4.0f) ms %10.1f (%4.1f) ms\n", c.name, ms(wall[i]), ms(least[0]), ms(cpu[i]), ms(least[1]))
	}
	fmt.Printf("  %-8s %15.2f x %18.2f x\n\n", "ratio", float64(wall[0])/float64(wall[1]), float64(cpu[0])/float64(cpu[1]))
	return nil
}

// resets pushes over a link of 50 MiB/s, without and with 20 resets.
func (b *bench) resets(img ocilayout.Image, reg *realreg.Registry) error {
	const rate, resets = 50 * mib, 20
	fmt.Printf("%d MiB over %d MiB/s, without and with up to %d resets\n\n", img.Total/mib, rate/mib, resets)
	fmt.Printf("  %-8s %10s %12s %8s %11s\n", "", "without", "with", "ratio", "forwarded")
	for _, c := range []client{b.rpush, b.crane} {
		var took [2]sample
		var forwarded float64
		var hit int
		for i, plan := range []proxy.Plan{nil, proxy.First(resets, proxy.Every(img.Total/(resets+1), proxy.Fault{Kind: proxy.ResetClient}))} {
			p, err := proxy.Start(reg.Addr, proxy.Options{Rate: rate, Plan: plan})
			if err != nil {
				return err
			}
			took[i] = b.push(c, img, p.Addr())
			forwarded, hit = float64(p.Stats().Up)/float64(img.Total), p.Stats().Faults
			p.Close()
		}
		if took[0].err != nil {
			return fmt.Errorf("%s: %w", c.name, took[0].err)
		}
		with, ratio := fmt.Sprintf("%.2f s", took[1].wall.Seconds()), fmt.Sprintf("%.2f x", float64(took[1].wall)/float64(took[0].wall))
		if took[1].err != nil {
			with, ratio = "failed", "-"
		}
		fmt.Printf("  %-8s %8.2f s %12s %8s %9.3f x  (%d resets)\n", c.name, took[0].wall.Seconds(), with, ratio, forwarded, hit)
	}
	fmt.Println()
	return nil
}

func median(all []sample, of func(sample) time.Duration) (mid, least time.Duration) {
	var ds []time.Duration
	for _, s := range all {
		ds = append(ds, of(s))
	}
	slices.Sort(ds)
	return ds[len(ds)/2], ds[0]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
