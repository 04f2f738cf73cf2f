// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

// A host without a dot, as a compose service has it, is not a path on Docker Hub.
func TestHostWithoutDot(t *testing.T) {
	var s *site
	asked := &askedKeychain{auth: authn.FromConfig(authn.AuthConfig{Username: "robot", Password: "secret"})}
	connect := func(context.Context, string) (gateway.Upstream, error) {
		to, err := url.Parse(s.upstream.URL)
		return gateway.Upstream{URL: &url.URL{Scheme: "http", Host: "registry"}, Proxy: http.ProxyURL(to)}, err
	}
	s = newSite(t, scripted.Options{Store: scripted.Fragile, Auth: scripted.Auth{Scheme: scripted.Basic, User: "robot", Password: "secret"}},
		gateway.ServerOptions{Upstream: "registry", Allow: []string{"registry/team"}, Keychain: asked, Connect: connect, AcceptDir: t.TempDir()}, nil, 2)
	data, dgst := randomBlob(7, 1000)
	resp, body := s.do("POST", "/v2/team/app/blobs/uploads/?mount="+dgst+"&from=team/other", "")
	if resp.StatusCode != 202 {
		t.Fatalf("POST: %d %s", resp.StatusCode, body)
	}
	resp, body = s.do("PUT", resp.Header.Get("Location")+"?digest="+dgst, string(data))
	if resp.StatusCode != 201 || !bytes.Equal(s.blob("team/app", dgst), data) {
		t.Errorf("PUT: %d %s", resp.StatusCode, body)
	}
	for _, host := range asked.registries() {
		if host != "registry" {
			t.Errorf("the credentials of %s were used", host)
		}
	}
	for _, q := range s.requests() {
		if q.Host != "registry" {
			t.Errorf("%s went to %s", q.Method, q.Host)
		}
	}
}

// askedKeychain notes the registries it is asked about.
type askedKeychain struct {
	auth authn.Authenticator

	mu    sync.Mutex
	asked []string
}

func (k *askedKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, r.RegistryStr())
	return k.auth, nil
}

func (k *askedKeychain) registries() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// Without from, a registry may take the blob of a mount out of any repository that
// the credentials can read.
func TestMountWithoutFrom(t *testing.T) {
	dgst := digest.FromString("private").String()
	for _, allow := range []bool{true, false} {
		so := gateway.ServerOptions{Upstream: itself}
		if allow {
			so.Allow = []string{itself + "/team"}
			so.Keychain = keychain{authn.FromConfig(authn.AuthConfig{Username: "robot", Password: "secret"})}
		}
		s := newSite(t, scripted.Options{}, so, nil)
		for _, query := range []string{"mount=" + dgst, "mount=" + dgst + "&from=", "from=&mount=" + dgst + "&from=private/app"} {
			if resp, body := s.do("POST", "/v2/team/app/blobs/uploads/?"+query, ""); resp.StatusCode != 202 {
				t.Errorf("%s: %d %s", query, resp.StatusCode, body)
			}
		}
		for _, q := range s.requests() {
			if q.Method == http.MethodPost && allow && q.URL.Query().Has("mount") {
				t.Errorf("the registry was asked for %s with the gateway's credentials", q.URL)
			}
		}
	}
}
