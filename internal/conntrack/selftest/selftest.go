// SPDX-License-Identifier: Apache-2.0

// Package selftest rebuilds, in network namespaces made for it, a host that
// resets uploads: a stray segment is not translated, and draws a RST. It tells
// what this kernel does with such segments. The machine itself is not changed.
package selftest

// Outcome of a connection that met stray segments.
type Outcome string

// The outcomes; empty where it could not be found out.
const (
	WasReset Outcome = "reset"
	Survived Outcome = "survived"
)

// Command is the hidden verb that a self-test calls its own program
// with.
const Command = "conntrack-selftest"

// Result is what a self-test found out.
type Result struct {
	// Delayed is what segments far behind the window did, Beyond those far
	// ahead of it.
	Delayed Outcome `json:"delayed,omitempty"`
	Beyond  Outcome `json:"beyond,omitempty"`
	// The counters that moved, of the namespace that translated.
	Invalid uint64 `json:"invalid"`
	OutRsts uint64 `json:"outRsts"`
	// Error says why nothing, or not all, was found out.
	Error string `json:"error,omitempty"`
}
