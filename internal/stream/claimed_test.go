// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// oneLayer is an image in an archive that has these bytes under the digest of
// the layer; nil is none.
func oneLayer(layer v1.Descriptor, has []byte) (archived []byte, id digest.Digest) {
	a := newArchive()
	if has != nil {
		a.file(saved.BlobName(digest.Digest(layer.Digest.String())), has)
	}
	d := a.json(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: a.blob([]byte("{}"), types.OCIConfigJSON), Layers: []v1.Descriptor{layer},
	}, types.OCIManifestSchema1)
	return a.top(d), digest.Digest(d.Digest.String())
}

// scriptedDelivery is a delivery to a registry in which each repository has its
// own blobs, unlike in that of go-containerregistry.
func scriptedDelivery(t *testing.T) (*scripted.Registry, *pusher.Delivery, name.Repository) {
	t.Helper()
	reg := scripted.New(scripted.Options{})
	srv := httptest.NewServer(reg)
	t.Cleanup(func() { srv.Close(); reg.Close() })
	d, ref := deliveryTo(t, srv, pusher.Options{RetryFor: -1})
	return reg, d, ref.Context()
}

// A repository that only the engine names gives a blob away for its bytes alone:
// an image that the engine has may name any blob.
func TestWholeMountsFromClaimedRepositoriesOnlyWhatIsHere(t *testing.T) {
	secret := []byte(strings.Repeat("secret", 100))
	layer := v1.Descriptor{MediaType: types.OCILayer, Digest: toHash(digest.FromBytes(secret)), Size: int64(len(secret))}
	for what, tt := range map[string]struct {
		bytes   []byte
		spooled bool // its bytes are in the spool, too
		want    bool
	}{
		"its bytes":                    {secret, false, true},
		"its bytes, also in the spool": {secret, true, true},
		"other bytes":                  {bytes.ToUpper(secret), false, false},
		"no bytes":                     {nil, false, false},
	} {
		reg, d, repo := scriptedDelivery(t)
		reg.PutBlob("secret/app", layer.Digest.String(), secret)
		b, id := oneLayer(layer, tt.bytes)
		dir, err := spool.Open(t.TempDir()+"/spool", 0)
		if err != nil {
			t.Fatal(err)
		}
		if tt.spooled {
			left(t, dir, string(secret))
		}
		j := &Job{
			Input:    &Whole{Save: saving(b), Digest: id, MountIfHere: []string{repo.Registry.Repo("secret/app").Name()}},
			Delivery: d, Repository: repo.Name(), Spool: dir, Cache: known.Open(""),
			Warn: func(err error) { t.Errorf("%s: warning: %v", what, err) }, Doing: func(string) {},
		}
		img, err := j.Run(t.Context())
		if err == nil {
			_, err = d.Finish(t.Context(), img)
		}
		if got := reg.Blob("team/app", layer.Digest.String()) != nil; got != tt.want {
			t.Errorf("%s: the blob is published: %t, want %t", what, got, tt.want)
		}
		switch {
		case !tt.want && (!errors.Is(err, resume.ErrSource) || reg.Manifest("team/app", "1") != nil):
			t.Errorf("%s: %v, want a fault of the source", what, err)
		case tt.want && (err != nil || reg.Manifest("team/app", "1") == nil):
			t.Errorf("%s: %v", what, err)
		}
		for _, b := range d.Report().Blobs {
			if tt.want && b.Digest == digest.Digest(layer.Digest.String()) && b.State != pusher.BlobMounted {
				t.Errorf("%s: the blob was %s", what, b.State)
			}
		}
		if _, ok := dir.Get(t.Context(), digest.FromBytes(secret), layer.Size); ok {
			t.Errorf("%s: the blob is left in the spool", what)
		}
	}
}

// An image is here if all of its layers are, whatever the repository has.
// Layers that nobody may distribute need not be.
func TestWholeDemandsAllLayers(t *testing.T) {
	layer := []byte(strings.Repeat("layer", 100))
	for what, tt := range map[string]struct {
		media types.MediaType
		entry func(a *archive, d digest.Digest)
		want  bool
	}{
		"nothing":              {types.OCILayer, func(*archive, digest.Digest) {}, false},
		"a link to another":    {types.OCILayer, func(a *archive, d digest.Digest) { a.link(saved.BlobName(d), a.blob([]byte("other"), "")) }, false},
		"a damaged document":   {types.OCILayer, func(a *archive, d digest.Digest) { a.file(saved.BlobName(d), []byte("{}")) }, false},
		"it":                   {types.OCILayer, func(a *archive, _ digest.Digest) { a.blob(layer, "") }, true},
		"not distributable":    {types.OCIRestrictedLayer, func(*archive, digest.Digest) {}, true},
		"foreign, in docker's": {types.DockerForeignLayer, func(*archive, digest.Digest) {}, true},
	} {
		reg, d, repo := scriptedDelivery(t)
		desc := v1.Descriptor{MediaType: tt.media, Digest: toHash(digest.FromBytes(layer)), Size: int64(len(layer))}
		reg.PutBlob("team/app", desc.Digest.String(), layer)
		a := newArchive()
		tt.entry(a, digest.FromBytes(layer))
		m := a.json(v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
			Config: a.blob([]byte("{}"), types.OCIConfigJSON), Layers: []v1.Descriptor{desc},
		}, types.OCIManifestSchema1)
		b := a.top(m)
		j := &Job{
			Input:    &Whole{Save: saving(b), Digest: digest.Digest(m.Digest.String())},
			Delivery: d, Repository: repo.Name(), Cache: known.Open(""),
			Warn: func(error) {}, Doing: func(string) {},
		}
		img, err := j.Run(t.Context())
		if err == nil {
			_, err = d.Finish(t.Context(), img)
		}
		switch {
		case tt.want && (err != nil || reg.Manifest("team/app", "1") == nil):
			t.Errorf("%s: %v", what, err)
		case !tt.want && (!errors.Is(err, resume.ErrSource) || reg.Manifest("team/app", "1") != nil):
			t.Errorf("%s: got %v, want a source error", what, err)
		}
	}
}
