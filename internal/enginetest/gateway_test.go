//go:build linux

package enginetest

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/docker"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// An unchanged docker push arrives through connections that die every 32 MiB.
// docker alone starts the layer again after each reset, and never gets further
// than the first 32 MiB of it.
func TestDockerPushThroughGateway(t *testing.T) {
	l := start(t, realreg.Options{})
	line := binary.Through(t, l.reg.Addr, proxy.Options{Plan: proxy.Every(32*mib, proxy.Fault{Kind: proxy.ResetClient})})
	g, err := gateway.New(gateway.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.To(gateway.Upstream{URL: &url.URL{Scheme: "http", Host: line.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)

	const size = 80 * mib
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/app:1"
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
