// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"testing"
)

func TestInternal(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": false, "2606:4700::1111": false,
		"10.0.0.1": true, "127.0.0.1": true, "169.254.169.254": true, "::1": true, "::": true, "fd00::1": true, "fe80::1%eth0": true,
		"::ffff:10.0.0.1": true, "100.64.0.1": true, "224.0.0.1": true, "0.1.2.3": true,
		// An IPv4 address in an IPv6 one: NAT64, 6to4, IPv4-compatible.
		"64:ff9b::a9fe:a9fe": true, "64:ff9b::808:808": false, "64:ff9b:1::808:808": true,
		"2002:7f00:1::": true, "2002:a9fe:a9fe::1": true, "2002:808:808::1": false,
		"::127.0.0.1": true, "::10.1.2.3": true,
		"168.63.129.16": true, "168.63.129.17": false, "192.0.0.192": true, "192.0.1.1": false,
		"198.18.0.1": true, "198.19.255.255": true, "198.20.0.1": false,
		"240.0.0.1": true, "255.255.255.255": true, "fec0::1": true,
	} {
		if got := internal(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
	// A registry behind a translated address may be anywhere: not private.
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "127.0.0.1": true, "fd00::1": true, "198.18.0.1": true,
		"64:ff9b::a00:1": false, "64:ff9b:1::a00:1": false, "2002:a00:1::1": false, "::10.0.0.1": false, "8.8.8.8": false,
	} {
		if got := private(netip.MustParseAddr(addr)); got != want {
			t.Errorf("a registry at %s: got %v, want %v", addr, got, want)
		}
	}
}

// A registry that was public once cannot become private by a later answer of
// its name server.
func TestPublicStaysPublic(t *testing.T) {
	answer := []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")}
	tr := New(Options{Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }})
	tr.lookup = func(context.Context, string, string) ([]netip.Addr, error) { return answer, nil }
	refused := func() bool {
		req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tr.External("reg.test:443").RoundTrip(req)
		return errors.Is(err, ErrPrivate)
	}
	if !refused() {
		t.Error("a registry with one public address counts as private")
	}
	answer = answer[1:]
	if !refused() {
		t.Error("a registry became private by a later answer of its name server")
	}
	tr.reached("reg.test:443", false)
	if !refused() {
		t.Error("a registry became private by a later connection")
	}
}
