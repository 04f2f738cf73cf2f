// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/signin"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// The most that a Pusher keeps between pushes. What exceeds a bound is
// dropped, least recently used first, and made again when it is needed.
const (
	maxSignIns   = 512
	maxExternals = 64
)

// connections holds what the pushes of one Pusher share: a sign-in for each
// repository, set of scopes and credentials, and a transport to each registry's storage.
// It is safe for concurrent use.
type connections struct {
	mu        sync.Mutex
	signIns   recent[*signin.Transport]
	externals recent[external]
	reached   recent[*atomic.Bool]
}

// external is a transport to a registry's storage, also as Options.Wrap wraps it.
type external struct {
	own     *wire.External
	wrapped http.RoundTripper
}

func newConnections() *connections {
	return &connections{
		signIns:   recent[*signin.Transport]{limit: maxSignIns},
		externals: recent[external]{limit: maxExternals},
		reached:   recent[*atomic.Bool]{limit: maxExternals},
	}
}

// recent is a map that drops its least recently used entry when it is full.
type recent[V any] struct {
	limit   int
	entries map[string]recentEntry[V]
	clock   uint64
}

type recentEntry[V any] struct {
	value V
	used  uint64
}

// get returns the value of key, made by create if there is none yet.
func (r *recent[V]) get(key string, create func() V) V {
	r.clock++
	e, ok := r.entries[key]
	if !ok {
		e.value = create()
		if r.entries == nil {
			r.entries = map[string]recentEntry[V]{}
		}
		if len(r.entries) >= r.limit {
			r.dropOldest()
		}
	}
	e.used = r.clock
	r.entries[key] = e
	return e.value
}

func (r *recent[V]) dropOldest() {
	oldest, used := "", r.clock
	for k, e := range r.entries {
		if e.used < used {
			oldest, used = k, e.used
		}
	}
	delete(r.entries, oldest)
}

// connect returns a client that signs in to repo. Clients for the same
// repository, scopes and credentials share one sign-in, and all clients share
// connections. d is the delivery that the client is for, or nil.
func (p *Pusher) connect(ctx context.Context, repo name.Repository, d *Delivery, scopes ...string) (*resume.Client, error) {
	scheme, err := p.scheme(ctx, repo)
	if err != nil {
		return nil, err
	}
	a, err := p.signIn(ctx, repo, scheme, scopes)
	if err != nil {
		return nil, err
	}
	return p.client(ctx, repo, scheme, a, p.external(repo, scheme), d)
}

// signIn returns the transport for repo and scopes that pushes with the same
// credentials share. The keychain is asked for each push: it may have new
// credentials by now, or others for another context.
func (p *Pusher) signIn(ctx context.Context, repo name.Repository, scheme string, scopes []string) (*signin.Transport, error) {
	auth, config, err := signin.Credentials(ctx, p.o.Keychain, repo)
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s %s %q %x", scheme, repo.Name(), scopes, sha256.Sum256(fmt.Appendf(nil, "%q", *config)))
	reached := p.reached(repo)
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	return p.shared.signIns.get(key, func() *signin.Transport {
		return signin.New(repo, scheme, p.o.Keychain, auth, &noting{p.base, repo.RegistryStr(), reached}, scopes...)
	}), nil
}

// reached returns what says whether the registry of repo has ever answered.
func (p *Pusher) reached(repo name.Repository) *atomic.Bool {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	return p.shared.reached.get(repo.RegistryStr(), func() *atomic.Bool { return new(atomic.Bool) })
}

// noting takes note of the first answer of a registry.
type noting struct {
	base     http.RoundTripper
	registry string
	reached  *atomic.Bool
}

// RoundTrip implements http.RoundTripper.
func (n *noting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := n.base.RoundTrip(req)
	if err == nil && req.URL.Host == n.registry {
		n.reached.Store(true)
	}
	return resp, err
}

// Tracker implements wire.Tracking.
func (n *noting) Tracker() *wire.Tracker { return wire.TrackerOf(n.base) }

// external returns the transport for upload locations that the registry of
// repo names on other hosts.
func (p *Pusher) external(repo name.Repository, scheme string) http.RoundTripper {
	if p.own == nil {
		return p.base
	}
	registry := protocol.HostPort(&url.URL{Scheme: scheme, Host: repo.RegistryStr()})
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	e := p.shared.externals.get(registry, func() external {
		own := p.own.External(registry)
		return external{own, p.wrap(own)}
	})
	return e.wrapped
}

// CloseIdleConnections closes the connections that no push is using. A Pusher
// needs no other cleanup: idle connections close by themselves after 90
// seconds. It does not affect Options.Transport. It is safe for concurrent use.
func (p *Pusher) CloseIdleConnections() {
	if p.own == nil {
		return
	}
	p.own.CloseIdleConnections()
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	for _, e := range p.shared.externals.entries {
		e.value.own.CloseIdleConnections()
	}
}
