// SPDX-License-Identifier: Apache-2.0

// Package matrix runs one suite over all the registries and proxies that a
// machine can have: what must hold does so in front of each of them, and what
// a break may cost is a figure.
package matrix
