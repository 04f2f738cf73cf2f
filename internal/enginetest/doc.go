// SPDX-License-Identifier: Apache-2.0

// Package enginetest pushes images of real Docker engines, and of podman, to
// real registries.
package enginetest
