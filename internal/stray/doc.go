// SPDX-License-Identifier: Apache-2.0

// Package stray sends TCP segments that do not fit the connection they claim to
// belong to, as bad lines and middleboxes do. Linux only.
package stray
