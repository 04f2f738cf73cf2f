// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rpush-state")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_STATE_HOME", dir)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// lab is a pusher and a scripted registry, reg.test, on a network in memory and
// on virtual time.
type lab struct {
	t   *testing.T
	reg *scripted.Registry
	net *memnet.Network
	o   pusher.Options
}

func inLab(t *testing.T, ro scripted.Options, f func(*lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, net: memnet.New()}
		ro.UserAgent = "rpush"
		l.reg = scripted.New(ro)
		srv := &http.Server{Handler: l.reg}
		for _, host := range []string{"reg.test:80", "other.test:80"} {
			ln, err := l.net.Listen(host)
			if err != nil {
				t.Fatal(err)
			}
			go srv.Serve(ln)
		}
		tr := wire.New(wire.Options{UserAgent: "rpush/test", Dial: l.net.Dial})
		l.o = pusher.Options{Transport: tr, Scheme: pusher.SchemeHTTP, Keychain: keychain{}, Store: resume.MemoryStore()}
		l.o.Dialects = patching{resume.MemoryDialects()}
		defer func() {
			tr.CloseIdleConnections()
			srv.Close()
			l.reg.Close()
			time.Sleep(time.Hour)
			synctest.Wait()
		}()
		f(l)
		for _, v := range l.reg.Violations() {
			t.Errorf("violation: %s", v)
		}
	})
}

// patching has small blobs sent as large ones are: in PATCHes, not in the body of
// the commit.
type patching struct{ resume.Dialects }

func (p patching) Load(host string) (resume.Dialect, bool) {
	d, _ := p.Dialects.Load(host)
	d.NoPutBody = true
	return d, true
}

// keychain knows one user for the registries it names.
type keychain map[string]authn.AuthConfig

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if c, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(c), nil
	}
	return authn.Anonymous, nil
}

func (l *lab) push(ref string, img remote.Taggable) (*pusher.Report, error) {
	l.t.Helper()
	p, err := pusher.New(l.o)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		l.t.Fatal(err)
	}
	return p.Push(context.Background(), r, img)
}

func (l *lab) pushes(ref string, img remote.Taggable) *pusher.Report {
	l.t.Helper()
	report, err := l.push(ref, img)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, m := range report.Manifests {
		if !m.Pushed {
			l.t.Errorf("manifest %s is not reported as pushed", m.Digest)
		}
	}
	for _, b := range report.Blobs {
		if b.State == pusher.BlobPending {
			l.t.Errorf("blob %s is reported as %s", b.Digest, b.State)
		}
	}
	return report
}

// has compares everything at the registry with the image, blob by blob.
func (l *lab) has(repo, ref string, img *image) {
	l.t.Helper()
	if err := img.at(l.reg, repo, ref); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) count(k scripted.Kind) (n int) {
	for _, r := range l.reg.Requests() {
		if r.Kind == k {
			n++
		}
	}
	return n
}

// image is a v1.Image of given layers, with nothing of go-containerregistry's
// own that could hide how it is read.
type image struct {
	layers [][]byte
	config []byte
	raw    []byte
}

func newImage(layers ...[]byte) *image {
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
	h, _, _ := v1.SHA256(bytes.NewReader(b))
	return h
}

func (i *image) MediaType() (types.MediaType, error)     { return types.OCIManifestSchema1, nil }
func (i *image) Size() (int64, error)                    { return int64(len(i.raw)), nil }
func (i *image) Digest() (v1.Hash, error)                { return hash(i.raw), nil }
func (i *image) ConfigName() (v1.Hash, error)            { return hash(i.config), nil }
func (i *image) RawConfigFile() ([]byte, error)          { return i.config, nil }
func (i *image) RawManifest() ([]byte, error)            { return i.raw, nil }
func (i *image) Manifest() (*v1.Manifest, error)         { return partial.Manifest(i) }
func (i *image) ConfigFile() (*v1.ConfigFile, error)     { return partial.ConfigFile(i) }
func (i *image) LayerByDiffID(v1.Hash) (v1.Layer, error) { return nil, errors.New("not needed") }
func (i *image) LayerByDigest(v1.Hash) (v1.Layer, error) { return nil, errors.New("not needed") }
func (i *image) Layers() (ls []v1.Layer, err error) {
	for _, l := range i.layers {
		ls = append(ls, layer{l, types.OCIUncompressedLayer})
	}
	return ls, nil
}

func (i *image) at(reg *scripted.Registry, repo, ref string) error {
	if got := reg.Manifest(repo, ref); !bytes.Equal(got, i.raw) {
		return fmt.Errorf("%s:%s is %q", repo, ref, got)
	}
	for _, b := range append(i.layers, i.config) {
		if got := reg.Blob(repo, digest.FromBytes(b).String()); !bytes.Equal(got, b) {
			return fmt.Errorf("blob %s has %d bytes, want %d", digest.FromBytes(b), len(got), len(b))
		}
	}
	return nil
}

type layer struct {
	data []byte
	mt   types.MediaType
}

func (l layer) Digest() (v1.Hash, error)             { return hash(l.data), nil }
func (l layer) DiffID() (v1.Hash, error)             { return hash(l.data), nil }
func (l layer) Size() (int64, error)                 { return int64(len(l.data)), nil }
func (l layer) MediaType() (types.MediaType, error)  { return l.mt, nil }
func (l layer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.data)), nil
}

// content is n bytes, different for each seed.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i^i>>8*31) + seed
	}
	return b
}

var kinds = []error{resume.ErrInterrupted, resume.ErrDenied, resume.ErrEndpoint, resume.ErrSource, resume.ErrRefused}

// named reports whether err is of exactly one kind.
func named(err error) bool {
	n := 0
	for _, k := range kinds {
		if errors.Is(err, k) {
			n++
		}
	}
	return n == 1
}
