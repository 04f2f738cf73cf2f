// SPDX-License-Identifier: Apache-2.0

package memnet

import (
	"net/http"
	"testing"
	"time"
)

// Serve serves HTTP at addr. The test has to call stop before its bubble ends, once
// it has closed the idle connections of its clients: stop gives the goroutines of
// the server an hour of virtual time to end.
func (n *Network) Serve(t testing.TB, addr string, h http.HandlerFunc) (stop func()) {
	t.Helper()
	ln, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	return func() {
		srv.Close()
		time.Sleep(time.Hour)
	}
}
