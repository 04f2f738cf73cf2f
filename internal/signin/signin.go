// SPDX-License-Identifier: Apache-2.0

// Package signin signs in to a registry with the credentials of a keychain, on
// behalf of every request that goes through it.
package signin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

// Transport signs in to a registry when the first request comes, so that the
// handshake runs inside the loop that retries requests. It sends requests to
// that registry only. It is safe for concurrent use.
type Transport struct {
	repo     name.Repository
	scheme   string
	keychain authn.Keychain
	base     *onlyScheme
	// scopes are what is asked for: first what is needed, then what would be
	// good to have.
	scopes []string

	// ready holds the authorising transport, or nil before the handshake; it
	// is a lock that a cancelled request can stop waiting for.
	ready chan http.RoundTripper
	// auth is what the keychain gave for the push that made the Transport. It is
	// nil after the registry refused it: the keychain is then asked again. The
	// holder of ready may use it.
	auth authn.Authenticator
}

// New makes a Transport for repo that asks for scopes, the needed one first.
// scheme is https or http. auth is what Credentials returned. The result uses
// keychain once the registry has refused auth.
func New(repo name.Repository, scheme string, keychain authn.Keychain, auth authn.Authenticator, base http.RoundTripper, scopes ...string) *Transport {
	a := &Transport{repo: repo, scheme: scheme, keychain: keychain, auth: auth, scopes: scopes, ready: make(chan http.RoundTripper, 1)}
	a.base = &onlyScheme{host: repo.RegistryStr(), scheme: scheme, base: base, tokens: newTokens()}
	a.ready <- nil
	return a
}

// RoundTrip implements http.RoundTripper.
func (a *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var rt http.RoundTripper
	select {
	case rt = <-a.ready:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	if rt == nil {
		var err error
		if rt, err = a.handshake(req.Context()); err != nil {
			a.ready <- nil
			return nil, err
		}
	}
	a.ready <- rt
	resp, err := rt.RoundTrip(a.base.tokens.mark(req))
	// Credentials that a password change made invalid get a 401 answer.
	if refused(err) || err == nil && resp.StatusCode == http.StatusUnauthorized {
		a.forget(req.Context(), rt)
	}
	return resp, err
}

// Tracker implements wire.Tracking.
func (a *Transport) Tracker() *wire.Tracker { return wire.TrackerOf(a.base.base) }

// refused holds where no token was given.
func refused(err error) bool {
	var te *transport.Error
	return errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden)
}

// forget has the next request sign in again. go-containerregistry asks for every
// scope that was once asked of it, also for that of a mount which is not to be
// had, and some token servers then give nothing any more.
func (a *Transport) forget(ctx context.Context, rt http.RoundTripper) {
	select {
	case now := <-a.ready:
		if now == rt {
			now, a.auth = nil, nil
		}
		a.ready <- now
	case <-ctx.Done():
	}
}

// Credentials asks the keychain for the credentials for a repository.
func Credentials(ctx context.Context, keychain authn.Keychain, repo name.Repository) (authn.Authenticator, *authn.AuthConfig, error) {
	auth, err := authn.Resolve(ctx, keychain, repo)
	var config *authn.AuthConfig
	if err == nil {
		config, err = authn.Authorization(ctx, auth)
	}
	if err != nil {
		return nil, nil, protocol.Kind(protocol.ErrDenied, fmt.Errorf("reading the credentials for %s: %w", repo.RegistryStr(), err))
	}
	return auth, config, nil
}

func (a *Transport) handshake(ctx context.Context) (http.RoundTripper, error) {
	auth, err := a.auth, error(nil)
	if auth == nil {
		if auth, _, err = Credentials(ctx, a.keychain, a.repo); err != nil {
			return nil, err
		}
	}
	a.base.reset()
	opts := []name.Option{name.WeakValidation}
	if a.scheme == "http" {
		opts = append(opts, name.Insecure) // or the library would not try it
	}
	reg, err := name.NewRegistry(a.repo.RegistryStr(), opts...)
	if err != nil {
		return nil, protocol.Kind(protocol.ErrEndpoint, err)
	}
	rt, err := transport.NewWithContext(ctx, reg, auth, a.base, a.scopes)
	if len(a.scopes) > 1 && refused(err) {
		// Some token servers give nothing if one scope is not granted.
		rt, err = transport.NewWithContext(ctx, reg, auth, a.base, a.scopes[:1])
	}
	if err == nil {
		return rt, nil
	}
	var te *transport.Error
	answered := errors.As(err, &te)
	if failed := a.base.failure(); a.scheme == "http" && !answered && failed != nil {
		err = failed // the library tried https too, which is no news
	} else if a.scheme == "http" && answered {
		err = te
	}
	if answered && te.Request != nil && te.Request.URL.Path == "/v2/" {
		if v := protocol.Classify(err); v.Class == protocol.Final && !errors.Is(v.Err, protocol.ErrDenied) {
			return nil, protocol.Kind(protocol.ErrEndpoint, &NotRegistryError{Host: reg.Name(), Status: te.StatusCode, Err: err})
		}
	}
	return nil, err
}

// NotRegistryError says that something answers at the address, but not as a registry
// answers GET /v2/ (distribution-spec v1.1, end-1).
type NotRegistryError struct {
	Host string
	// Status is that of the answer to GET /v2/.
	Status int
	Err    error
}

func (e *NotRegistryError) Error() string {
	return fmt.Sprintf("%s does not answer as a registry does: GET /v2/ got status %d", e.Host, e.Status)
}

// Unwrap returns the *transport.Error of go-containerregistry.
func (e *NotRegistryError) Unwrap() error { return e.Err }

// onlyScheme refuses to speak to the registry's host in the other scheme:
// go-containerregistry tries both for private addresses, and follows a
// redirect of the ping from https to http, with credentials to come.
type onlyScheme struct {
	host, scheme string
	base         http.RoundTripper
	tokens       *tokens

	mu   sync.Mutex
	last error // of a request in the allowed scheme
}

// reset forgets the failure of an earlier handshake.
func (o *onlyScheme) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = nil
}

func (o *onlyScheme) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// RoundTrip implements http.RoundTripper.
func (o *onlyScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case o.scheme == "https" && req.URL.Scheme != "https":
		// A redirect, or a token server.
		return nil, protocol.Kind(protocol.ErrEndpoint, fmt.Errorf("%w: %s", errDowngrade, req.URL.Host))
	case req.URL.Host == o.host && req.URL.Scheme != o.scheme:
		return nil, errOtherScheme
	}
	send := o.base.RoundTrip
	if o.tokens.asks(req) {
		send = func(req *http.Request) (*http.Response, error) { return o.tokens.get(req, o.base) }
	}
	resp, err := send(req)
	if err != nil {
		o.mu.Lock()
		o.last = err
		o.mu.Unlock()
	}
	return resp, err
}

var (
	errDowngrade   = errors.New("a secure registry leads to plain HTTP")
	errOtherScheme = errors.New("only plain HTTP is to be spoken to the registry")
)
