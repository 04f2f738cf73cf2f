// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// A network is matched with addresses only, and no name is looked up.
func TestInsecure(t *testing.T) {
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("a name is looked up")
		return nil, errors.New("no name server")
	}}
	e := &Engine{info: system.Info{RegistryConfig: &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")},
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io":          {Secure: true},
			"plain.example:5000": {Secure: false},
			"10.1.2.4:5000":      {Secure: true},
		},
	}}}
	for host, want := range map[string]bool{
		"127.0.0.1":          true,
		"127.0.0.1:5000":     true,
		"127.8.8.8:5000":     true,
		"10.1.2.3":           true,
		"[::ffff:127.0.0.1]": true,
		"localhost":          true,
		"localhost:5000":     true,
		"LOCALHOST:5000":     true,
		"plain.example:5000": true,

		"10.2.0.1":           false,
		"10.1.2.4:5000":      false,
		"[::1]:5000":         false,
		"127.1":              false,
		"localhost.":         false,
		"app.localhost:5000": false,
		"registry.example":   false,
		"plain.example":      false,
		"index.docker.io":    false,
	} {
		if got := e.Insecure(host); got != want {
			t.Errorf("%s: %t, want %t", host, got, want)
		}
	}
	if (&Engine{}).Insecure("127.0.0.1") {
		t.Error("an engine without settings turns verification off")
	}
}
