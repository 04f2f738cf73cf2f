// SPDX-License-Identifier: Apache-2.0

// Package simulator holds tests only: client and registry in one process on
// virtual time, each run drawn from a seed: a dialect, faults, sizes. Whatever
// is drawn, what must hold always has to hold.
//
//	go test ./internal/simulator                             some thousand seeds
//	RPUSH_SIM_SEEDS=20000 go test ./internal/simulator       more
//	RPUSH_SIM_START=1000000 go test ./internal/simulator     others
//	RPUSH_SIM_SEED=12345 go test -v -run TestSimulator ./internal/simulator
//	                                                         one, with all that happened
//
// Faults are keyed by protocol position (the nth request of a kind, the byte of
// its body, the byte of a connection), never by time. A seed that pushes a
// single blob replays exactly; one that pushes an image in parallel meets the
// same registry and the same faults, in an order that may differ.
//
// The faults of a seed are finite and the budgets are drawn to outlast them, so
// every seed has to succeed, except for those whose scenario says which kind of
// failure it may end in, and why.
//
// TestDeliberateFaults shows that the simulator bites: it puts mistakes into
// the client, one at a time, and each has to be found.
package simulator
