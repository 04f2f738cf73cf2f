// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

// serveGateway serves one registry at an address.
func serveGateway(t *testing.T, o gateway.Options, upstream, addr string) *httptest.Server {
	t.Helper()
	g, err := gateway.New(o)
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.To(gateway.Upstream{URL: &url.URL{Scheme: "http", Host: upstream}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// docker push is killed at random moments in the middle of a layer, and so is the
// gateway: twice, or ten times with RPUSH_MATRIX=long. The registry gets each byte
// hardly more than once.
func TestDockerPushKilled(t *testing.T) {
	kills, size := 2, int64(48*mib)
	if os.Getenv("RPUSH_MATRIX") == "long" {
		kills, size = 10, 200*mib
	}
	random := rand.New(rand.NewPCG(202, 0))
	l := start(t, realreg.Options{})
	line := binary.Through(t, l.reg.Addr, proxy.Options{Rate: 20 * mib, Buffer: 256 << 10})
	dir := t.TempDir()
	options := func() gateway.Options { return gateway.Options{Store: resume.NewFileStore(dir)} }
	srv := serveGateway(t, options(), line.Addr(), "127.0.0.1:0")
	addr := srv.Listener.Addr().String()
	ref := addr + "/team/app:1"
	l.build(ref, "scratch", 202, docker.Layer{Random: size})
	for range kills {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := l.engine.Run(ctx, "push", "-q", ref)
			ended <- err
		}()
		for until := line.Stats().Up + 6*mib + random.Int64N(12*mib); line.Stats().Up < until; {
			select {
			case err := <-ended:
				t.Fatalf("docker push ended before it was killed: %v", err)
			case <-time.After(5 * time.Millisecond): // to look again
			}
		}
		cancel()
		<-ended
		srv.CloseClientConnections()
		srv.Close()
		srv = serveGateway(t, options(), line.Addr(), addr)
	}
	l.docker("push", "-q", ref)
	ratio := float64(line.Stats().Up) / float64(size)
	t.Logf("%d kills, forwarded %.4f x the layer", kills, ratio)
	if ratio > 1.1 {
		t.Errorf("forwarded %.4f x the layer, want at most 1.1", ratio)
	}
	l.arrived(l.ref("team/app:1"), l.id(ref))
}

// An unchanged docker push arrives through connections that die every 32 MiB.
// docker alone starts the layer again after each reset, and never gets further
// than the first 32 MiB of it.
func TestDockerPushThroughGateway(t *testing.T) {
	l := start(t, realreg.Options{})
	line := binary.Through(t, l.reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetClient})})
	srv := serveGateway(t, gateway.Options{}, line.Addr(), "127.0.0.1:0")
	const size = 80 * mib
	ref := srv.Listener.Addr().String() + "/team/app:1"
	l.build(ref, "scratch", 201, docker.Layer{Random: size})
	l.docker("push", "-q", ref)
	s := line.Stats()
	ratio := float64(s.Up) / size
	t.Logf("%d resets, forwarded %.4f x the layer", s.Faults, ratio)
	if s.Faults < 2 || ratio > 1.02 {
		t.Errorf("%d resets, forwarded %.4f x the layer, want at least 2 resets and at most 1.02 x", s.Faults, ratio)
	}
	l.arrived(l.ref("team/app:1"), l.id(ref))
}
