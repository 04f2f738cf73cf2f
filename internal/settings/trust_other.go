// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package settings

import "io/fs"

// trusted leaves it to the access lists of the system.
func trusted(fs.FileInfo, bool) error { return nil }
