// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// guarded is a registry over TLS that wants a bearer token, and its token
// server. It counts connections and sign-ins.
type guarded struct {
	*httptest.Server
	connections, signIns atomic.Int64

	mu       sync.Mutex
	password string
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{password: "secret"}
	reg := quiet()
	g.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		password := g.password
		g.mu.Unlock()
		switch _, given, _ := r.BasicAuth(); {
		case r.URL.Path == "/token" && given == password:
			g.signIns.Add(1)
			fmt.Fprintf(w, `{"token":"%s"}`, password)
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Header.Get("Authorization") != "Bearer "+password:
			scope := ""
			if repo, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/"); ok {
				scope = fmt.Sprintf(`,scope="repository:%s:pull,push"`, repo)
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"%s`, g.URL, scope))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	g.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			g.connections.Add(1)
		}
	}
	g.StartTLS()
	t.Cleanup(g.Close)
	return g
}

// address is a name: go-containerregistry follows no token server at a
// loopback address.
func (g *guarded) address() string {
	_, port, _ := net.SplitHostPort(g.Listener.Addr().String())
	return "localhost:" + port
}

func (g *guarded) pusher(t *testing.T, k authn.Keychain) *pusher.Pusher {
	t.Helper()
	g.URL = "https://" + g.address()
	pool := x509.NewCertPool()
	pool.AddCert(g.Certificate())
	p, err := pusher.New(pusher.Options{
		Keychain:        k,
		Store:           resume.MemoryStore(),
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	return p
}

// changing is a keychain whose password changes.
type changing struct{ password atomic.Pointer[string] }

func (c *changing) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: "user", Password: *c.password.Load()}), nil
}

func (c *changing) set(password string) { c.password.Store(&password) }

// TestSharedPusher pushes many images through one Pusher, as a server does. The
// pushes share connections and one sign-in for each repository.
func TestSharedPusher(t *testing.T) {
	const repositories, atOnce = 3, 16
	pushes := 3000
	if testing.Short() {
		pushes = 300
	}
	g := startGuarded(t)
	k := &changing{}
	k.set("secret")
	p := g.pusher(t, k)
	var eg errgroup.Group
	eg.SetLimit(atOnce)
	for i := range pushes {
		eg.Go(func() error {
			img := newImage(fmt.Appendf(nil, "layer %d", i))
			_, err := p.Push(t.Context(), tagOf(t, fmt.Sprintf("%s/team/app%d:%d", g.address(), i%repositories, i)), img)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := g.connections.Load(); n >= 100 {
		t.Errorf("%d pushes made %d connections, want fewer than 100", pushes, n)
	}
	if n := g.signIns.Load(); n > repositories {
		t.Errorf("%d pushes to %d repositories signed in %d times", pushes, repositories, n)
	}
	t.Logf("%d pushes: %d connections, %d sign-ins", pushes, g.connections.Load(), g.signIns.Load())
}

// TestSharedPusherNewPassword changes the password between two pushes.
func TestSharedPusherNewPassword(t *testing.T) {
	g := startGuarded(t)
	k := &changing{}
	k.set("secret")
	p := g.pusher(t, k)
	ref := tagOf(t, g.address()+"/team/app:1")
	for _, password := range []string{"secret", "changed"} {
		k.set(password)
		g.mu.Lock()
		g.password = password
		g.mu.Unlock()
		if _, err := p.Push(t.Context(), ref, newImage([]byte(password))); err != nil {
			t.Fatalf("after the password was set to %q: %v", password, err)
		}
	}
	if n := g.signIns.Load(); n != 2 {
		t.Errorf("signed in %d times with 2 passwords", n)
	}
}

// tenant is the context key for whom a push is for.
type tenant struct{}

// tenants has the credentials of the tenant that a context is for.
type tenants struct{}

func (tenants) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

func (tenants) ResolveContext(ctx context.Context, _ authn.Resource) (authn.Authenticator, error) {
	user, _ := ctx.Value(tenant{}).(string)
	return &authn.Basic{Username: user, Password: "secret"}, nil
}

// TestSharedPusherTenants pushes for two users to one repository. Each request is
// signed with the credentials of the user whose push it is for.
func TestSharedPusherTenants(t *testing.T) {
	reg := quiet()
	var mu sync.Mutex
	users := map[string]bool{} // of the push under way
	host := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, _, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		users[user] = true
		mu.Unlock()
		reg.ServeHTTP(w, r)
	}))
	p := newPusher(t, pusher.Options{Keychain: tenants{}})
	for i, user := range []string{"alice", "bob", "alice"} {
		clear(users)
		ctx := context.WithValue(t.Context(), tenant{}, user)
		if _, err := p.Push(ctx, tagOf(t, host+"/team/app:1"), newImage(fmt.Appendf(nil, "layer %d", i))); err != nil {
			t.Fatal(err)
		}
		if len(users) != 1 || !users[user] {
			t.Errorf("a push for %s was signed by %v", user, users)
		}
	}
}
