// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/wire"
)

// What a request was about is shown, but not where an upload is.
func TestScrub(t *testing.T) {
	const id = "9c3f0b7e-secret"
	for path, want := range map[string]string{
		"/v2/":                                                 "/v2/",
		"/v2/team/app/manifests/v1":                            "/v2/team/app/manifests/v1",
		"/v2/team/app/manifests/sha256:abc":                    "/v2/team/app/manifests/sha256:abc",
		"/v2/team/app/blobs/sha256:abc":                        "/v2/team/app/blobs/sha256:abc",
		"/v2/team/app/blobs/uploads/":                          "/v2/team/app/blobs/uploads/",
		"/v2/team/app/blobs/uploads":                           "/v2/team/app/blobs/uploads",
		"/v2/team/app/tags/list":                               "/v2/team/app/tags/list",
		"/v2/team/app/referrers/sha256:abc":                    "/v2/team/app/referrers/sha256:abc",
		"/v2/team/app/blobs/uploads/" + id:                     "/v2/team/app/blobs/uploads/",
		"/v2/team/app/blobs/uploads/" + id + "/manifests":      "/v2/team/app/blobs/uploads/",
		"/v2/team/app/blobs/upload/" + id:                      "/v2/team/app/blobs/upload/",
		"/v2/team/app/blobs/" + id:                             "/v2/",
		"/v2/_uploads/" + id:                                   "/v2/",
		"/artifacts-uploads/namespaces/p/repositories/r/" + id: "/",
		"/storage/" + id + "/v2/":                              "/",
	} {
		r := httptest.NewRequest(http.MethodPatch, "https://user:pw@reg.example"+path+"?_state=STATE1&sig=a%2Fb%2Fc", nil)
		got := scrub(r).URL
		if got.Path != want || got.RawQuery != "" || got.User != nil {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
		if !strings.Contains(path, id) {
			continue
		}
		body := `{"errors":[{"code":"X","message":"bad ` + path + `","detail":"` + path + `?_state=STATE1 a/b/c of ` + id + `"}]}`
		se := Unexpected(&wire.Answer{Status: 404, Header: http.Header{}, Body: []byte(body), Request: r}, time.Now())
		for _, text := range []string{se.Error(), se.Err.Error()} {
			if strings.Contains(text, id) || strings.Contains(text, "STATE1") || strings.Contains(text, "a/b/c") {
				t.Errorf("%s: %s", path, text)
			}
		}
	}
	// Words about the repository stay.
	r := httptest.NewRequest(http.MethodPost, "https://reg.example/v2/team/app/blobs/uploads/", nil)
	se := Unexpected(&wire.Answer{Status: 404, Header: http.Header{}, Request: r,
		Body: []byte(`{"errors":[{"code":"NAME_UNKNOWN","message":"no repository team/app"}]}`)}, time.Now())
	if !strings.Contains(se.Error(), "no repository team/app") {
		t.Errorf("got %v", se)
	}
}
