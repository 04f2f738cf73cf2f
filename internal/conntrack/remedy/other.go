// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package remedy

import (
	"context"
	"errors"
	"io/fs"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// PlanFix fails.
func PlanFix(context.Context, Kind, []rules.PortRange, bool) (*Plan, error) {
	return nil, host.ErrNotLinux
}

// PlanUndo fails.
func PlanUndo(context.Context) (*Plan, error) { return nil, host.ErrNotLinux }

// Forbidden reports that privileges are missing.
func Forbidden(err error) bool { return errors.Is(err, fs.ErrPermission) }
