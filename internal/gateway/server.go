// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// The defaults of ServerOptions.
const (
	DefaultMaxRequests = 2048
	DefaultIdleTimeout = 5 * time.Minute
)

// ServerOptions are those of a Server. Connect is required.
type ServerOptions struct {
	// Upstream is the registry whose repositories the server has, under their own
	// names. If it is empty, the first element of a name is its registry, or
	// containerd's parameter ns.
	Upstream string
	// Registries, unless empty, are the only ones that clients may name.
	Registries []string
	// Connect says how to connect to a registry, for a host as of
	// name.Registry.RegistryStr. It is called again if it fails.
	Connect func(ctx context.Context, registry string) (Upstream, error)

	// Keychain, unless nil, has the gateway's own credentials. They are used for
	// what Allow names, and for nothing else.
	Keychain authn.Keychain
	// Allow are registries, HOST, and repositories, HOST/REPOSITORY with all below
	// it.
	Allow []string

	// Authenticate, unless nil, says whether a client with this user and password
	// may use the gateway. The client's credentials are then never handed on. It
	// is called for every request. If it fails, the client gets 503.
	Authenticate func(ctx context.Context, user, password string) (bool, error)

	// AcceptDir, unless empty, makes the server keep upload sessions of its own, in a
	// subdirectory: every byte that arrives is kept, and a blob goes to the registry
	// when the client commits it. It is for a gateway beside a registry that loses
	// sessions. NewServer fails with ErrDirInUse if another server uses the directory.
	AcceptDir string
	// AcceptLimit bounds the bytes of all these uploads. 0 is
	// resume.DefaultSpoolLimit.
	AcceptLimit int64

	// AnyHost lets clients address the server by any name. Without it only names
	// of loopback addresses are taken, so that no web page can make a browser use
	// the gateway under the page's own name.
	AnyHost bool

	// MaxRequests bounds the requests that are served at once; more get 503. 0 is
	// DefaultMaxRequests.
	MaxRequests int
	// IdleTimeout is how long a client may send or take nothing while a body is
	// under way. 0 is DefaultIdleTimeout.
	IdleTimeout time.Duration
}

// maxUpstreams bounds the registries whose connections are kept.
const maxUpstreams = 64

// Server is an endpoint of the distribution specification for clients that
// address the gateway, not the registry. It is safe for concurrent use.
type Server struct {
	g     *Gateway
	o     ServerOptions
	slots chan struct{}
	seal  *sealer

	accepted *accepted // nil unless the server keeps uploads of its own
	ctx      context.Context
	stop     context.CancelFunc // ends ctx, of what hands uploads on
	running  sync.WaitGroup

	mu        sync.Mutex
	upstreams map[string]*served
}

// served is a registry in use.
type served struct {
	up      *upstream
	used    time.Time
	signIns map[string]http.RoundTripper
}

// NewServer makes a Server. It does not touch the network.
func (g *Gateway) NewServer(o ServerOptions) (*Server, error) {
	if o.MaxRequests == 0 {
		o.MaxRequests = DefaultMaxRequests
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	if o.MaxRequests < 0 || o.IdleTimeout < 0 {
		return nil, errors.New("gateway: a limit is negative")
	}
	if (o.Keychain == nil) != (len(o.Allow) == 0) {
		return nil, errors.New("gateway: credentials and what they may be used for go together")
	}
	for _, list := range []*[]string{&o.Allow, &o.Registries} {
		*list = slices.Clone(*list)
		for i, v := range *list {
			host, repo, _ := strings.Cut(v, "/")
			host, ok := registryHost(host)
			if !ok || repo != "" && (list == &o.Registries || !repositoryName.MatchString(repo)) {
				return nil, fmt.Errorf("gateway: %q is neither a registry nor a repository", v)
			}
			(*list)[i] = strings.TrimSuffix(host+"/"+repo, "/")
		}
	}
	if o.Upstream != "" {
		var ok bool
		if o.Upstream, ok = registryHost(o.Upstream); !ok {
			return nil, errors.New("gateway: the upstream is not a registry")
		}
	}
	seal, err := newSealer()
	if err != nil {
		return nil, err
	}
	s := &Server{g: g, o: o, slots: make(chan struct{}, o.MaxRequests), seal: seal, upstreams: map[string]*served{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if o.AcceptDir != "" {
		if s.accepted, err = openAccepted(o.AcceptDir, cmp.Or(o.AcceptLimit, resume.DefaultSpoolLimit)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.Admit(w, r) {
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		w.Header().Set("Retry-After", "5")
		fail(w, http.StatusServiceUnavailable, "TOOMANYREQUESTS", "the gateway serves as many requests as it may")
		return
	}
	w, r, done := patient(w, r, s.o.IdleTimeout)
	defer done()
	rt, ok := parseRoute(r.URL, s.o.Upstream == "")
	switch {
	case !ok:
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "the path is none of the distribution specification that this gateway serves"+s.naming())
	case !slices.Contains(methods[rt.kind], r.Method):
		w.Header().Set("Allow", strings.Join(methods[rt.kind], ", "))
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "the method is not one of this path's")
	default:
		s.serve(w, r, rt)
	}
}

func (s *Server) naming() string {
	if s.o.Upstream != "" {
		return ""
	}
	return "; names are REGISTRY/REPOSITORY"
}

// Admit refuses clients that may not use the gateway at all: it has answered if
// it reports false. ServeHTTP calls it.
func (s *Server) Admit(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
		fail(w, http.StatusForbidden, "DENIED", "the gateway is not for browsers")
		return false
	case !s.o.AnyHost && !loopbackName(r.Host):
		fail(w, http.StatusMisdirectedRequest, "DENIED", "the gateway is not for clients that address it by this name")
		return false
	case s.o.Authenticate == nil:
		return true
	}
	if user, password, ok := r.BasicAuth(); ok {
		switch ok, err := s.o.Authenticate(r.Context(), user, password); {
		case err != nil:
			w.Header().Set("Retry-After", "5")
			fail(w, http.StatusServiceUnavailable, "UNAVAILABLE", err.Error())
			return false
		case ok:
			return true
		}
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="rpush gateway"`)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "the gateway asks for a user and a password")
	return false
}

// loopbackName reports whether a Host header can only mean this machine.
func loopbackName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// serve forwards a request to its registry.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, rt route) {
	registry := rt.registry
	switch {
	case s.o.Upstream != "" && registry != "" && registry != s.o.Upstream:
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "the gateway serves another registry than ns names")
		return
	case s.o.Upstream != "":
		registry = s.o.Upstream
	case registry == "" && rt.kind == aboutRegistry:
		// Which registry a client means is not known yet.
		hello(w)
		return
	case registry == "":
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "the registry is missing"+s.naming())
		return
	case len(s.o.Registries) > 0 && !slices.Contains(s.o.Registries, registry):
		fail(w, http.StatusForbidden, "DENIED", "the gateway does not serve this registry")
		return
	}
	in, err := s.upstream(r.Context(), registry)
	if err != nil {
		s.g.failed(w, r, err)
		return
	}
	if rt.kind == aboutRegistry && s.o.Keychain != nil {
		hello(w)
		return
	}
	c := &call{up: in.up, strip: s.o.Authenticate != nil, query: withoutNS(r.URL.RawQuery)}
	switch rt.kind {
	case aboutRegistry:
		c.path = apiVersion
	case aboutCatalog:
		c.path = apiVersion + "_catalog"
	default:
		c.path = apiVersion + rt.repository + "/" + rt.rest
	}
	view := view{s: s, rt: rt, registry: registry, up: in.up}
	c.location, c.link = view.location, view.link
	if rt.kind == aboutUpload {
		if at, sealed, ok := s.seal.open(view.scope(), rt.rest, c.query); sealed && !ok {
			fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "the gateway does not know this upload")
			return
		} else if sealed {
			c.at = at
		}
	}
	if rt.kind == aboutUploads {
		c.query = s.mount(registry, rt, c.query)
	}
	if rt.repository != "" && s.allowed(registry, rt.repository) {
		if c.signIn, err = s.signIn(r.Context(), in, registry, rt, c.query); err != nil {
			s.g.failed(w, r, err)
			return
		}
	}
	if s.accepted != nil && rt.kind == aboutUpload && strings.HasPrefix(rt.rest, "blobs/uploads/"+acceptMark) {
		s.accept(w, r, view, c)
		return
	}
	if s.accepted != nil && rt.kind == aboutUploads {
		client := r.Header.Clone()
		c.location = func(to *url.URL, status int) string {
			if status == http.StatusAccepted {
				// The registry lets this client upload here. The upload is the gateway's.
				u, err := s.accepted.open(view.scope())
				if err == nil {
					u.opened(to, &onBehalf{s: s, c: c, client: client})
					return view.acceptedAt(u.id)
				}
				s.g.log().WithField("error", protocol.Text(err)).Warn("an upload goes to the registry as it comes")
			}
			return view.location(to, status)
		}
	}
	s.g.forward(w, r, c)
}

// mount checks the repository that a blob is to be mounted from: it is given the
// name that it has at the registry, and is left out if it is elsewhere, or if the
// gateway's credentials would be used for what they are not meant for. That is so
// without a repository too: the registry may then take the blob from any that the
// credentials can read (distribution-spec v1.1, end-11). The registry then opens an
// upload.
func (s *Server) mount(registry string, rt route, query string) string {
	q, err := url.ParseQuery(query)
	from := q.Get("from")
	if err != nil || !q.Has("from") && !q.Has("mount") {
		return query
	}
	own := s.allowed(registry, rt.repository)
	if from == "" && !own {
		return query
	}
	ok := true
	if rt.prefix {
		var host string
		host, from, _ = strings.Cut(from, "/")
		host, ok = registryHost(host)
		ok = ok && host == registry
	}
	ok = ok && repositoryName.MatchString(from) && len(q["from"]) == 1
	if !ok || own && !s.allowed(registry, from) {
		q.Del("from")
		q.Del("mount")
		return q.Encode()
	}
	q.Set("from", from)
	return q.Encode()
}

// allowed reports whether the gateway's own credentials are for a repository.
func (s *Server) allowed(registry, repository string) bool {
	if s.o.Keychain == nil {
		return false
	}
	full := registry + "/" + repository
	return slices.ContainsFunc(s.o.Allow, func(a string) bool {
		return full == a || strings.HasPrefix(full, a+"/")
	})
}

// hello answers GET /v2/ as a registry that asks for no credentials.
func hello(w http.ResponseWriter) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte("{}")) //nolint:errcheck // the client may have gone
}

// upstream returns the connections to a registry, made when it is first used.
func (s *Server) upstream(ctx context.Context, registry string) (*served, error) {
	s.mu.Lock()
	in := s.upstreams[registry]
	if in != nil {
		in.used = time.Now()
	}
	s.mu.Unlock()
	if in != nil {
		return in, nil
	}
	u, err := s.o.Connect(ctx, registry)
	if err != nil {
		return nil, err
	}
	up, err := s.g.connect(u)
	if err != nil {
		return nil, err
	}
	if err := s.g.settleScheme(ctx, up, u.MaybePlain); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in := s.upstreams[registry]; in != nil {
		return in, nil
	}
	if len(s.upstreams) >= maxUpstreams {
		oldest := ""
		for k, v := range s.upstreams {
			if oldest == "" || v.used.Before(s.upstreams[oldest].used) {
				oldest = k
			}
		}
		s.upstreams[oldest].up.closeIdleConnections() // its requests go on
		delete(s.upstreams, oldest)
	}
	in = &served{up: up, used: time.Now(), signIns: map[string]http.RoundTripper{}}
	s.upstreams[registry] = in
	return in, nil
}

// CloseIdleConnections closes the connections to registries that no request is
// using.
func (s *Server) CloseIdleConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.upstreams {
		in.up.closeIdleConnections()
	}
}

// Close lets another server use AcceptDir. No request may be under way.
func (s *Server) Close() error {
	s.stop()
	s.running.Wait()
	if s.accepted == nil {
		return nil
	}
	return s.accepted.lock.Close()
}

// view is what a client sees of a registry.
type view struct {
	s        *Server
	rt       route
	registry string
	up       *upstream
}

// scope is what a sealed location is good for.
func (v view) scope() string { return v.registry + "/" + v.rt.repository }

// name is the repository as the client names it.
func (v view) name() string {
	if v.rt.prefix {
		return v.registryName() + "/" + v.rt.repository
	}
	return v.rt.repository
}

// registryName is the registry as it was in the client's path.
func (v view) registryName() string {
	if v.registry == name.DefaultRegistry {
		return "docker.io"
	}
	return v.registry
}

// location gives the client a path at the gateway for what the registry named.
// It is relative, so it holds whatever name the gateway has for the client. An
// upload that is elsewhere than below the repository is sealed into a path.
func (v view) location(to *url.URL, status int) string {
	own := protocol.SameOrigin(v.up.url, to)
	prefix := apiVersion + v.rt.repository + "/"
	rest, below := strings.CutPrefix(to.Path, prefix)
	var r route
	plain := own && below && to.RawPath == "" && r.split(strings.TrimPrefix(to.Path, apiVersion)) && r.repository == v.rt.repository
	switch {
	case plain && strings.HasPrefix(rest, "blobs/uploads/") && strings.HasPrefix(strings.TrimPrefix(rest, "blobs/uploads/"), sealMark):
		// It would be taken for one of the gateway's own.
	case plain:
		return v.query(apiVersion+v.name()+"/"+rest, to.RawQuery)
	case status == http.StatusAccepted:
	case v.rt.kind == aboutUpload && (status == http.StatusNoContent || status == http.StatusRequestedRangeNotSatisfiable):
		// It says where the upload stands.
	default:
		return to.String() // not an upload: the client may follow by itself
	}
	return v.query(apiVersion+v.name()+"/blobs/uploads/"+v.s.seal.close(v.scope(), to), "")
}

// link gives the client's path of the next page of a list.
func (v view) link(path string) string {
	rest, ok := strings.CutPrefix(path, apiVersion+v.rt.repository+"/")
	if !ok || v.rt.repository == "" {
		return path
	}
	return apiVersion + v.name() + "/" + rest
}

// query adds containerd's parameter to a path if the client used it.
func (v view) query(path, raw string) string {
	if !v.rt.prefix && v.rt.registry != "" {
		if raw != "" {
			raw += "&"
		}
		raw += nsQuery + "=" + url.QueryEscape(v.rt.registry)
	}
	if raw != "" {
		return path + "?" + raw
	}
	return path
}
