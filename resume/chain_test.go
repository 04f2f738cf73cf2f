// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

func repositoryAt(registry string) (name.Repository, error) {
	return name.NewRepository(strings.TrimPrefix(registry, "http://") + "/app")
}

// clientOf is a client for a registry in plain HTTP that tries once.
func clientOf(t *testing.T, registry string) *Client {
	t.Helper()
	repo, err := repositoryAt(registry)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(repo, Options{PlainHTTP: true, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// A sign-in page of the registry that leads on to an identity provider elsewhere
// is not the blob.
func TestExistsRedirectToSignInElsewhere(t *testing.T) {
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := "/sign-in"
		if r.URL.Path == to {
			to = "http://idp.example/sign-in"
		}
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	}))
	defer reg.Close()
	c := clientOf(t, reg.URL)
	if exists, err := c.Exists(t.Context(), digest.FromString("a layer"), 7); exists || err != nil {
		t.Errorf("Exists = %v, %v; want false: nothing says that the registry has the blob", exists, err)
	}
}

// A page of the registry that answers any check with success proves nothing about
// a blob whose size is not known, or 0.
func TestArrivedNeedsMoreThanAPage(t *testing.T) {
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			w.Header().Set("Content-Type", "application/json")
			return
		}
		w.Header().Set("Location", "/page")
		w.WriteHeader(http.StatusFound)
	}))
	defer reg.Close()
	c := clientOf(t, reg.URL)
	for _, size := range []int64{-1, 0, 5} {
		if there, err := c.arrived(t.Context(), digest.FromString("a layer"), size, size); there {
			t.Errorf("size %d: arrived = true, %v; want false", size, err)
		}
	}
}

// signing adds credentials to whatever goes through it.
type signing struct{ http.RoundTripper }

func (s signing) RoundTrip(r *http.Request) (*http.Response, error) {
	r.SetBasicAuth("me", "secret")
	return s.RoundTripper.RoundTrip(r)
}

// Pulp leads to a page of its own origin, and that to external storage. A blob
// that is proved to be there is not sent again.
func TestExistsFollowsToStorageElsewhere(t *testing.T) {
	blob := digest.FromString("a layer")
	for name, tt := range map[string]struct {
		size   int64
		direct bool                  // without a page of the registry's own between
		answer func(http.Header) int // of the storage
		asked  int64
		want   bool
	}{
		"the blob":     {7, false, func(h http.Header) int { h.Set("Content-Length", "7"); return 200 }, 1, true},
		"another size": {7, false, func(h http.Header) int { h.Set("Content-Length", "8"); return 200 }, 1, false},
		"no size":      {7, false, func(http.Header) int { return 200 }, 1, false},
		"a page": {7, false, func(h http.Header) int {
			h.Set("Content-Length", "7")
			h.Set("Content-Type", "text/html; charset=utf-8")
			return 200
		}, 1, false},
		"another blob": {7, false, func(h http.Header) int {
			h.Set("Content-Length", "7")
			h.Set("Docker-Content-Digest", digest.FromString("another").String())
			return 200
		}, 1, false},
		"not there":      {7, false, func(http.Header) int { return 404 }, 1, false},
		"not allowed":    {7, false, func(http.Header) int { return 403 }, 1, false},
		"broken":         {7, false, func(http.Header) int { return 500 }, 1, false},
		"no answer":      {7, false, func(http.Header) int { panic(http.ErrAbortHandler) }, 1, false},
		"no end":         {7, false, func(h http.Header) int { h.Set("Location", "/on"+h.Get("At")); h.Del("At"); return 302 }, 4, false},
		"an empty blob":  {0, false, func(h http.Header) int { h.Set("Content-Length", "0"); return 200 }, 1, false},
		"a size unknown": {-1, false, func(h http.Header) int { h.Set("Content-Length", "7"); return 200 }, 1, false},
		"directly":       {7, true, func(http.Header) int { return 404 }, 0, true}, // as S3 behind distribution
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, _, ok := r.BasicAuth(); ok || r.Method != http.MethodHead {
					t.Errorf("%s with credentials: %t", r.Method, ok)
				}
				asked.Add(1)
				w.Header().Set("At", r.URL.Path)
				status := tt.answer(w.Header())
				w.WriteHeader(status)
			}))
			defer storage.Close()
			reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				to := "/pulp/content"
				if r.URL.Path == to || tt.direct {
					to = storage.URL + "/blob"
				}
				w.Header().Set("Location", to)
				w.WriteHeader(http.StatusFound)
			}))
			defer reg.Close()
			repo, err := repositoryAt(reg.URL)
			if err != nil {
				t.Fatal(err)
			}
			base, external := &http.Transport{}, &http.Transport{}
			defer base.CloseIdleConnections()
			defer external.CloseIdleConnections()
			c, err := New(repo, Options{PlainHTTP: true, RetryFor: -1, Transport: signing{base}, External: external})
			if err != nil {
				t.Fatal(err)
			}
			if exists, err := c.Exists(t.Context(), blob, tt.size); exists != tt.want || err != nil {
				t.Errorf("Exists = %v, %v; want %v", exists, err, tt.want)
			}
			if n := asked.Load(); n != tt.asked {
				t.Errorf("the storage was asked %d times, want %d", n, tt.asked)
			}
		})
	}
}
