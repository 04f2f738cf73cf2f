// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gateway_test

import (
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// start serves one registry until the end of the test, and returns its address.
func start(t *testing.T, o gateway.Options, upstream string) string {
	t.Helper()
	g, err := gateway.New(o)
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.To(gateway.Upstream{URL: &url.URL{Scheme: "http", Host: upstream}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// crane push gives up after three resets. Through the gateway it notices none.
func TestCranePush(t *testing.T) {
	crane := realreg.Tool(t, "crane")
	reg := realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 41, 24*mib)
	reset := proxy.Options{Plan: proxy.Every(5*mib, proxy.Fault{Kind: proxy.ResetClient})}
	push := func(addr string) (string, error) {
		cmd := exec.CommandContext(t.Context(), crane, "push", img.Dir, addr+"/team/app:1")
		cmd.Env = binary.Environ(t)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if _, err := push(binary.Through(t, reg.Addr, reset).Addr()); err == nil {
		t.Error("crane arrives without the gateway: this test shows nothing")
	}
	line := binary.Through(t, reg.Addr, reset)
	if out, err := push(start(t, gateway.Options{}, line.Addr())); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := line.Stats()
	ratio := float64(s.Up) / float64(img.Total)
	t.Logf("%d resets, forwarded %.4f x the image", s.Faults, ratio)
	if ratio > 1.02 {
		t.Errorf("forwarded %.4f x the image, want at most 1.02", ratio)
	}
	binary.Same(t, img, reg.Addr+"/team/app:1")
}
