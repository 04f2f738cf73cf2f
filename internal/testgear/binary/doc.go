// SPDX-License-Identifier: Apache-2.0

// Package binary runs the rpush command as a user does, for tests against real
// registries, and has an independent client pull back what was pushed.
package binary
