// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the rpush binary against a real registry through a proxy
// that breaks connections, and has an independent client pull the image back.
package e2e
