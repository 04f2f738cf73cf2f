// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A tracker does not hold connections that are closed: a program that pushes for
// days through a transport of its own makes many.
func TestTrackerForgetsClosedConnections(t *testing.T) {
	for name, start := range map[string]func(http.Handler) *httptest.Server{"plain": httptest.NewServer, "TLS": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			srv := start(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			defer srv.Close()
			tr := srv.Client().Transport.(*http.Transport).Clone()
			defer tr.CloseIdleConnections()
			tracker := Track(tr)
			for range 20 {
				req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Send(t.Context(), tracker, req, Limits{Stall: time.Minute, Answer: time.Minute}, nil); err != nil {
					t.Fatal(err)
				}
				tr.CloseIdleConnections()
			}
			tracker.mu.Lock()
			defer tracker.mu.Unlock()
			if n := len(tracker.conns); n == 0 || n > 3 {
				t.Errorf("%d connections are remembered, want the last of 20 only", n)
			}
		})
	}
}
