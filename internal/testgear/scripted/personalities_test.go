// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a client sees that does everything right, and one that does not.
func TestPersonalities(t *testing.T) {
	for _, p := range Personalities() {
		t.Run(p.Name, func(t *testing.T) {
			u := serve(t, p.Options)
			u.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			const content = "the whole blob"
			loc := u.post()
			a := u.do("PATCH", loc, "", strings.NewReader(content))
			if a.status < 201 || a.status > 204 {
				t.Fatalf("PATCH: got %v", a)
			}
			if l := a.header.Get("Location"); l != "" {
				loc = l
			}
			sep := "?"
			if strings.Contains(loc, "?") {
				sep = "&"
			}
			u.want(u.do("PUT", loc+sep+"digest="+digestOf(content), "", nil), 201)
			if got := string(u.g.Blob("team/app", digestOf(content))); got != content {
				t.Errorf("got %q", got)
			}
		})
	}
	if a, b := Personalities()[0].Options, GHCR().Scaled(64); a.MaxRanged != 64*b.MaxRanged {
		t.Errorf("got %d, scaled %d", a.MaxRanged, b.MaxRanged)
	}
}

func TestRefusalsOfPersonalities(t *testing.T) {
	t.Run("mount", func(t *testing.T) {
		u := serve(t, Options{NoMount: 401})
		u.want(u.do("POST", name+"/blobs/uploads/?from=team/base&mount="+digestOf("x"), "", nil), 401)
		u.g.PutBlob("team/base", digestOf("x"), []byte("x"))
		u.want(u.do("POST", name+"/blobs/uploads/?from=team/base&mount="+digestOf("x"), "", nil), 201)
		u.post()
	})
	t.Run("wrong start", func(t *testing.T) {
		u := serve(t, Options{WrongStart: 500})
		u.want(u.patch(u.post(), 7, "abc"), 500)
	})
	t.Run("more than the whole", func(t *testing.T) {
		u := serve(t, Options{WholeFirst: true})
		loc := u.want(u.do("PATCH", u.post(), "", strings.NewReader("abc")), 202).header.Get("Location")
		loc = u.want(u.patch(loc, 3, "def"), 202).header.Get("Location")
		u.want(u.put(loc, "abcdef"), 400)
	})
	t.Run("empty", func(t *testing.T) {
		u := serve(t, Options{NoEmpty: 400})
		u.want(u.put(u.post(), ""), 400)
	})
	t.Run("size", func(t *testing.T) {
		u := serve(t, Options{MaxBody: 3, HTML: true})
		if a := u.want(u.patch(u.post(), 0, "abcd"), 413); a.header.Get("Content-Type") != "text/html" {
			t.Errorf("got %v", a)
		}
	})
	t.Run("tag", func(t *testing.T) {
		u := serve(t, Options{AbsentTag: 403})
		u.want(u.do("HEAD", name+"/manifests/v1", "", nil), 403)
		u.want(u.do("HEAD", name+"/manifests/"+digestOf("x"), "", nil), 404)
	})
	t.Run("queue", func(t *testing.T) {
		u := serve(t, Options{QueuesManifests: time.Hour})
		const manifest = `{"mediaType":"application/vnd.oci.image.manifest.v1+json"}`
		u.header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		for range 2 {
			u.want(u.do("PUT", name+"/manifests/v1", "", strings.NewReader(manifest)), 429)
		}
		u.want(u.do("HEAD", name+"/manifests/v1", "", nil), 404)
	})
}
