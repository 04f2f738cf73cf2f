//go:build !linux

package spool

func inMemory(string) bool { return false }
