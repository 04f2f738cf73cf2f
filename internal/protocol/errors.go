// SPDX-License-Identifier: Apache-2.0

package protocol

import "errors"

// The kinds of failure. Each says what the caller does next; package resume
// exports them under the same names and documents them.
var (
	ErrInterrupted = errors.New("interrupted")
	ErrDenied      = errors.New("denied by the registry")
	ErrEndpoint    = errors.New("no usable registry at this address")
	ErrSource      = errors.New("bad source")
	ErrRefused     = errors.New("refused by the registry")
)
