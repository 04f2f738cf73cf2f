// SPDX-License-Identifier: Apache-2.0

// Package intercept is an HTTP proxy for one command. It answers requests to
// some hosts itself, HTTPS included, and tunnels every other connection
// untouched. A certificate authority that lives as long as the proxy makes the
// certificates of those hosts; its key is in memory only, and its certificate is
// constrained to their names.
package intercept
