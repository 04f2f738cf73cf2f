// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
)

const (
	chaosRuns   = 10
	slowRuns    = 2 // of slow sites
	chaosTime   = 3 * time.Second
	chaosFaults = 12

	// A run that takes longer is worth a look.
	slow = 15 * time.Second
)

// storm gives the connections faults of all kinds, at any point of a request
// or an answer, until it is over.
func storm(seed uint64, until time.Time) proxy.Plan {
	kinds := []proxy.Kind{proxy.ResetClient, proxy.ResetBoth, proxy.Cut, proxy.Stall, proxy.LoseAnswer}
	return proxy.First(chaosFaults, func(conn int) proxy.Fault {
		if time.Now().After(until) {
			return proxy.Fault{}
		}
		r := rand.New(rand.NewPCG(seed, uint64(conn)))
		// A stall ends at last. go-containerregistry's registry can do nothing
		// else meanwhile.
		f := proxy.Fault{Kind: kinds[r.IntN(len(kinds))], For: time.Duration(500+r.IntN(2500)) * time.Millisecond}
		switch r.IntN(7) {
		case 0: // as it is accepted
		case 1:
			f.AtDown = 1 + r.Int64N(5000)
		case 2:
			f.Age = time.Duration(1+r.IntN(1000)) * time.Millisecond
		case 3:
			f.At = 1 + r.Int64N(3000)
		default:
			f.At = 1 + int64(r.ExpFloat64()*1.5*mib)
		}
		// What has not struck by then strikes as the storm ends.
		if left := time.Until(until); f.Age <= 0 && (f.At > 0 || f.AtDown > 0) || f.Age > left {
			f.Age = max(left, 1)
		}
		return f
	})
}

// Through anything that happens for a while, the image arrives. RPUSH_CHAOS_SEED
// is the seed of the first run, RPUSH_CHAOS_RUNS their number.
func TestChaos(t *testing.T) {
	first, runs := setting(t, "RPUSH_CHAOS_SEED", 1), setting(t, "RPUSH_CHAOS_RUNS", chaosRuns)
	for _, s := range setups() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			at, runs := s.start(t), runs
			if s.slow && !isLong() {
				runs = min(runs, slowRuns)
			}
			for seed := first; seed < first+runs; seed++ {
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { chaos(t, at, seed) })
			}
		})
	}
}

func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func chaos(t *testing.T, at *site, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1<<40)) // a connection has its own number
	left := int64(12 * mib)
	var sizes []int64
	for range 3 {
		n := r.Int64N(left)
		sizes, left = append(sizes, n), left-n
	}
	img := binary.Layout(t, 1000+seed, sizes...)

	begin := time.Now()
	var mu sync.Mutex
	var told strings.Builder
	tell := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&told, "%s %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, args...))
	}
	o := proxy.Options{
		Rate: 20 * mib,
		Plan: storm(seed, begin.Add(chaosTime)),
		OnFault: func(conn int, f proxy.Fault) {
			tell("connection %d: %s at %d up, %d down, age %v, for %v", conn, f.Kind, f.At, f.AtDown, f.Age, f.For)
		},
	}
	if r.IntN(2) == 0 {
		o.Buffer = 128 << 10
	}
	if r.IntN(3) == 0 {
		o.Delay = time.Duration(1+r.IntN(20)) * time.Millisecond
	}
	p := binary.Through(t, at.addr, o)

	restarted := make(chan error, 1)
	if r.IntN(3) == 0 {
		time.AfterFunc(time.Duration(100+r.IntN(1500))*time.Millisecond, func() {
			tell("the registry is killed")
			err := at.restart()
			tell("the registry is back: %v", err)
			restarted <- err
		})
	} else {
		restarted <- nil
	}

	env, flags := at.call(t, p.Addr())
	repo := fmt.Sprintf("/team/chaos-%d:1", seed)
	res := rpush.Run(t, env, slices.Concat(flags, []string{"-v", "--stall-timeout", "1s", "--answer-timeout", "3s",
		"--deadline", "60s", "oci:" + img.Dir, p.Addr() + repo})...)
	took := time.Since(begin)
	if err := <-restarted; err != nil {
		t.Fatalf("seed %d: the registry does not start again: %v", seed, err)
	}
	st := p.Stats()
	t.Logf("%d faults on %d connections, %d breaks, %d resumes, %d restarts, forwarded %.2f x the image, %.1f s",
		st.Faults, st.Conns, res.Report.Breaks, res.Report.Resumes, res.Report.Restarts, float64(st.Up)/float64(img.Total), took.Seconds())
	t.Cleanup(func() {
		if t.Failed() || took > slow {
			mu.Lock()
			defer mu.Unlock()
			t.Logf("seed %d, layers of %v\n%s\n%s", seed, sizes, told.String(), excerpt(res.Stderr))
		}
	})
	if res.Exit != 0 {
		t.Fatalf("seed %d: exit %d after %.1f s", seed, res.Exit, took.Seconds())
	}
	binary.Same(t, img, at.addr+repo, at.env(t, at.addr)...)
}
