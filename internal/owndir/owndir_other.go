// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package owndir

import "io/fs"

func exclusive(fs.FileInfo) error { return nil }

func steady(dir string) (string, error) { return dir, nil }

func closeToOthers(string) error { return nil }
