// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package selftest

import (
	"context"
	"io"

	"github.com/rpush-go/rpush/internal/conntrack/host"
)

// Run fails.
func Run(context.Context) Result { return Result{Error: host.ErrNotLinux.Error()} }

// Main fails.
func Main(context.Context, io.Writer) error { return host.ErrNotLinux }
