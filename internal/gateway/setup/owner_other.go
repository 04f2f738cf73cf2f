// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package setup

import "io/fs"

func ownedHere(fs.FileInfo) bool { return true }
