// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"bytes"
	"context"
	"strings"

	"github.com/rpush-go/rpush/internal/conntrack/host"
)

// Save prints the rules of legacy xtables. Only called where the kernel
// has such tables: the program would make them.
func Save(ctx context.Context, v6 bool) ([]byte, error) {
	return saveWith(ctx, v6, host.LookPath, host.Run)
}

func saveWith(ctx context.Context, v6 bool, find func(string) (string, error), run host.Program) ([]byte, error) {
	name := "iptables-legacy-save"
	if v6 {
		name = "ip6tables-legacy-save"
	}
	path, missing := find(name)
	if missing == nil {
		return run(ctx, nil, path, "-c")
	}
	// Before 1.8 there was but one. Since then one of that name may print the
	// rules of nft, and none of the legacy ones.
	path, err := find(strings.Replace(name, "-legacy", "", 1))
	if err != nil {
		return nil, missing
	}
	version, err := run(ctx, nil, path, "--version")
	if err != nil || bytes.Contains(version, []byte("nf_tables")) {
		return nil, missing
	}
	return run(ctx, nil, path, "-c")
}
