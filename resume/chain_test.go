package resume

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

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
	repo, err := name.NewRepository(strings.TrimPrefix(reg.URL, "http://") + "/app")
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(repo, Options{PlainHTTP: true, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	if exists, err := c.Exists(t.Context(), digest.FromString("a layer"), 7); exists || err != nil {
		t.Errorf("Exists = %v, %v; want false: nothing says that the registry has the blob", exists, err)
	}
}
