package resume

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// clientOf is a client for a registry in plain HTTP that tries once.
func clientOf(t *testing.T, registry string) *Client {
	t.Helper()
	repo, err := name.NewRepository(strings.TrimPrefix(registry, "http://") + "/app")
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
