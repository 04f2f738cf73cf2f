//go:build !linux

package conntrack

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"runtime"
	"time"
)

// ErrNotLinux is what everything but Examine comes to on other systems.
var ErrNotLinux = errors.New("not applicable here: look at the Linux host or VM that publishes the registry's port")

// Examine finds that this is not the system to look at.
func Examine(_ context.Context, reg *Registry) *Report {
	r := &Report{
		Verdict: NotApplicable, Where: NotLinux, System: runtime.GOOS,
		Mappings: []Mapping{}, Proxies: []Proxy{}, Guards: []Guard{}, Protection: []string{}, Checks: []Check{},
	}
	if reg != nil {
		r.Registry = &Target{Host: reg.Host, Port: reg.Port}
	}
	return r
}

// Now fails.
func Now() (Sample, error) { return Sample{At: time.Now()}, ErrNotLinux }

// NowWithRules fails.
func NowWithRules(context.Context, *Report) (Sample, error) { return Now() }

// RunSelfTest fails.
func RunSelfTest(context.Context) SelfTest { return SelfTest{Error: ErrNotLinux.Error()} }

// SelfTestMain fails.
func SelfTestMain(context.Context, io.Writer) error { return ErrNotLinux }

// PlanFix fails.
func PlanFix(context.Context, Remedy, *Report, bool) (*Plan, error) { return nil, ErrNotLinux }

// PlanUndo fails.
func PlanUndo(context.Context) (*Plan, error) { return nil, ErrNotLinux }

// Forbidden reports that privileges are missing.
func Forbidden(err error) bool { return errors.Is(err, fs.ErrPermission) }
