// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rpush-go/rpush/pusher"
)

// identity has a refresh token, as docker login leaves one.
type identity struct{}

func (identity) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{IdentityToken: "refresh-token"}), nil
}

// startBearer is a registry with a token server at answers. It returns its
// host:port.
func startBearer(t *testing.T, accept func(token string) bool, answers http.HandlerFunc) string {
	t.Helper()
	reg := quiet()
	var address string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		switch {
		case r.URL.Path == "/token":
			answers(w, r)
		case !accept(token):
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:team/app:pull,push"`, address))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	address = "localhost:" + port
	return address
}

// What a token server answers is in no error: it may be a token.
func TestTokenAnswersAreNotPrinted(t *testing.T) {
	const secret = "a-refresh-token-of-somebody"
	for _, status := range []int{200, 400, 401, 403, 500} {
		for _, body := range []string{
			`{"refresh_token":"` + secret + `"}`,
			secret,
			`{"errors":[{"code":"DENIED","message":"` + secret + `"}]}`,
		} {
			host := startBearer(t, func(string) bool { return false }, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				fmt.Fprint(w, body)
			})
			for _, k := range []authn.Keychain{identity{}, basic{}} {
				p := newPusher(t, pusher.Options{Keychain: k})
				_, err := p.Push(t.Context(), tagOf(t, host+"/team/app:1"), newImage([]byte("layer")))
				if err == nil || strings.Contains(err.Error(), secret) {
					t.Errorf("status %d, %s: got %v, want an error without the answer", status, body, err)
				}
			}
		}
	}
}

// A token ends while many blobs are asked for at once. One new token serves them
// all: a refresh token may be good for one use.
func TestConcurrentRefreshesAreOne(t *testing.T) {
	const blobs = 12
	var issued, refused atomic.Int64
	all := make(chan struct{})
	valid := func(token string) bool {
		if token != "old" {
			return token == "new"
		}
		// All blobs have been asked for with the old token before one is refused.
		if refused.Add(1) == blobs {
			close(all)
		}
		<-all
		return false
	}
	host := startBearer(t, valid, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.FormValue("refresh_token") != "refresh-token" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		token := "new"
		if issued.Add(1) == 1 {
			token = "old"
		}
		fmt.Fprintf(w, `{"access_token":%q}`, token)
	})
	p := newPusher(t, pusher.Options{Keychain: identity{}, Checks: blobs})
	var layers [][]byte
	for i := range blobs - 1 { // and the config
		layers = append(layers, fmt.Appendf(nil, "layer %d", i))
	}
	if _, err := p.Push(t.Context(), tagOf(t, host+"/team/app:1"), newImage(layers...)); err != nil {
		t.Fatal(err)
	}
	if n := issued.Load(); n != 2 {
		t.Errorf("%d tokens were issued, want 2: the first and the one after it", n)
	}
}
