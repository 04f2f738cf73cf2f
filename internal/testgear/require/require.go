// SPDX-License-Identifier: Apache-2.0

// Package require says what becomes of a test whose machine lacks something.
package require

import "os"

// TB is the part of testing.TB that Missing uses.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Missing skips the test, or with RPUSH_TEST_REQUIRE=1, as CI sets it, fails it.
func Missing(t TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("RPUSH_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
