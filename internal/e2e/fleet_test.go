// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const stateKey = "RPUSH_STATE_KEY=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// redisClient connects a test to its Redis.
func redisClient(t *testing.T, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { c.Close() })
	return c
}

// endLeases is what time does to the leases of a machine that is gone.
func endLeases(t *testing.T, c *redis.Client) {
	t.Helper()
	leases, err := c.Keys(t.Context(), "rpush:*:lease").Result()
	if err == nil && len(leases) > 0 {
		err = c.Del(t.Context(), leases...).Err()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor returns when the condition holds.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not after a minute", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A push is killed on one machine after the other. Each has a home, a state
// directory and a cache of its own; only Redis is common to them.
func TestKilledOnOtherMachines(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	red := realreg.RunRedis(t, realreg.RedisOptions{})
	c := redisClient(t, red.Addr)
	img := binary.Layout(t, 60, 200*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{Rate: 60 * mib})
	machine := func() []string {
		return binary.Environ(t, "RPUSH_STATE=redis://"+red.Addr, stateKey)
	}
	args := []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"}
	random := rand.New(rand.NewPCG(1, 60))
	for range 20 {
		r := rpush.Start(t, machine(), args...)
		time.Sleep(time.Duration(20+random.IntN(300)) * time.Millisecond)
		r.Signal(syscall.SIGKILL)
		if res := r.End(); res.Exit != -1 {
			t.Fatalf("it ended with %d before it was killed\n%s", res.Exit, res.Stderr)
		}
		endLeases(t, c)
	}
	last := rpush.Push(t, machine(), args...)
	ratio := float64(p.Stats().Up) / float64(img.Total)
	t.Logf("sent %.4f x the image; the last machine went on at %d MiB", ratio, last.Report.Continued/mib)
	if ratio > 1.05 {
		t.Errorf("sent %.4f x the image, want at most 1.05", ratio)
	}
	left, err := c.Keys(t.Context(), "rpush:upload:*").Result()
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}

// Redis fails in the middle of a push, in each way that it can.
func TestRedisFails(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(t *testing.T, r *realreg.Redis)
	}{
		{"killed", func(_ *testing.T, r *realreg.Redis) { r.Stop() }},
		{"restarted empty", func(t *testing.T, r *realreg.Redis) { r.Restart(t) }},
		{"read-only", func(t *testing.T, r *realreg.Redis) {
			if err := redisClient(t, r.Addr).Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err(); err != nil {
				t.Fatal(err)
			}
		}},
		{"out of memory", func(t *testing.T, r *realreg.Redis) {
			if err := redisClient(t, r.Addr).ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
				t.Fatal(err)
			}
		}},
		{"stopped", func(t *testing.T, r *realreg.Redis) {
			r.Signal(t, syscall.SIGSTOP)
			t.Cleanup(func() { r.Signal(t, syscall.SIGCONT) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := realreg.Start(t, realreg.Options{})
			red := realreg.RunRedis(t, realreg.RedisOptions{})
			img := binary.Layout(t, 61, 30*mib, 20*mib, 2*mib)
			p := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.EveryTotal(16*mib, proxy.Fault{Kind: proxy.ResetClient})})
			p.Hold(10 * mib)
			r := rpush.Start(t, binary.Environ(t, "RPUSH_STATE=redis://"+red.Addr), "oci:"+img.Dir, p.Addr()+"/team/app:1")
			waitFor(t, "10 MiB", func() bool { return p.Stats().Up >= 9*mib })
			c.fail(t, red)
			p.Release()
			res := r.End()
			if res.Exit != 0 {
				t.Fatalf("exit %d\n%s", res.Exit, res.Stderr)
			}
			t.Logf("sent %.4f x the image", float64(p.Stats().Up)/float64(img.Total))
			binary.Same(t, img, reg.Addr+"/team/app:1")
		})
	}
}

// A Redis that answers slowly costs time and no bytes.
func TestSlowRedis(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	red := realreg.RunRedis(t, realreg.RedisOptions{})
	slow := binary.Through(t, red.Addr, proxy.Options{Delay: 200 * time.Millisecond})
	img := binary.Layout(t, 62, 20*mib, 2*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{})
	res := rpush.Push(t, binary.Environ(t, "RPUSH_STATE=redis://"+slow.Addr()), "oci:"+img.Dir, p.Addr()+"/team/app:1")
	if strings.Contains(res.Stderr, "warning") {
		t.Errorf("it warns:\n%s", res.Stderr)
	}
	if ratio := float64(p.Stats().Up) / float64(img.Total); ratio > 1.01 {
		t.Errorf("sent %.4f x the image", ratio)
	}
}

// The recipe of docs/fleet.md: TLS, and a user who may do no more than rpush
// needs.
func TestRedisWithTLSAndACL(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	red := realreg.RunRedis(t, realreg.RedisOptions{TLS: true, User: "user rpush on >secret " + documentedACL(t)})
	img := binary.Layout(t, 63, 20*mib, 2*mib)
	p := binary.Through(t, reg.Addr, proxy.Options{})
	_, port, _ := net.SplitHostPort(red.Addr)
	env := binary.Environ(t, "RPUSH_STATE=rediss://rpush:secret@127.0.0.1:"+port, "RPUSH_STATE_CA_FILE="+red.CAFile, stateKey)
	args := []string{"oci:" + img.Dir, p.Addr() + "/team/app:1"}
	p.Hold(10 * mib)
	r := rpush.Start(t, env, args...)
	waitFor(t, "10 MiB", func() bool { return p.Stats().Up >= 9*mib })
	r.Signal(syscall.SIGTERM)
	p.Release()
	if res := r.End(); res.Exit != 143 || strings.Contains(res.Stderr, "warning") {
		t.Fatalf("exit %d\n%s", res.Exit, res.Stderr)
	}
	sessions := rpush.Run(t, env, "sessions")
	if sessions.Exit != 0 {
		t.Fatalf("sessions: exit %d\n%s", sessions.Exit, sessions.Stderr)
	}
	res := rpush.Push(t, env, args...)
	if res.Report.Continued == 0 || strings.Contains(res.Stderr, "warning") {
		t.Errorf("%d bytes were continued\n%s", res.Report.Continued, res.Stderr)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
	for i, wrong := range []string{
		"RPUSH_STATE=rediss://rpush:wrong@127.0.0.1:" + port, "RPUSH_STATE=redis://rpush:secret@127.0.0.1:" + port,
	} {
		other := binary.Layout(t, 64+uint64(i), 2*mib)
		res := rpush.Push(t, binary.Environ(t, wrong, "RPUSH_STATE_CA_FILE="+red.CAFile), "oci:"+other.Dir, p.Addr()+"/team/other:1")
		if !strings.Contains(res.Stderr, "warning") || strings.Contains(res.Stderr, "secret") {
			t.Errorf("%s: want a warning without the password:\n%s", wrong, res.Stderr)
		}
	}
}

// documentedACL is the rule of docs/fleet.md.
func documentedACL(t *testing.T) string {
	t.Helper()
	const before = "ACL SETUSER rpush on >PASSWORD "
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "fleet.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rule, ok := strings.CutPrefix(line, before); ok {
			return strings.TrimSpace(rule)
		}
	}
	t.Fatal("docs/fleet.md has no rule for a user")
	return ""
}

// docs/fleet.md says how many operations a blob takes.
func TestRedisOperations(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	red := realreg.RunRedis(t, realreg.RedisOptions{})
	c := redisClient(t, red.Addr)
	img := binary.Layout(t, 70, 2*mib, 2*mib, 2*mib, 2*mib)
	operations := func() int {
		t.Helper()
		if err := c.ConfigResetStat(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		rpush.Push(t, binary.Environ(t, "RPUSH_STATE=redis://"+red.Addr), "oci:"+img.Dir, reg.Addr+"/team/app:1")
		stats, err := c.Info(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		for line := range strings.Lines(stats) {
			var n int
			name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
			if name == "eval" || name == "evalsha" {
				fmt.Sscanf(rest, "calls=%d,", &n)
				calls += n
			}
		}
		return calls
	}
	operations()
	operations() // Redis has all scripts now
	if again := operations(); again != 4 {
		t.Errorf("%d operations for four blobs that are there, want 4", again)
	}
	img = binary.Layout(t, 71, 2*mib, 2*mib, 2*mib, 2*mib)
	if first := operations(); first != 4*6 {
		t.Errorf("%d operations for four new blobs, want 24", first)
	}
}
