//go:build !unix

package resume

func syscallUmask(int) int { return 0 }
