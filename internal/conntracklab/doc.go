// SPDX-License-Identifier: Apache-2.0

// Package conntracklab rebuilds the incident with real parts, in network
// namespaces of its own: a client, a host that translates, a registry behind
// it, segments that do not fit, and the resets that come of it. It has tests
// only, which need root on Linux.
package conntracklab
