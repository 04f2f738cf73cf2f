// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

// What each kind of break costs on each registry, for a layer of 150 MiB and three
// small ones. docs/registries.md has the figures. An upload may end early only if
// every break loses it, and then the message gives the measured number of bytes
// between two breaks.
//
// Without RPUSH_MATRIX=long it is one registry that loses uploads, under random
// resets.
func TestBreaks(t *testing.T) {
	sites := []struct {
		name   string
		start  func(t *testing.T) *site
		loses  bool // every upload whose connection breaks
		memory bool // a restart loses everything
	}{
		{name: "distribution 2", start: direct(two, realreg.Options{}), loses: true},
		{name: "distribution 2 on S3", start: onS3(two, false), loses: true},
		{name: "distribution 3", start: direct(three, realreg.Options{})},
		{name: "distribution 3 on S3", start: onS3(three, false)},
		{name: "distribution 3 on S3, no redirects", start: onS3(three, true)},
		{name: "go-containerregistry", start: inProcess, loses: true, memory: true},
		{name: "simulated: deletes the upload with the connection", start: simulated(scripted.Options{
			Store: scripted.Fragile, Status: scripted.GetOnly, Location: scripted.Relative,
		}), loses: true, memory: true},
	}
	both, client := proxy.Fault{Kind: proxy.ResetBoth}, proxy.Fault{Kind: proxy.ResetClient}
	columns := []struct {
		name            string
		plan            proxy.Plan
		random          bool
		killed, restart bool
	}{
		{name: "random, seed 1", plan: proxy.Seeded(1, 20e6, both), random: true},
		{name: "random, seed 2", plan: proxy.Seeded(2, 20e6, both), random: true},
		{name: "random, seed 3", plan: proxy.Seeded(3, 20e6, both), random: true},
		{name: "client reset every 32 MiB", plan: proxy.Every(32*mib, client)},
		{name: "both reset every 32 MiB", plan: proxy.Every(32*mib, both)},
		{name: "three answers lost", plan: proxy.First(3, proxy.Every(6*mib, proxy.Fault{Kind: proxy.LoseAnswer}))},
		{name: "killed", killed: true},
		{name: "registry restarted", restart: true},
	}
	if !isLong() {
		sites, columns = sites[:1], columns[:1]
	}
	for _, s := range sites {
		t.Run(s.name, func(t *testing.T) {
			at := s.start(t)
			for i, c := range columns {
				if s.memory && c.restart {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					sizes := []int64{150 * mib, 300_000, 20_000, 5}
					img := binary.Layout(t, uint64(500+i), sizes...)
					o := proxy.Options{Plan: c.plan}
					if c.killed || c.restart {
						o.Rate, o.Buffer = 40*mib, 256<<10
					}
					p := binary.Through(t, at.addr, o)
					env, flags := at.call(t, p.Addr())
					ref := fmt.Sprintf("/team/app:%d", i)
					args := slices.Concat(flags, []string{"-v", "oci:" + img.Dir, p.Addr() + ref})
					begin := time.Now()
					running := rpush.Start(t, env, args...)
					if c.killed || c.restart {
						for p.Stats().Up < 75*mib {
							time.Sleep(10 * time.Millisecond)
						}
					}
					if c.restart {
						if err := at.restart(); err != nil {
							t.Fatal(err)
						}
					}
					if c.killed {
						running.Signal(os.Kill)
						running.End()
						running = rpush.Start(t, env, args...)
					}
					r := running.End()
					st := p.Stats()
					ratio := float64(st.Up) / float64(img.Total)
					t.Logf("exit %d, forwarded %.3f x the image: %d faults on %d connections, %d resumes, %d restarts, %.1f s",
						r.Exit, ratio, st.Faults, st.Conns, r.Report.Resumes, r.Report.Restarts, time.Since(begin).Seconds())
					// The last try may take a layer more than three.
					if ratio > 4.1 {
						t.Errorf("forwarded %.3f x the image\n%s", ratio, excerpt(r.Stderr))
					}
					switch {
					case r.Exit == 0:
						binary.Same(t, img, at.addr+ref, at.env(t, at.addr)...)
					case r.Exit == 3 && s.loses && c.random:
						_, said, ok := strings.Cut(r.Stderr, "connections break every ")
						if said, _, _ = strings.Cut(said, "\n"); !ok {
							t.Errorf("the message does not give the bytes between breaks\n%s", excerpt(r.Stderr))
						}
						t.Logf("connections break every %s", said)
					default:
						t.Errorf("exit %d\n%s", r.Exit, excerpt(r.Stderr))
					}
				})
			}
		})
	}
}

// simulated is a registry of the tests' own over real sockets.
func simulated(o scripted.Options) func(t *testing.T) *site {
	return func(t *testing.T) *site {
		g := scripted.New(o)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: g, ErrorLog: log.New(io.Discard, "", 0)}
		go srv.Serve(ln)
		t.Cleanup(func() {
			srv.Close()
			g.Close()
		})
		return &site{addr: ln.Addr().String()}
	}
}
