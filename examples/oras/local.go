// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
)

// local: a registry on this machine speaks plain HTTP, as in docker.
func local(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
