// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/pusher"
)

// An index that names the next one many times over is asked for once: once for
// each way down would be some 160,000 requests.
func TestPublished(t *testing.T) {
	var requests atomic.Int64
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		reg.ServeHTTP(w, r)
	}))
	defer srv.Close()
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	put := func(doc any, mt types.MediaType) v1.Descriptor {
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		d := v1.Descriptor{MediaType: mt, Size: int64(len(raw)), Digest: toHash(digest.FromBytes(raw))}
		if err := remote.Put(repo.Digest(d.Digest.String()), &rawManifest{raw, mt}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	fanOut := func(config string) v1.Descriptor {
		d := put(v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{},
			Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(config)), Digest: toHash(digest.FromString(config))},
		}, types.OCIManifestSchema1)
		for range 4 {
			m := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
			for range 20 {
				m.Manifests = append(m.Manifests, d)
			}
			d = put(m, types.OCIImageIndex)
		}
		return d
	}
	if err := remote.WriteLayer(repo, static.NewLayer([]byte("{}"), types.OCIConfigJSON)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		d    v1.Descriptor
		want bool
	}{
		{"whole", fanOut("{}"), true},
		{"without its config", fanOut("gone"), false},
		{"nothing", v1.Descriptor{Digest: toHash(digest.FromString("nothing"))}, false},
	} {
		p, err := pusher.New(pusher.Options{})
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Open(t.Context(), repo.Tag("1"))
		if err != nil {
			t.Fatal(err)
		}
		before := requests.Load()
		got, err := Published(t.Context(), p, d, repo, digest.Digest(tt.d.Digest.String()))
		if err != nil || (got != nil) != tt.want {
			t.Errorf("%s: got %v, %v", tt.name, got, err)
		}
		if n := requests.Load() - before; n > 20 {
			t.Errorf("%s: %d requests", tt.name, n)
		}
	}
}
