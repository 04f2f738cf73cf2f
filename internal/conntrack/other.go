// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package conntrack

import (
	"context"
	"runtime"
	"time"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// Examine finds that this is not the system to look at.
func Examine(_ context.Context, reg *Registry) *Report {
	r := &Report{
		Verdict: NotApplicable, Where: NotLinux, System: runtime.GOOS,
		Mappings: []rules.Mapping{}, Proxies: []Proxy{}, Guards: []rules.Guard{}, Protection: []string{}, Checks: []Check{},
	}
	if reg != nil {
		r.Registry = &Target{Host: reg.Host, Port: reg.Port}
	}
	return r
}

// Now fails.
func Now() (Sample, error) { return Sample{At: time.Now()}, host.ErrNotLinux }

// NowWithRules fails.
func NowWithRules(context.Context, *Report) (Sample, error) { return Now() }
