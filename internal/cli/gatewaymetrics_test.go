// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/gateway"
)

// An answer that was cut off is no success, and not everybody sees the metrics.
func TestGatewayMetrics(t *testing.T) {
	m := newGatewayMetrics()
	g, err := gateway.New(gateway.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.NewServer(gateway.ServerOptions{Upstream: "reg.example"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(m.around(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			panic(http.ErrAbortHandler)
		}
	}), s.Admit))
	defer srv.Close()
	do := func(method, path, host, origin string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			return 0, ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	do("PUT", "/v2/", "", "")
	do("GET", "/v2/", "", "")
	status, text := do("GET", "/metrics", "", "")
	for _, want := range []string{`{code="aborted",method="PUT"} 1`, `{code="200",method="GET"} 1`} {
		if status != 200 || !strings.Contains(text, "rpush_gateway_requests_total"+want) {
			t.Errorf("%d, no %s in\n%s", status, want, text)
		}
	}
	if status, _ := do("GET", "/metrics", "evil.example", ""); status != http.StatusMisdirectedRequest {
		t.Errorf("by another name: %d", status)
	}
	if status, _ := do("GET", "/metrics", "", "https://evil.example"); status != http.StatusForbidden {
		t.Errorf("for a browser: %d", status)
	}
}

// Passwords wait for each other, but not for ever.
func TestHtpasswdBusy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	// The password is "secret".
	if err := os.WriteFile(file, []byte("ci:$2b$05$qv9N8muHxMCa3BJbIF2JguD9pzlN0c4/cBjLPiOZrd5xeXBhzJjUy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := readHtpasswd(file)
	if err != nil {
		t.Fatal(err)
	}
	for range checksAtOnce {
		h.slots <- struct{}{}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if ok, err := h.check(gone, "ci", "secret"); ok || err == nil {
		t.Errorf("a client that is gone: %t, %v", ok, err)
	}
	<-h.slots
	if ok, err := h.check(t.Context(), "ci", "secret"); !ok || err != nil {
		t.Errorf("the right password: %t, %v", ok, err)
	}
	if ok, err := h.check(t.Context(), "ci", "wrong"); ok || err != nil {
		t.Errorf("a wrong password: %t, %v", ok, err)
	}
	h.slots <- struct{}{}
	if ok, err := h.check(gone, "ci", "secret"); !ok || err != nil {
		t.Errorf("a password that was right before: %t, %v", ok, err)
	}
}
