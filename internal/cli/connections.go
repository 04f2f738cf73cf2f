// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"golang.org/x/net/http/httpproxy"

	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/engine"
	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// role is what a call does with a registry. One host can have both roles; the
// flags of one role never apply to the other.
type role int

const (
	// asTarget is for every registry but that of SOURCE: those that are pushed
	// to, and those that are asked which layers they have.
	asTarget role = iota
	// asSource is for the registry that SOURCE names.
	asSource
)

// connections decides how rpush connects and signs in to each registry of a
// call. Nothing else makes options of the library, so that a flag can only
// reach the registry that it is about:
//
//   - --src- flags apply to the registry of SOURCE, in that role;
//   - the flags without this prefix apply to the registry of REFERENCE;
//   - any other registry gets what docker would use, and see [endpoint.elsewhere].
//
// It is safe for concurrent use once readPasswords has returned.
type connections struct {
	a         *app
	o         *options
	reference string          // the registry of REFERENCE
	source    name.Repository // zero if SOURCE is not at a registry

	to, from     *credentials.Keychain
	proxyWarning sync.Once

	mu      sync.Mutex
	readers map[string]*pusher.Pusher // by registry
}

// connect returns the connections of a call whose REFERENCE is at this registry.
func (a *app) connect(o *options, reference string, source name.Repository) *connections {
	return &connections{
		a: a, o: o, reference: reference, source: source,
		to: o.to.keychain(reference), from: o.from.keychain(source.RegistryStr()),
	}
}

// sourceRepository is the one that SOURCE names; zero if SOURCE is not at a
// registry.
func (c call) sourceRepository() name.Repository {
	if spec, ok := strings.CutPrefix(c.source, "docker://"); ok {
		if ref, err := name.ParseReference(spec, name.WeakValidation); err == nil {
			return ref.Context()
		}
	}
	return name.Repository{}
}

// readPasswords reads the password that a flag says is on standard input.
func (x *connections) readPasswords() error {
	if err := x.o.to.readPassword(x.a.stdin, x.to); err != nil {
		return err
	}
	return x.o.from.readPassword(x.a.stdin, x.from)
}

// endpoint has the flags for a registry.
func (x *connections) endpoint(registry string, as role) *endpoint {
	switch {
	case as == asSource:
		return &x.o.from
	case registry == x.reference:
		return &x.o.to
	}
	return x.o.to.elsewhere()
}

// keys has the credentials for registries in a role. What flags give, it has
// for the registry of REFERENCE, or of SOURCE, only.
func (x *connections) keys(as role) *credentials.Keychain {
	if as == asSource {
		return x.from
	}
	return x.to
}

// transport returns the library's options for a registry without credentials.
// It reads certificates.
func (x *connections) transport(registry string, as role) (pusher.Options, error) {
	po := x.o.effort()
	eng := x.o.engine.from.Load()
	if err := x.endpoint(registry, as).apply(&po, registry, eng); err != nil {
		return po, err
	}
	if eng != nil {
		x.adoptProxies(&po, eng)
	}
	if x.o.verbose {
		po.Logger = x.a.logger(logrus.DebugLevel)
	}
	return po, nil
}

// options returns the library's options for a repository. It reads certificates
// and credentials, before the first connection: a broken config file must not
// look like the registry's fault.
func (x *connections) options(repo name.Repository, as role) (pusher.Options, error) {
	po, err := x.transport(repo.RegistryStr(), as)
	if err != nil {
		return po, err
	}
	po.Keychain = x.keys(as)
	_, err = po.Keychain.Resolve(repo)
	return po, err
}

// reader returns a pusher that reads manifests and configs of a repository, which
// only helps and so does not try for long. Repositories of one registry share a
// pusher.
func (x *connections) reader(repo name.Repository) (*pusher.Pusher, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	registry := repo.RegistryStr()
	if p := x.readers[registry]; p != nil {
		return p, nil
	}
	po, err := x.options(repo, asTarget)
	if err != nil {
		return nil, err
	}
	po.RetryFor, po.Store = stream.LearnFor, resume.NoStore()
	p, err := pusher.New(po)
	if err != nil {
		return nil, err
	}
	if x.readers == nil {
		x.readers = map[string]*pusher.Pusher{}
	}
	x.readers[registry] = p
	return p, nil
}

// closeIdle closes the idle connections of readers.
func (x *connections) closeIdle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.readers {
		p.CloseIdleConnections()
	}
}

// adoptProxies uses the engine's proxies.
func (x *connections) adoptProxies(po *pusher.Options, eng *engine.Engine) {
	httpProxy, httpsProxy, noProxy, ok := eng.Proxies()
	if !ok {
		return
	}
	for _, p := range []string{httpProxy, httpsProxy} {
		if u, err := url.Parse(p); err == nil && u.User != nil {
			// The engine shows no password.
			x.proxyWarning.Do(func() { x.a.out.note("warning: " + proxySecretWords) })
			return
		}
	}
	choose := (&httpproxy.Config{HTTPProxy: httpProxy, HTTPSProxy: httpsProxy, NoProxy: noProxy}).ProxyFunc()
	po.Proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}

// concerned is the repository that a failure is about, and its role.
func (x *connections) concerned(err error, target name.Repository) (name.Repository, role) {
	var one *resume.Error
	for x.source != (name.Repository{}) && errors.As(err, &one) {
		if one.Repository == x.source.Name() {
			return x.source, asSource
		}
		err = one.Err
	}
	return target, asTarget
}
