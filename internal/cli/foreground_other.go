//go:build !unix

package cli

func inForeground() bool { return false }
