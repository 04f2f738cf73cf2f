// SPDX-License-Identifier: Apache-2.0

package tokens

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

func get(t *testing.T, at, authorization string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// Both generations of the registry take a token while it lives, and not after.
func TestTokensExpire(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, tool := range []string{"registry", "docker-registry"} {
		t.Run(tool, func(t *testing.T) {
			s := Start(t, 2*time.Second)
			r := realreg.Start(t, realreg.Options{Tool: tool, Token: s.Auth()})
			at := r.URL() + "/v2/team/app/tags/list"
			if res := get(t, at, ""); res.StatusCode != http.StatusUnauthorized {
				t.Fatalf("without a token: %s", res.Status)
			}
			ask := s.Auth().Realm + "?scope=repository:team/app:pull&service=" + url.QueryEscape(s.Auth().Service)
			if res := get(t, ask, "Basic bm86Ym9keQ=="); res.StatusCode != http.StatusUnauthorized {
				t.Errorf("a token for nobody: %s", res.Status)
			}
			begin := time.Now()
			var answer struct{ Token string }
			if err := json.NewDecoder(get(t, ask, "Basic Y2k6c2VjcmV0").Body).Decode(&answer); err != nil {
				t.Fatal(err)
			}
			for {
				res := get(t, at, "Bearer "+answer.Token)
				age := time.Since(begin)
				// The repository is unknown, but may be asked for.
				if res.StatusCode == http.StatusNotFound && age < 5*time.Second {
					time.Sleep(50 * time.Millisecond)
					continue
				}
				if res.StatusCode != http.StatusUnauthorized || age < time.Second || age > 4*time.Second {
					t.Errorf("%s at the age of %v", res.Status, age)
				}
				break
			}
			if s.Issued() != 1 || s.Refused() != 1 {
				t.Errorf("%d issued, %d refused", s.Issued(), s.Refused())
			}
		})
	}
}
