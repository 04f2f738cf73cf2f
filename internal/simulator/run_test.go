// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

const (
	registry   = "reg.test"
	repository = "team/app"
	base       = "team/base" // to mount from
	// longest is the virtual time after which a run counts as hung.
	longest = 3 * time.Hour
	// latency keeps what the network does away from the instants of every other
	// timer, which are whole numbers of larger units, and lets the largest blob
	// pass within a quarter of the time that a connection takes.
	latency = 202 * time.Nanosecond
)

// outcome is what became of a scenario.
type outcome struct {
	err        error
	took       time.Duration
	result     resume.Result // of a single blob
	requests   []scripted.Request
	violations []string
	events     []resume.Event
	log        string
	missing    []string // what the registry does not have, or has wrong
	cancelled  bool
	breaks     int // of connections, by the network
}

// random is what blobs are cut from: no two parts of it are alike.
var random = sync.OnceValue(func() []byte {
	b := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{7}).Read(b)
	return b
})

func (s *scenario) blobs() [][]byte {
	r := rand.New(rand.NewPCG(s.seed, 0xb10b))
	var all [][]byte
	for _, size := range s.sizes {
		at := r.IntN(len(random()) - size)
		all = append(all, random()[at:at+size:at+size])
	}
	return all
}

// run plays a scenario in a bubble of its own. It never fails t: a run that
// deadlocks comes back as an error.
func (s *scenario) run(t *testing.T) (o *outcome) {
	o = &outcome{}
	defer func() {
		if r := recover(); r != nil {
			o.missing = append(o.missing, fmt.Sprintf("the run ended in a panic: %v", r))
		}
	}()
	synctest.Test(t, func(*testing.T) { s.play(o) })
	return o
}

// play wants to be in a bubble. Nothing may outlive it.
func (s *scenario) play(o *outcome) {
	network := memnet.New()
	network.Connecting = time.Millisecond
	network.Latency = latency
	if len(s.conns) > 0 {
		network.Plan = func(n int) memnet.Limits {
			if n < len(s.conns) {
				return s.conns[n]
			}
			return memnet.Unlimited()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	scheme := "http"
	if s.tls {
		scheme = "https"
	}
	options := s.dialect
	var process life
	options.Intercept = func(q scripted.Request) scripted.Action {
		if slices.Contains(s.deaths, position{q.Kind, q.Seq}) {
			// Before or after the registry acts, and at rest before the next
			// process has connected.
			if q.Seq%2 == 1 {
				process.kill()
				return scripted.Action{DelayBefore: network.Connecting / 2}
			}
			time.AfterFunc(network.Connecting/4, process.kill)
			return scripted.Action{DelayAfter: network.Connecting / 2}
		}
		if s.cancel == (position{q.Kind, q.Seq}) {
			o.cancelled = true
			cancel()
		}
		for _, f := range s.faults {
			if f.position == (position{q.Kind, q.Seq}) {
				return f.action(time.Now(), scheme)
			}
		}
		return scripted.Action{}
	}
	reg := scripted.New(options)
	server := &http.Server{Handler: reg, ErrorLog: stdlog.New(io.Discard, "", 0)}
	for _, host := range []string{registry, "other.test"} {
		if ln, err := network.Listen(host + ":80"); err == nil {
			go server.Serve(ln)
		}
		if !s.tls {
			continue
		}
		if ln, err := network.Listen(host + ":443"); err == nil {
			go server.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate()}}))
		}
	}
	var conf *tls.Config
	if s.tls {
		pool := x509.NewCertPool()
		pool.AddCert(certificate().Leaf)
		conf = &tls.Config{RootCAs: pool}
	}
	var transports []*wire.Transport
	// connect makes the connections of one process, which dials no more once ctx
	// has ended: net/http may try again for a request that was cancelled.
	connect := func(ctx context.Context) *wire.Transport {
		t := wire.New(wire.Options{UserAgent: "rpush/sim", TLS: conf, Dial: func(dial context.Context, kind, addr string) (net.Conn, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			return network.Dial(dial, kind, addr)
		}})
		transports = append(transports, t)
		return t
	}
	defer func() {
		for _, t := range transports {
			t.CloseIdleConnections()
		}
		server.Close()
		reg.Close()
		time.Sleep(4 * longest)
		synctest.Wait()
	}()

	var log bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&log)
	logger.SetLevel(logrus.DebugLevel)
	logger.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	onEvent := func(e resume.Event) { o.events = append(o.events, e) }
	dialects := resume.MemoryDialects()
	hint, keepFrom := s.hint, int64(1)
	if s.inOne {
		keepFrom = resume.DefaultKeepFrom
	}
	hint.NoPutBody = !s.inOne
	port := ":80"
	if s.tls {
		port = ":443"
	}
	dialects.Save(scheme+"://"+registry+port, hint)

	blobs := s.blobs()
	if s.existing {
		reg.PutBlob(repository, digest.FromBytes(blobs[0]).String(), blobs[0])
	}
	began := time.Now()
	var img *image
	if s.image {
		img = newImage(blobs)
		blobs = append(blobs, img.config)
		o.err = s.push(ctx, img, pusher.Options{
			Transport: connect(ctx), Scheme: map[bool]pusher.Scheme{false: pusher.SchemeHTTP}[s.tls], Keychain: keychain{s},
			Parallel: s.parallel, Dialects: dialects, Logger: logger, OnEvent: onEvent,
			RetryFor: s.retryFor, StallTimeout: s.stall, AnswerTimeout: s.answer, Store: resume.MemoryStore(),
		})
	} else {
		if s.source {
			reg.PutBlob(base, digest.FromBytes(blobs[0]).String(), blobs[0])
		}
		jitter := rand.New(rand.NewPCG(s.seed, 0x717))
		store := &counted{Store: resume.MemoryStore(), records: map[resume.Key]bool{}}
		defer func() { store.left(o) }()
		for born := true; born; born = process.end() && o.err != nil {
			life := process.begin(ctx)
			wired := connect(life)
			o.result, o.err = s.upload(life, blobs[0], resume.Options{
				Transport: &signer{base: wired, scheme: scheme, auth: s.dialect.Auth}, External: connect(life),
				PlainHTTP: !s.tls, Dialects: dialects, Logger: logger, OnEvent: onEvent, Random: jitter.Float64,
				RetryFor: s.retryFor, StallTimeout: s.stall, AnswerTimeout: s.answer, Store: store, KeepFrom: keepFrom,
			})
			wired.CloseIdleConnections()
		}
	}
	o.took = time.Since(began)
	time.Sleep(network.Connecting) // until the registry is at rest
	o.requests, o.violations, o.log, o.breaks = reg.Requests(), reg.Violations(), log.String(), network.Breaks()
	if o.err != nil {
		return
	}
	for _, b := range blobs {
		d := digest.FromBytes(b).String()
		if got := reg.Blob(repository, d); got == nil || !bytes.Equal(got, b) {
			o.missing = append(o.missing, fmt.Sprintf("blob %s has %d bytes, want %d (there: %v)", d, len(got), len(b), got != nil))
		}
	}
	if img != nil && !bytes.Equal(reg.Manifest(repository, "v1"), img.raw) {
		o.missing = append(o.missing, "the manifest is not there")
	}
}

// counted knows which records are kept.
type counted struct {
	resume.Store
	mu      sync.Mutex
	records map[resume.Key]bool
}

func (c *counted) Reserve(ctx context.Context, k resume.Key) (resume.Lease, error) {
	l, err := c.Store.Reserve(ctx, k)
	if err != nil {
		return nil, err
	}
	return &countedLease{l, c, k}, nil
}

func (c *counted) left(o *outcome) {
	if n := len(c.records); o.err == nil && n > 0 {
		o.missing = append(o.missing, fmt.Sprintf("%d records are left after success", n))
	}
}

type countedLease struct {
	resume.Lease
	c *counted
	k resume.Key
}

func (l *countedLease) note(kept bool) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if l.c.records[l.k] = kept; !kept {
		delete(l.c.records, l.k)
	}
}

func (l *countedLease) Save(ctx context.Context, r resume.Record) error {
	l.note(true)
	return l.Lease.Save(ctx, r)
}

func (l *countedLease) Remove(ctx context.Context) error {
	l.note(false)
	return l.Lease.Remove(ctx)
}

// life is that of one process.
type life struct {
	mu   sync.Mutex
	stop context.CancelFunc
	dead bool // it did not end by itself
}

func (l *life) begin(ctx context.Context) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, l.stop = context.WithCancel(ctx)
	l.dead = false
	return ctx
}

// kill ends it from outside.
func (l *life) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		l.dead = true
		l.stop()
	}
}

// end is its natural end; it reports whether it was killed.
func (l *life) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop()
	l.stop = nil
	return l.dead
}

func (s *scenario) upload(ctx context.Context, data []byte, o resume.Options) (resume.Result, error) {
	repo, err := name.NewRepository(registry + "/" + repository)
	if err != nil {
		return resume.Result{}, err
	}
	c, err := resume.New(repo, o)
	if err != nil {
		return resume.Result{}, err
	}
	b := resume.Blob{Digest: digest.FromBytes(data), Size: int64(len(data)), Open: func(_ context.Context, at int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[at:])), nil
	}}
	if s.mount {
		b.MountFrom = base
	}
	return c.Upload(ctx, b)
}

func (s *scenario) push(ctx context.Context, img *image, o pusher.Options) error {
	ref, err := name.ParseReference(registry + "/" + repository + ":v1")
	if err != nil {
		return err
	}
	p, err := pusher.New(o)
	if err != nil {
		return err
	}
	_, err = p.Push(ctx, ref, img)
	return err
}

// signer authorises as go-containerregistry does, renewal by sending the spent
// body again included, and without its randomness. It signs whatever it is
// given: sending it only what may be signed is the client's business.
type signer struct {
	base   http.RoundTripper
	scheme string
	auth   scripted.Auth
	token  string
}

func (g *signer) RoundTrip(req *http.Request) (*http.Response, error) {
	if g.auth.Scheme == scripted.Basic {
		req.SetBasicAuth(g.auth.User, g.auth.Password)
	}
	if g.auth.Scheme != scripted.Bearer {
		return g.base.RoundTrip(req)
	}
	for range 2 {
		signed := req.Clone(req.Context())
		if g.token != "" {
			signed.Header.Set("Authorization", "Bearer "+g.token)
		}
		resp, err := g.base.RoundTrip(signed)
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		resp.Body.Close()
		if err := g.renew(req.Context()); err != nil {
			return nil, err
		}
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	return g.base.RoundTrip(req)
}

func (g *signer) renew(ctx context.Context) error {
	q := url.Values{"service": {"scripted"}, "scope": {"repository:" + repository + ":pull,push repository:" + base + ":pull"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.scheme+"://"+registry+"/token?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(g.auth.User, g.auth.Password)
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return err
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	g.token = answer.Token
	return nil
}

type keychain struct{ s *scenario }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	a := k.s.dialect.Auth
	if a.Scheme == scripted.NoAuth {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: a.User, Password: a.Password}), nil
}

// certificate is one for all hosts, valid at the time bubbles begin. Its
// signatures are always of one length.
var certificate = sync.OnceValue(func() tls.Certificate {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{registry, "other.test"},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(nil, leaf, leaf, key.Public(), key)
	if err != nil {
		panic(err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

// image is a v1.Image of given layers.
type image struct {
	layers      [][]byte
	config, raw []byte
}

func newImage(layers [][]byte) *image {
	i := &image{layers: layers}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	c := v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range layers {
		h := hash(l)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, h)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: int64(len(l))})
	}
	i.config, _ = json.Marshal(c)
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: hash(i.config), Size: int64(len(i.config))}
	i.raw, _ = json.Marshal(m)
	return i
}

func hash(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: strings.TrimPrefix(digest.FromBytes(b).String(), "sha256:")}
}

func (i *image) MediaType() (types.MediaType, error)     { return types.OCIManifestSchema1, nil }
func (i *image) Size() (int64, error)                    { return int64(len(i.raw)), nil }
func (i *image) Digest() (v1.Hash, error)                { return hash(i.raw), nil }
func (i *image) ConfigName() (v1.Hash, error)            { return hash(i.config), nil }
func (i *image) RawConfigFile() ([]byte, error)          { return i.config, nil }
func (i *image) RawManifest() ([]byte, error)            { return i.raw, nil }
func (i *image) Manifest() (*v1.Manifest, error)         { return partial.Manifest(i) }
func (i *image) ConfigFile() (*v1.ConfigFile, error)     { return partial.ConfigFile(i) }
func (i *image) LayerByDiffID(v1.Hash) (v1.Layer, error) { return nil, errors.ErrUnsupported }
func (i *image) LayerByDigest(v1.Hash) (v1.Layer, error) { return nil, errors.ErrUnsupported }
func (i *image) Layers() (ls []v1.Layer, err error) {
	for _, l := range i.layers {
		ls = append(ls, layer(l))
	}
	return ls, nil
}

type layer []byte

func (l layer) Digest() (v1.Hash, error)             { return hash(l), nil }
func (l layer) DiffID() (v1.Hash, error)             { return hash(l), nil }
func (l layer) Size() (int64, error)                 { return int64(len(l)), nil }
func (l layer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l layer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l layer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(bytes.NewReader(l)), nil }
