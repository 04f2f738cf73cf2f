// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/internal/testgear/memory"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// archive is a tar that is being made.
type archive struct {
	b bytes.Buffer
	w *tar.Writer
}

func newArchive() *archive {
	a := &archive{}
	a.w = tar.NewWriter(&a.b)
	return a
}

func (a *archive) file(name string, b []byte) {
	a.w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644})
	a.w.Write(b)
}

// link adds a symbolic link to a blob.
func (a *archive) link(name string, to v1.Descriptor) {
	target := "../../" + saved.BlobName(digest.Digest(to.Digest.String()))
	a.w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target})
}

func (a *archive) blob(b []byte, mt types.MediaType) v1.Descriptor {
	d := digest.FromBytes(b)
	a.file(saved.BlobName(d), b)
	return v1.Descriptor{MediaType: mt, Size: int64(len(b)), Digest: toHash(d)}
}

func (a *archive) json(what any, mt types.MediaType) v1.Descriptor {
	b, _ := json.Marshal(what)
	return a.blob(b, mt)
}

func (a *archive) top(all ...v1.Descriptor) []byte {
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	b, _ := json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: all})
	a.file("index.json", b)
	a.w.Close()
	return a.b.Bytes()
}

// image adds one for an architecture; where it is not here, its manifest alone.
func (a *archive) image(t *testing.T, arch string, here bool) v1.Descriptor {
	t.Helper()
	plain := newArchive()
	plain.file(arch, []byte(strings.Repeat(arch, 1000)))
	plain.w.Close()
	var z bytes.Buffer
	w, err := compress.Gzip.Writer(&z)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain.b.Bytes())
	w.Close()
	to := a
	if !here {
		to = newArchive()
	}
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, arch, digest.FromBytes(plain.b.Bytes()))
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: to.blob([]byte(config), types.OCIConfigJSON),
		Layers: []v1.Descriptor{to.blob(z.Bytes(), types.OCILayer)},
	}
	d := a.json(m, types.OCIManifestSchema1)
	d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	return d
}

// attest adds an attestation about d, as buildx makes them.
func (a *archive) attest(d v1.Descriptor) v1.Descriptor {
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: a.json(map[string]string{"of": d.Digest.String()}, types.OCIConfigJSON),
		Layers: []v1.Descriptor{a.json(map[string]string{"_type": "in-toto", "of": d.Digest.String()}, "application/vnd.in-toto+json")},
	}
	at := a.json(m, types.OCIManifestSchema1)
	at.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	at.Annotations = map[string]string{"vnd.docker.reference.digest": d.Digest.String()}
	return at
}

// push delivers an archive to a registry of its own, and returns what an
// independent client finds there, layers compared with their diffIDs.
func push(t *testing.T, b []byte, j *Job) (remote.Taggable, []string, error) {
	t.Helper()
	got, warned, err := deliver(t, b, j)
	if img, ok := got.(v1.Image); ok && err == nil {
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
	}
	return got, warned, err
}

// saving is an engine that saves b.
func saving(b []byte) Save {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// deliver is push without a look at the layers.
func deliver(t *testing.T, b []byte, j *Job) (remote.Taggable, []string, error) {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	p, err := pusher.New(pusher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIdleConnections()
	if j.Spool == nil {
		if j.Spool, err = spool.Open(t.TempDir()+"/spool", 0); err != nil {
			t.Fatal(err)
		}
	}
	var warned []string
	j.Delivery, j.Repository, j.Doing = d, ref.Context().Name(), func(string) {}
	j.Warn = func(err error) { warned = append(warned, err.Error()) }
	switch in := j.Input.(type) {
	case *Saved:
		in.Save = saving(b)
	case *Whole:
		in.Save = saving(b)
	}
	if j.Algorithm == "" {
		j.Algorithm = compress.Gzip
	}
	img, err := j.Run(context.Background())
	if err != nil {
		return nil, warned, err
	}
	if _, err := d.Finish(context.Background(), img); err != nil {
		return nil, warned, err
	}
	got, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	if got.MediaType.IsIndex() {
		idx, err := got.ImageIndex()
		if err != nil {
			t.Fatal(err)
		}
		return idx, warned, nil
	}
	one, err := got.Image()
	if err != nil {
		t.Fatal(err)
	}
	return one, warned, nil
}

func TestWholeIndexes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		here   []bool
		attest bool
		format Format
		want   int // manifests of the index at the registry, 0: an image
		warns  bool
		same   bool // the digest is that of the archive
	}{
		{"all platforms", []bool{true, true}, false, "", 2, false, true},
		{"with attestations", []bool{true, true}, true, "", 4, false, true},
		{"one of three", []bool{true, false, false}, false, "", 0, true, false},
		{"two of three", []bool{true, false, true}, false, "", 2, true, false},
		{"one of two, with its attestation", []bool{true, false}, true, "", 2, true, false},
		{"in docker's format", []bool{true, true}, false, V2S2, 2, false, false},
		{"in the format it has", []bool{true, true}, true, OCI, 4, false, true},
	} {
		a := newArchive()
		m := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		for i, here := range tt.here {
			d := a.image(t, fmt.Sprint("arch", i), here)
			m.Manifests = append(m.Manifests, d)
			if tt.attest {
				m.Manifests = append(m.Manifests, a.attest(d))
			}
		}
		top := a.json(m, types.OCIImageIndex)
		got, warned, err := push(t, a.top(top), &Job{Input: &Whole{Digest: digest.Digest(top.Digest.String())}, Format: tt.format})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if (len(warned) > 0) != tt.warns {
			t.Errorf("%s: warnings %q", tt.name, warned)
		}
		n := 0
		if idx, ok := got.(v1.ImageIndex); ok {
			im, err := idx.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			n = len(im.Manifests)
			for _, d := range im.Manifests {
				if of := manifest.Of(d).Attests(); of != "" {
					continue // no image
				}
				img, err := idx.Image(d.Digest)
				if err == nil {
					err = validate.Image(img)
				}
				if err != nil {
					t.Errorf("%s: %s: %v", tt.name, d.Digest, err)
				}
				if mt, _ := img.MediaType(); (mt == types.DockerManifestSchema2) != (tt.format == V2S2) {
					t.Errorf("%s: a manifest of type %s", tt.name, mt)
				}
			}
			h, _ := idx.Digest()
			if (h == top.Digest) != tt.same {
				t.Errorf("%s: the digest is %s, that of the archive %s", tt.name, h, top.Digest)
			}
		}
		if n != tt.want {
			t.Errorf("%s: %d manifests, want %d", tt.name, n, tt.want)
		}
	}
}

func TestWholeRefuses(t *testing.T) {
	none := newArchive()
	top := none.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{none.image(t, "a", false)}}, types.OCIImageIndex)
	attested := newArchive()
	d := attested.image(t, "a", true)
	at := attested.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d, attested.attest(d)}}, types.OCIImageIndex)
	damaged := newArchive()
	dd := damaged.image(t, "a", true)
	broken := bytes.Replace(damaged.top(dd), []byte{0x1f, 0x8b}, []byte{0x1f, 0x8c}, 1)
	for _, tt := range []struct {
		name   string
		b      []byte
		id     v1.Hash
		format Format
		want   string
	}{
		{"nothing here", none.top(top), top.Digest, "", "no platform of"},
		{"attestations in docker's format", attested.top(at), at.Digest, V2S2, "cannot be written as v2s2"},
		{"a damaged layer", broken, dd.Digest, "", "is damaged"},
		{"cut short", attested.b.Bytes()[:560], at.Digest, "", "cut short"},
	} {
		_, _, err := push(t, tt.b, &Job{Input: &Whole{Digest: digest.Digest(tt.id.String())}, Format: tt.format})
		if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%s: got %v, want a source error about %q", tt.name, err, tt.want)
		}
	}
}

// What an index names many times over is made once: once for each way down
// would be some 10^9 times.
func TestWholeIndexesThatFanOut(t *testing.T) {
	a := newArchive()
	d := a.image(t, "a", true)
	for range manifest.MaxDepth - 1 {
		m := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		for range 20 {
			m.Manifests = append(m.Manifests, d)
		}
		d = a.json(m, types.OCIImageIndex)
	}
	got, _, err := push(t, a.top(d), &Job{Input: &Whole{Digest: digest.Digest(d.Digest.String())}})
	if err != nil {
		t.Fatal(err)
	}
	if h, _ := partial.Digest(got); h != d.Digest {
		t.Errorf("the digest is %s, want %s", h, d.Digest)
	}
}

// Manifests of empty entries, as large as a document may be, are refused before
// they are decoded.
func TestWholeDocumentsOfEmptyEntries(t *testing.T) {
	entries := strings.Repeat("{},", 1<<20) + "{}"
	image := []byte(`{"schemaVersion":2,"config":{"digest":"` + digest.FromString("{}").String() + `"},"layers":[` + entries + `]}`)
	index := []byte(`{"schemaVersion":2,"manifests":[` + entries + `]}`)
	for _, tt := range []struct {
		doc   []byte
		media types.MediaType
	}{{image, types.OCIManifestSchema1}, {index, types.OCIImageIndex}} {
		for _, within := range []bool{false, true} {
			a := newArchive()
			a.blob([]byte("{}"), types.OCIConfigJSON)
			d := a.blob(tt.doc, tt.media)
			if within {
				d = a.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}}, types.OCIImageIndex)
			}
			b := a.top(d)
			var err error
			used := memory.Allocated(func() {
				_, _, err = deliver(t, b, &Job{Input: &Whole{Digest: digest.Digest(d.Digest.String())}})
			})
			if !errors.Is(err, resume.ErrSource) || used > 64<<20 {
				t.Errorf("%s, within an index %v: %v, %d bytes", tt.media, within, err, used)
			}
		}
	}
}

// An image of which a layer is nowhere is the engine's fault.
func TestWholeWithoutALayer(t *testing.T) {
	a, away := newArchive(), newArchive()
	layer := away.blob([]byte("layer"), types.OCILayer)
	d := a.json(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: a.blob([]byte("{}"), types.OCIConfigJSON), Layers: []v1.Descriptor{layer},
	}, types.OCIManifestSchema1)
	_, _, err := push(t, a.top(d), &Job{Input: &Whole{Digest: digest.Digest(d.Digest.String())}})
	if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), layer.Digest.String()+" is not in what was saved") {
		t.Errorf("got %v, want a source error about the layer", err)
	}
}
