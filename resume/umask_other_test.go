// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package resume

func syscallUmask(int) int { return 0 }
