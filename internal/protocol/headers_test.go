// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestParseRange(t *testing.T) {
	for in, want := range map[string]struct {
		held Held
		ok   bool
	}{
		"0-0":                       {Held{Ambiguous: true}, true},
		"0--1":                      {Held{}, true},
		"0-1":                       {Held{Bytes: 2}, true},
		"0-65535":                   {Held{Bytes: 65536}, true},
		"bytes=0-65535":             {Held{Bytes: 65536}, true},
		"bytes 0-9":                 {Held{Bytes: 10}, true},
		"bytes=0--1":                {Held{}, true},
		" 0-9 ":                     {Held{Bytes: 10}, true},
		"0-9223372036854775806":     {Held{Bytes: 1<<63 - 1}, true},
		"0-9223372036854775807":     {},
		"0-99999999999999999999999": {},
		"":                          {},
		"0":                         {},
		"0-":                        {},
		"0-+5":                      {},
		"0--2":                      {},
		"5-9":                       {},
		"0-9/20":                    {},
		"0-0x10":                    {},
		"0-9,20":                    {},
	} {
		h := http.Header{}
		if in != "" {
			h.Set("Range", in)
		}
		held, ok := ParseRange(h)
		if held != want.held || ok != want.ok {
			t.Errorf("ParseRange(%q) = %+v, %v, want %+v, %v", in, held, ok, want.held, want.ok)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"0-0", "0--1", "bytes=0-9", "0-9223372036854775807", "1-2", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		held, ok := ParseRange(http.Header{"Range": {s}})
		if held.Bytes < 0 {
			t.Fatalf("ParseRange(%q) = %d bytes", s, held.Bytes)
		}
		if !ok && held != (Held{}) {
			t.Fatalf("ParseRange(%q) says %+v and not ok", s, held)
		}
	})
}

func TestContentRange(t *testing.T) {
	if got, want := ContentRange(5, 10), "5-9"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"99999999999999":                MaxWait,
		"99999999999999999999999999":    0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
		"Fri, 02 Jan 2099 03:04:00 GMT": MaxWait,
	} {
		if got := RetryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("RetryAfter(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestParseLocation(t *testing.T) {
	const registry = "https://reg.example/v2/a/b/"
	for _, c := range []struct {
		name, registry, asked, location, want string
		mended                                bool
		err                                   error
	}{
		{name: "absolute", location: "https://reg.example/v2/a/b/blobs/uploads/1?_state=x", want: "https://reg.example/v2/a/b/blobs/uploads/1?_state=x"},
		{name: "port spelled out", location: "https://reg.example:443/u", want: "https://reg.example:443/u"},
		{name: "absolute path", location: "/v2/a/b/blobs/uploads/1", want: "https://reg.example/v2/a/b/blobs/uploads/1"},
		{name: "relative to the request", asked: "https://reg.example/v2/a/b/blobs/uploads/", location: "1?x", want: "https://reg.example/v2/a/b/blobs/uploads/1?x"},
		{name: "no scheme", location: "//reg.example/u", want: "https://reg.example/u"},
		{name: "user and fragment are dropped", location: "https://me:secret@reg.example/u#f", want: "https://reg.example/u"},
		{name: "TLS proxy without X-Forwarded-Proto", location: "http://reg.example/u?x", want: "https://reg.example/u?x", mended: true},
		{name: "the same with the inner port", registry: "https://reg.example:8443/v2/a/b/", location: "http://REG.example:5000/u", want: "https://reg.example:8443/u", mended: true},
		{name: "storage", location: "https://s3.example/u?sig=1", want: "https://s3.example/u?sig=1"},
		{name: "relative on the storage", asked: "https://s3.example/u?sig=1", location: "/u?sig=2", want: "https://s3.example/u?sig=2"},
		{name: "downgrade", location: "http://evil.example/u", err: ErrDowngrade},
		{name: "downgrade by the storage", registry: "http://reg.example/v2/a/b/", asked: "https://s3.example/u", location: "http://s3.example/u", err: ErrDowngrade},
		{name: "plain to plain", registry: "http://reg.example/v2/a/b/", location: "http://s3.example/u", want: "http://s3.example/u"},
		{name: "upgrade", registry: "http://reg.example/v2/a/b/", location: "https://reg.example/u", want: "https://reg.example/u"},
		{name: "none", err: ErrNoLocation},
		{name: "another scheme", location: "file:///etc/passwd", err: errAny},
		{name: "no host", location: "https:///x", err: errAny},
		{name: "no URL", location: "https://%zz/secret", err: errAny},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.registry == "" {
				c.registry = registry
			}
			if c.asked == "" {
				c.asked = c.registry
			}
			got, err := ParseLocation(parse(t, c.registry), parse(t, c.asked), http.Header{"Location": {c.location}})
			switch {
			case c.err != nil && err == nil:
				t.Fatalf("got %s, want an error", got.URL)
			case c.err != nil && c.err != errAny && !errors.Is(err, c.err):
				t.Fatalf("got error %v, want %v", err, c.err)
			case c.err != nil:
				if strings.Contains(err.Error(), "secret") {
					t.Fatalf("the error shows the location: %v", err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if got.URL.String() != c.want || got.Mended != c.mended {
				t.Errorf("got %s, mended %v; want %s, %v", got.URL, got.Mended, c.want, c.mended)
			}
		})
	}
}

var errAny = errors.New("any error")

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A location never leads from https to http, and never carries a user.
func TestIsUpload(t *testing.T) {
	for u, want := range map[string]bool{
		"https://reg.test/v2/app/blobs/uploads/1?_state=x":               true,
		"https://reg.test/v2/a/b/c/blobs/uploads/u-u_i.d=":               true,
		"https://ghcr.io/v2/a/b/blobs/upload/1":                          true,
		"https://reg.test/artifactory/api/docker/r/v2/a/blobs/uploads/1": true,
		"https://reg.test/artifacts-uploads/namespaces/p/repositories/r": true,
		"https://reg.test/artifacts-uploads/":                            false,
		"https://reg.test/x/artifacts-uploads/y":                         false,
		"https://reg.test/v2/a/blobs/uploads/":                           false,
		"https://reg.test/v2/blobs/uploads/1":                            false,
		"https://reg.test/a/blobs/uploads/1":                             false,
		"https://reg.test/v2/a/manifests/latest":                         false,
		"https://reg.test/v2/a/blobs/sha256:00":                          false,
		"https://reg.test/v2/a/blobs/uploads/b/manifests/latest":         false,
		"https://reg.test/v2/a/blobs/uploads/..":                         false,
		"https://reg.test/v2/a/blobs/uploads/%2e%2e%2fsha256:00":         false,
		"https://reg.test/v2/a/blobs/uploads/%252e%252e":                 false,
		"https://reg.test/artifacts-uploads/../v2/a/manifests/latest":    false,
		"https://reg.test//v2/a/blobs/uploads/1":                         false,
		"https://reg.test":                                               false,
		"https:opaque":                                                   false,
	} {
		if got := IsUpload(parse(t, u)); got != want {
			t.Errorf("%s: got %v, want %v", u, got, want)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"/u", "http://reg.example/u", "https://x@y/z", "//h/p", "http:/x", "?a", "https://reg.example:443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		base := parse(t, "https://reg.example/v2/a/")
		l, err := ParseLocation(base, base, http.Header{"Location": {s}})
		if err != nil {
			return
		}
		if l.URL.Scheme != "https" || l.URL.Host == "" || l.URL.User != nil {
			t.Fatalf("ParseLocation(%q) = %q", s, l.URL)
		}
	})
}

func TestIsBlob(t *testing.T) {
	want, other := digest.FromString("a"), digest.FromString("b")
	for _, c := range []struct {
		name string
		h    http.Header
		want bool
	}{
		{"nothing said", http.Header{}, true},
		{"its digest", http.Header{"Docker-Content-Digest": {want.String()}}, true},
		{"its digest, whatever the type", http.Header{"Docker-Content-Digest": {want.String()}, "Content-Type": {"text/html"}}, true},
		{"another digest", http.Header{"Docker-Content-Digest": {other.String()}}, false},
		{"a digest of another kind", http.Header{"Docker-Content-Digest": {digest.SHA512.FromString("a").String()}}, true},
		{"no digest", http.Header{"Docker-Content-Digest": {"a"}}, true},
		{"a web page", http.Header{"Content-Type": {"text/html; charset=utf-8"}}, false},
		{"bytes", http.Header{"Content-Type": {"application/octet-stream"}}, true},
	} {
		if got := IsBlob(c.h, want); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestParseChunkLengths(t *testing.T) {
	for _, c := range []struct {
		least, most string
		want        ChunkLengths
	}{
		{"", "", ChunkLengths{}},
		{"5242880", "100000000", ChunkLengths{Min: 5242880, Max: 100000000}},
		{" 7 ", "", ChunkLengths{Min: 7}},
		{"", "70000", ChunkLengths{Max: 70000}},
		{"x", "y", ChunkLengths{}},
		{"-1", "-1", ChunkLengths{}},
		{"0", "0", ChunkLengths{}},
		{"", "1", ChunkLengths{Max: 64 << 10}},
		{"5242880", "1048576", ChunkLengths{Min: 1048576, Max: 1048576}},
		{"9000000000000000000", "", ChunkLengths{Min: 1 << 30}},
		{"99999999999999999999", "99999999999999999999", ChunkLengths{}},
		{"", "9223372036854775807", ChunkLengths{Max: 1<<63 - 1}},
	} {
		h := http.Header{"Oci-Chunk-Min-Length": {c.least}, "Oci-Chunk-Max-Length": {c.most}}
		if got := ParseChunkLengths(h); got != c.want {
			t.Errorf("min %q, max %q: got %+v, want %+v", c.least, c.most, got, c.want)
		}
	}
}
