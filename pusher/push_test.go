// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func TestPushImage(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		img := newImage(content(1, 100_000), content(2, 1), content(3, 50_000), nil)
		r := l.pushes("reg.test/team/app:v1", img)
		l.has("team/app", "v1", img)
		if r.Reference != "reg.test/team/app:v1" || r.Digest != digest.FromBytes(img.raw) || len(r.Blobs) != 5 || len(r.Manifests) != 1 {
			t.Errorf("report %+v", r)
		}
		want := int64(150_001 + len(img.config))
		if r.Sent != want || r.Size != want+int64(len(img.raw)) || r.Breaks+r.Resumes+r.Restarts != 0 {
			t.Errorf("report %+v", r)
		}
		// The second time nothing is sent, the manifest neither.
		posts, puts := l.count(scripted.Post), l.count(scripted.PutManifest)
		r = l.pushes("reg.test/team/app:v1", img)
		if r.Sent != 0 || l.count(scripted.Post) != posts || l.count(scripted.PutManifest) != puts || !r.Manifests[0].Existed {
			t.Errorf("report of the second push %+v", r)
		}
		l.pushes("reg.test/team/app:v2", img)
		l.has("team/app", "v2", img)
	})
}

func TestPushIndex(t *testing.T) {
	shared := content(9, 70_000)
	a, b := newImage(shared, content(1, 1000)), newImage(shared, content(2, 1000), shared)
	inner := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: b})
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: a}, mutate.IndexAddendum{Add: inner}, mutate.IndexAddendum{Add: b})
	inLab(t, scripted.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 30_000, Down: -1} }
		r := l.pushes("reg.test/a:1", idx)
		l.has("a", digest.FromBytes(a.raw).String(), a)
		l.has("a", digest.FromBytes(b.raw).String(), b)
		raw, err := idx.RawManifest()
		if err != nil || !bytes.Equal(l.reg.Manifest("a", "1"), raw) {
			t.Errorf("the index is %q, %v", l.reg.Manifest("a", "1"), err)
		}
		if len(r.Manifests) != 4 || len(r.Blobs) != 5 {
			t.Errorf("%d manifests and %d blobs, want 4 and 5", len(r.Manifests), len(r.Blobs))
		}
		opened := map[string]int{}
		for _, q := range l.reg.Requests() {
			if q.Kind == scripted.Put && q.Status == http.StatusCreated {
				opened[q.Reference]++
			}
		}
		if n := opened[digest.FromBytes(shared).String()]; n != 1 {
			t.Errorf("the shared blob was committed %d times", n)
		}
	})
}

// Anything with a manifest can be pushed, as remote.Push has it.
func TestPushTaggable(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		l.pushes("reg.test/a:1", taggable(`{"schemaVersion":2}`))
		if got := string(l.reg.Manifest("a", "1")); got != `{"schemaVersion":2}` {
			t.Errorf("got %q", got)
		}
	})
}

type taggable string

func (s taggable) RawManifest() ([]byte, error) { return []byte(s), nil }

func TestForeignLayersAreNotSent(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		img := &foreign{newImage(content(1, 100))}
		r := l.pushes("reg.test/a:1", img)
		if len(r.Blobs) != 1 { // the config
			t.Errorf("report %+v", r)
		}
	})
}

type foreign struct{ *image }

func (f *foreign) RawManifest() ([]byte, error) {
	var m v1.Manifest
	if err := json.Unmarshal(f.raw, &m); err != nil {
		return nil, err
	}
	m.Layers[0].MediaType, m.Layers[0].URLs = types.DockerForeignLayer, []string{"https://elsewhere.example/layer"}
	return json.Marshal(m)
}
func (f *foreign) Layers() ([]v1.Layer, error) {
	return []v1.Layer{layer{f.layers[0], types.DockerForeignLayer}}, nil
}

func TestMountableLayer(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		base := content(1, 10_000)
		img := newImage(base)
		l.reg.PutBlob("team/base", digest.FromBytes(base).String(), base)
		ref, _ := name.ParseReference("reg.test/team/base:1")
		r := l.pushes("reg.test/team/app:1", &mounting{img, ref})
		l.has("team/app", "1", img)
		if r.Blobs[0].State != pusher.BlobMounted || r.Blobs[0].Sent != 0 {
			t.Errorf("report %+v", r.Blobs[0])
		}
	})
}

type mounting struct {
	*image
	from name.Reference
}

func (m *mounting) Layers() ([]v1.Layer, error) {
	ls, err := m.image.Layers()
	return []v1.Layer{&remote.MountableLayer{Layer: ls[0], Reference: m.from}}, err
}

func TestParallel(t *testing.T) {
	var layers [][]byte
	for i := range 12 {
		layers = append(layers, content(byte(i), 1000))
	}
	busy, most := atomic.Int64{}, atomic.Int64{}
	slow := func(r scripted.Request) scripted.Action {
		if r.Kind != scripted.Patch {
			return scripted.Action{}
		}
		if n := busy.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.AfterFunc(time.Second, func() { busy.Add(-1) })
		return scripted.Action{DelayBefore: time.Second + time.Millisecond}
	}
	inLab(t, scripted.Options{Intercept: slow}, func(l *lab) {
		l.o.Parallel = 3
		l.pushes("reg.test/a:1", newImage(layers...))
		if most.Load() != 3 {
			t.Errorf("%d uploads at once, want 3", most.Load())
		}
	})
}

// Nothing goes under the tag if a blob does not arrive.
func TestNoManifestWithoutItsBlobs(t *testing.T) {
	refuse := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch && r.Session == 2 {
			return scripted.Action{Before: 403}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: refuse}, func(l *lab) {
		r, err := l.push("reg.test/a:1", newImage(content(1, 1000), content(2, 1000)))
		if !errors.Is(err, resume.ErrDenied) || !named(err) {
			t.Errorf("got %v", err)
		}
		if l.count(scripted.PutManifest) != 0 {
			t.Error("a manifest was written")
		}
		if len(r.Blobs) != 3 || r.Digest == "" {
			t.Errorf("the report is empty: %+v", r)
		}
	})
}

func TestManifestTroubles(t *testing.T) {
	img := newImage(content(1, 100))
	for name, c := range map[string]struct {
		a    scripted.Action
		kind error
	}{
		"500 once":          {scripted.Action{Before: 500}, nil},
		"answer lost":       {scripted.Action{AfterReset: true}, nil},
		"answer odd":        {scripted.Action{After: 200}, nil},
		"immutable, but it": {scripted.Action{After: 409}, nil},
		"refused":           {scripted.Action{Before: 400}, resume.ErrRefused},
		"200 and nothing":   {scripted.Action{Before: 200}, resume.ErrEndpoint},
		"denied":            {scripted.Action{Before: 403}, resume.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			f := func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.PutManifest && r.Seq == 1 {
					return c.a
				}
				return scripted.Action{}
			}
			inLab(t, scripted.Options{Intercept: f}, func(l *lab) {
				if c.kind == nil {
					l.pushes("reg.test/a:1", img)
					l.has("a", "1", img)
					return
				}
				r, err := l.push("reg.test/a:1", img)
				if !errors.Is(err, c.kind) || !named(err) || r.Manifests[0].Pushed {
					t.Errorf("got %v, %+v", err, r.Manifests)
				}
			})
		})
	}
}

// A header that is no digest is no reason to fall over.
func TestGarbageInDigestHeader(t *testing.T) {
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.PutManifest {
			return scripted.Action{After: 201, Header: http.Header{"Docker-Content-Digest": {"garbage"}}}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: f}, func(l *lab) {
		l.pushes("reg.test/a:1", newImage(content(1, 100)))
	})
}

// A new tag on what is there, with a user who may only pull.
func TestRetagWithoutTheRight(t *testing.T) {
	img, deny := newImage(content(1, 100)), false
	f := func(r scripted.Request) scripted.Action {
		if deny && r.Kind == scripted.PutManifest {
			return scripted.Action{Before: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="http://reg.test/token",service="scripted",scope="repository:a:pull,push",error="insufficient_scope"`}}}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Auth: scripted.Auth{Scheme: scripted.Bearer, User: "ci", Password: "secret"}, Intercept: f}, func(l *lab) {
		l.o.Keychain = user
		l.pushes("reg.test/a:1", img)
		deny = true
		began := time.Now()
		if _, err := l.push("reg.test/a:2", img); !errors.Is(err, resume.ErrDenied) || time.Since(began) > time.Minute {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

// Layers are opened once each: opening one may be a download, or a compressor.
func TestLayersAreOpenedOnce(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		img := &opening{image: newImage(content(1, 100), content(2, 100))}
		l.pushes("reg.test/a:1", img)
		if n := img.n.Load(); n != 2 {
			t.Errorf("2 layers were opened %d times", n)
		}
	})
}

type opening struct {
	*image
	n atomic.Int64
}

func (o *opening) Layers() ([]v1.Layer, error) {
	ls, err := o.image.Layers()
	for i := range ls {
		ls[i] = openingLayer{ls[i], &o.n}
	}
	return ls, err
}

type openingLayer struct {
	v1.Layer
	n *atomic.Int64
}

func (l openingLayer) Compressed() (io.ReadCloser, error) {
	l.n.Add(1)
	return l.Layer.Compressed()
}

func TestReferenceByDigest(t *testing.T) {
	img := newImage(content(1, 100))
	inLab(t, scripted.Options{}, func(l *lab) {
		l.pushes("reg.test/a@"+digest.FromBytes(img.raw).String(), img)
		l.has("a", digest.FromBytes(img.raw).String(), img)
		other := digest.FromString("other").String()
		if _, err := l.push("reg.test/a@"+other, img); !errors.Is(err, resume.ErrSource) {
			t.Errorf("got %v, want ErrSource", err)
		}
	})
}

var user = keychain{"reg.test": {Username: "ci", Password: "secret"}}

func TestCredentials(t *testing.T) {
	img := newImage(content(1, 100_000), content(2, 100_000))
	for _, scheme := range []scripted.Scheme{scripted.Basic, scripted.Bearer} {
		auth := scripted.Auth{Scheme: scheme, User: "ci", Password: "secret"}
		inLab(t, scripted.Options{Auth: auth}, func(l *lab) {
			l.o.Keychain = user
			l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 30_000, Down: -1} }
			l.pushes("reg.test/a:1", img)
			l.has("a", "1", img)
		})
		for _, k := range []keychain{nil, {"reg.test": {Username: "ci", Password: "wrong"}}, {"other.test": user["reg.test"]}} {
			inLab(t, scripted.Options{Auth: auth}, func(l *lab) {
				l.o.Keychain = k
				began := time.Now()
				if _, err := l.push("reg.test/a:1", img); !errors.Is(err, resume.ErrDenied) || !named(err) {
					t.Errorf("scheme %d with %v: %v, want ErrDenied", scheme, k, err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("took %s to find out", took)
				}
			})
		}
	}
}

// Tokens that are good for a few requests only, through breaking connections:
// each is renewed, and no byte that arrived goes out again.
func TestTokenExpires(t *testing.T) {
	img := newImage(content(1, 200_000))
	inLab(t, scripted.Options{Auth: scripted.Auth{Scheme: scripted.Bearer, User: "ci", Password: "secret", TokenRequests: 3}}, func(l *lab) {
		l.o.Keychain, l.o.Parallel, l.o.Checks = user, 1, 1
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 40_000, Down: -1} }
		l.pushes("reg.test/a:1", img)
		l.has("a", "1", img)
		tokens := 0
		stored := map[int]int64{}
		for _, r := range l.reg.Requests() {
			if r.Kind == scripted.Token {
				tokens++
			}
			if r.Kind == scripted.Patch && r.Status != http.StatusUnauthorized {
				stored[r.Session] += r.Body
			}
		}
		if tokens < 4 {
			t.Errorf("%d tokens: did they expire?", tokens)
		}
		for session, n := range stored {
			if n > 200_000 {
				t.Errorf("session %d was sent %d bytes", session, n)
			}
		}
	})
}

// An upload location on another host gets no credentials; that is a violation
// the registry watches for.
func TestNoCredentialsForOtherHosts(t *testing.T) {
	for _, scheme := range []scripted.Scheme{scripted.Basic, scripted.Bearer} {
		o := scripted.Options{
			Auth:     scripted.Auth{Scheme: scheme, User: "ci", Password: "secret"},
			Location: scripted.OtherHost, OtherHost: "other.test",
		}
		inLab(t, o, func(l *lab) {
			l.o.Keychain = user
			l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 30_000, Down: -1} }
			img := newImage(content(1, 100_000))
			l.pushes("reg.test/a:1", img)
			l.has("a", "1", img)
			foreign := 0
			for _, r := range l.reg.Requests() {
				if r.Host == "other.test" {
					foreign++
				}
			}
			if foreign == 0 {
				t.Error("the other host saw nothing")
			}
		})
	}
}

func TestNoRegistry(t *testing.T) {
	ping := func(status int) func(scripted.Request) scripted.Action {
		return func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Ping {
				return scripted.Action{Before: status}
			}
			return scripted.Action{}
		}
	}
	img := newImage(content(1, 100))
	for status, kind := range map[int]error{404: resume.ErrEndpoint, 302: resume.ErrEndpoint, 403: resume.ErrDenied, 503: resume.ErrInterrupted} {
		inLab(t, scripted.Options{Intercept: ping(status)}, func(l *lab) {
			_, err := l.push("reg.test/a:1", img)
			if !errors.Is(err, kind) || !named(err) {
				t.Errorf("ping %d: %v, want %v", status, err, kind)
			}
			var no *pusher.NotRegistryError
			if kind == resume.ErrEndpoint && (!errors.As(err, &no) || no.Host != "reg.test" || no.Status != status) {
				t.Errorf("ping %d: %v does not say that this is no registry", status, err)
			}
			if l.count(scripted.HeadBlob) != 0 {
				t.Errorf("ping %d: the push went on", status)
			}
		})
	}
	inLab(t, scripted.Options{}, func(l *lab) {
		began := time.Now()
		_, err := l.push("nobody.test/a:1", img)
		if !errors.Is(err, resume.ErrInterrupted) || time.Since(began) != resume.FirstAnswerFor {
			t.Errorf("nobody there: %v after %s", err, time.Since(began))
		}
	})
}

// A Pusher that a registry has answered before goes on for RetryFor when the
// registry is away, not only for the time an address gets that never answered.
func TestRegistryAwayBetweenPushes(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Push(context.Background(), tagOf(t, "reg.test/a:1"), newImage([]byte("one"))); err != nil {
			t.Fatal(err)
		}
		l.o.Transport.(*wire.Transport).CloseIdleConnections()
		back := time.Now().Add(2 * time.Minute)
		l.net.Plan = func(int) memnet.Limits {
			if time.Now().Before(back) {
				return memnet.Limits{}
			}
			return memnet.Unlimited()
		}
		if _, err := p.Push(context.Background(), tagOf(t, "reg.test/b:1"), newImage([]byte("two"))); err != nil {
			t.Errorf("the registry was away for two minutes: %v", err)
		}
	})
}

// A push whose context ends, at whichever request, fails with ErrInterrupted and
// the context's cause.
func TestCancelledAtEveryRequest(t *testing.T) {
	img := newImage([]byte("one"), make([]byte, 100_000))
	for n, arrived := 1, false; !arrived; n++ {
		cause := errors.New("the caller has had enough")
		var cancel context.CancelCauseFunc
		var requests atomic.Int64
		cut := func(scripted.Request) scripted.Action {
			if requests.Add(1) == int64(n) {
				cancel(cause)
			}
			return scripted.Action{}
		}
		inLab(t, scripted.Options{Intercept: cut}, func(l *lab) {
			var ctx context.Context
			ctx, cancel = context.WithCancelCause(context.Background())
			defer cancel(nil)
			p, err := pusher.New(l.o)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Push(ctx, tagOf(t, "reg.test/a:1"), img)
			if arrived = int(requests.Load()) < n; arrived {
				if err != nil {
					t.Errorf("not cancelled: %v", err)
				}
				return
			}
			if err != nil && (!errors.Is(err, resume.ErrInterrupted) || !errors.Is(err, cause)) {
				t.Errorf("cancelled at request %d: %v is not ErrInterrupted with its cause", n, err)
			}
		})
	}
}

// serve runs a handler on a real port, with TLS or without.
func serve(t *testing.T, withTLS bool, h http.Handler) (addr string, roots *x509.CertPool) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = nil
	if withTLS {
		srv.StartTLS()
		roots = x509.NewCertPool()
		roots.AddCert(srv.Certificate())
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), roots
}

func push(t *testing.T, o pusher.Options, ref string) error {
	t.Helper()
	o.Keychain = keychain{strings.Split(ref, "/")[0]: user["reg.test"]}
	if o.RetryFor == 0 {
		o.RetryFor = -1
	}
	p, err := pusher.New(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Push(t.Context(), r, newImage(content(1, 1000)))
	return err
}

func TestSchemes(t *testing.T) {
	registry := func() *scripted.Registry {
		reg := scripted.New(scripted.Options{Auth: scripted.Auth{Scheme: scripted.Basic, User: "ci", Password: "secret"}})
		t.Cleanup(reg.Close)
		return reg
	}
	plain, _ := serve(t, false, registry())
	secure, roots := serve(t, true, registry())
	trust := &tls.Config{RootCAs: roots}
	for _, c := range []struct {
		name string
		o    pusher.Options
		ref  string
		kind error
	}{
		{"plain on loopback", pusher.Options{}, plain, nil},
		{"plain, asked for", pusher.Options{Scheme: pusher.SchemeHTTP}, plain, nil},
		{"plain, allowed", pusher.Options{Scheme: pusher.SchemeEither}, plain, nil},
		{"TLS", pusher.Options{TLSClientConfig: trust}, secure, nil},
		{"TLS, plain allowed", pusher.Options{TLSClientConfig: trust, Scheme: pusher.SchemeEither}, secure, nil},
		{"TLS, unknown CA", pusher.Options{}, secure, resume.ErrEndpoint},
		{"TLS, unknown CA, plain allowed", pusher.Options{Scheme: pusher.SchemeEither}, secure, resume.ErrEndpoint},
		{"TLS, not verified", pusher.Options{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, secure, nil},
		{"TLS, plain asked for", pusher.Options{Scheme: pusher.SchemeHTTP}, secure, resume.ErrEndpoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := push(t, c.o, c.ref+"/a:1")
			if !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
			var ca x509.UnknownAuthorityError
			if strings.Contains(c.name, "unknown CA") && !errors.As(err, &ca) {
				t.Errorf("%v is no x509.UnknownAuthorityError", err)
			}
		})
	}
}

// What is not on loopback is never spoken to in plain HTTP unasked, private
// address or not, and no redirect or challenge leads there.
func TestNothingDowngrades(t *testing.T) {
	var plainRequests, withCredentials atomic.Int64
	plain, _ := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plainRequests.Add(1)
		if r.Header.Get("Authorization") != "" {
			withCredentials.Add(1)
		}
		w.Write([]byte(`{"token":"t"}`))
	}))
	// A proxy that tunnels every name to one address: a registry with a name.
	to := func(addr string, roots *x509.CertPool) http.RoundTripper {
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		return tr
	}
	for _, host := range []string{"reg.example", "192.168.7.7:5000", "reg.local"} {
		if err := push(t, pusher.Options{Transport: to(plain, nil)}, host+"/a:1"); !errors.Is(err, resume.ErrEndpoint) {
			t.Errorf("%s in plain HTTP: %v, want ErrEndpoint", host, err)
		}
	}
	redirecting, roots := serve(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://reg.example"+r.URL.Path, http.StatusMovedPermanently)
	}))
	challenging, roots2 := serve(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://reg.example/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	for addr, roots := range map[string]*x509.CertPool{redirecting: roots, challenging: roots2} {
		if err := push(t, pusher.Options{Transport: to(addr, roots)}, "reg.example/a:1"); err == nil {
			t.Error("a push over a downgraded connection succeeded")
		}
	}
	if n := plainRequests.Load(); n != 0 {
		t.Errorf("%d requests came in plain HTTP, %d with credentials", n, withCredentials.Load())
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]pusher.Options{
		"parallel":  {Parallel: 65},
		"negative":  {Parallel: -1},
		"checks":    {Checks: 65},
		"transport": {Transport: http.DefaultTransport, TLSClientConfig: &tls.Config{}},
		"scheme":    {Scheme: 7},
		"stall":     {StallTimeout: -1},
	} {
		if _, err := pusher.New(o); err == nil {
			t.Errorf("%s: no error for %+v", name, o)
		}
	}
	p, err := pusher.New(pusher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.Push(t.Context(), nil, nil); err == nil || r == nil {
		t.Errorf("push of nothing: %v, %v", r, err)
	}
}

func TestCancelledPush(t *testing.T) {
	cause := errors.New("enough")
	stall := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch {
			return scripted.Action{DelayBefore: time.Hour}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: stall}, func(l *lab) {
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		ref, _ := name.ParseReference("reg.test/a:1")
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(3*time.Second, func() { cancel(cause) })
		began := time.Now()
		_, err = p.Push(ctx, ref, newImage(content(1, 1<<20)))
		if !errors.Is(err, cause) || !errors.Is(err, resume.ErrInterrupted) || time.Since(began) > 4*time.Second {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

func TestCredentialHelperFails(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		l.o.Keychain = brokenKeychain{}
		if _, err := l.push("reg.test/a:1", newImage(content(1, 10))); !errors.Is(err, errHelper) || !errors.Is(err, resume.ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
}

type brokenKeychain struct{}

var errHelper = errors.New("the helper is not installed")

func (brokenKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return nil, errHelper }

// A HEAD of an absent tag that is answered 403, as by a virtual repository of
// Artifactory, does not end a push.
func TestAbsentTagForbidden(t *testing.T) {
	forbid := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.HeadManifest {
			return scripted.Action{Before: 403}
		}
		return scripted.Action{}
	}
	img := newImage(content(1, 1000))
	inLab(t, scripted.Options{Intercept: forbid}, func(l *lab) {
		l.pushes("reg.test/a:1", img)
	})
}

// An image of many small layers: two requests for each blob after the check
// whether it is there.
func TestSmallBlobRoundTrips(t *testing.T) {
	var layers [][]byte
	for i := range 99 {
		layers = append(layers, content(byte(i), 1000+i))
	}
	inLab(t, scripted.Options{}, func(l *lab) {
		l.o.Dialects = nil
		l.pushes("reg.test/a:1", newImage(layers...)) // with its config 100 blobs
		count := map[scripted.Kind]int{}
		for _, r := range l.reg.Requests() {
			count[r.Kind]++
		}
		if got := count[scripted.Post] + count[scripted.Put] + count[scripted.Patch]; got != 200 || count[scripted.HeadBlob] != 100 {
			t.Errorf("%d requests after %d checks, want 200 after 100", got, count[scripted.HeadBlob])
		}
	})
}
