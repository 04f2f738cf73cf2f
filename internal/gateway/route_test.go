// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/url"
	"strings"
	"testing"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRoute(t *testing.T) {
	for _, tt := range []struct {
		target   string
		prefixed bool
		want     string // registry repository rest, "" if refused
	}{
		{"/v2/", false, "||"},
		{"/v2/", true, "||"},
		{"/v2/?ns=reg.example", true, "reg.example||"},
		{"/v2/_catalog?n=5", false, "||"},
		{"/v2/team/app/blobs/uploads/", false, "|team/app|blobs/uploads/"},
		{"/v2/team/app/blobs/uploads", false, "|team/app|blobs/uploads/"},
		{"/v2/team/app/blobs/uploads/8f2-x_=?_state=a%2Bb", false, "|team/app|blobs/uploads/8f2-x_="},
		{"/v2/team/app/blobs/upload/8f2", false, "|team/app|blobs/upload/8f2"},
		{"/v2/team/app/blobs/" + someDigest, false, "|team/app|blobs/" + someDigest},
		{"/v2/team/app/manifests/1.0_a", false, "|team/app|manifests/1.0_a"},
		{"/v2/team/blobs/uploads/manifests/latest", false, "|team/blobs/uploads|manifests/latest"},
		{"/v2/a/tags/list", false, "|a|tags/list"},
		{"/v2/a/referrers/" + someDigest, false, "|a|referrers/" + someDigest},
		{"/v2/reg.example/team/app/manifests/1", true, "reg.example|team/app|manifests/1"},
		{"/v2/localhost:5000/app/manifests/1", true, "localhost:5000|app|manifests/1"},
		{"/v2/docker.io/library/app/manifests/1", true, "index.docker.io|library/app|manifests/1"},
		{"/v2/team/app/manifests/1?ns=docker.io", true, "index.docker.io|team/app|manifests/1"},
		{"/v2/reg.example/app/manifests/1?ns=other.example", true, "other.example|reg.example/app|manifests/1"},

		{"/v2/team/app/manifests/1", true, ""}, // no registry
		{"/v2/reg.example/manifests/1", true, ""},
		{"/v1/", false, ""},
		{"/", false, ""},
		{"/v2", false, ""},
		{"/v2/../admin/manifests/1", false, ""},
		{"/v2/team/../other/manifests/1", false, ""},
		{"/v2/team/./app/manifests/1", false, ""},
		{"/v2/team//app/manifests/1", false, ""},
		{"/v2//team/app/manifests/1", false, ""},
		{"//v2/team/app/manifests/1", false, ""},
		{"/v2/team%2fapp/manifests/1", false, ""},
		{"/v2/%74eam/app/manifests/1", false, ""},
		{"/v2/team/app/manifests/%2e%2e", false, ""},
		{"/v2/team/app/manifests/..", false, ""},
		{"/v2/team/app/manifests/a/b", false, ""},
		{"/v2/team/app/blobs/uploads/..", false, ""},
		{"/v2/team/app/blobs/uploads/a%00b", false, ""},
		{"/v2/team/app/blobs/uploads/a%0d%0ab", false, ""},
		{"/v2/team/app/blobs/sha256:short", false, ""},
		{"/v2/team/app/blobs/" + strings.ToUpper(someDigest), false, ""},
		{"/v2/Team/app/manifests/1", false, ""},
		{"/v2/team;x/app/manifests/1", false, ""},
		{`/v2/team\app/manifests/1`, false, ""},
		{"/v2/team/app/manifests/1?ns=", false, ""},
		{"/v2/team/app/manifests/1?ns=a.example&ns=b.example", false, ""},
		{"/v2/team/app/manifests/1?ns=user:pw@reg.example", false, ""},
		{"/v2/team/app/manifests/1?ns=reg.example/evil", false, ""},
		{"/v2/team/app/manifests/1?ns=http://reg.example", false, ""},
		{"/v2/team/app/manifests/1?ns=reg.example%23", false, ""},
		{"/v2/user@reg.example/app/manifests/1", true, ""},
		{"/v2/169.254.169.254:80%2flatest/app/manifests/1", true, ""},
		{"/v2/" + strings.Repeat("a/", 300) + "b/manifests/1", false, ""},
		{"/token", false, ""},
		{"/metrics", false, ""},
	} {
		u, err := url.ParseRequestURI(tt.target) // as net/http does
		if err != nil {
			t.Fatalf("%s: %v", tt.target, err)
		}
		got := ""
		if rt, ok := parseRoute(u, tt.prefixed); ok {
			got = rt.registry + "|" + rt.repository + "|" + rt.rest
		}
		if got != tt.want {
			t.Errorf("%s (prefixed %t): got %q, want %q", tt.target, tt.prefixed, got, tt.want)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add("/v2/team/app/blobs/uploads/x", "ns=reg.example", true)
	f.Add("/v2/reg.example/a/manifests/1", "", true)
	f.Fuzz(func(t *testing.T, path, query string, prefixed bool) {
		rt, ok := parseRoute(&url.URL{Path: path, RawQuery: query}, prefixed)
		if !ok {
			return
		}
		out := apiVersion + rt.repository + "/" + rt.rest
		if rt.repository != "" && (strings.Contains(out, "//") || strings.Contains(out, "/../") || strings.HasSuffix(out, "/..") ||
			strings.ContainsAny(out, "%\\?#; \r\n\x00")) {
			t.Errorf("%q is forwarded as %q", path, out)
		}
		if strings.ContainsAny(rt.registry, "/@?# \r\n\x00") {
			t.Errorf("the registry is %q", rt.registry)
		}
	})
}
