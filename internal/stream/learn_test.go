// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
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

// Documents of 4 MiB that list as many things as fit in, at the target's tag
// and at four --cache-from, as an index, a manifest and a config, take little
// memory.
func TestLearnTakesLittleMemory(t *testing.T) {
	const size = 4<<20 - 1000
	filled := func(begin, element, end string) []byte {
		return []byte(begin + element + strings.Repeat(","+element, size/(len(element)+1)) + end)
	}
	config := digest.FromString("config")
	smallConfig := []byte(`{"rootfs":{"diff_ids":[]}}`)
	desc := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, types.DockerLayer, config)
	manifestOf := func(config []byte) []byte {
		return fmt.Appendf(nil, `{"config":{"digest":%q,"size":%d},"layers":[]}`, digest.FromBytes(config), len(config))
	}
	begin := fmt.Sprintf(`{"config":{"digest":%q,"size":%d},"layers":[`, digest.FromBytes(smallConfig), len(smallConfig))
	for what, tt := range map[string]struct {
		manifest, config []byte
		media            types.MediaType
	}{
		"empty layers":    {filled(begin, "{}", "]}"), smallConfig, types.DockerManifestSchema2},
		"null layers":     {filled(begin, "null", "]}"), smallConfig, types.DockerManifestSchema2},
		"layers":          {filled(begin, desc, "]}"), smallConfig, types.DockerManifestSchema2},
		"annotations":     {filled(begin+`{"annotations":{"a":"b"`, `"":""`, "}}]}"), smallConfig, types.DockerManifestSchema2},
		"empty manifests": {filled(`{"manifests":[`, "{}", "]}"), smallConfig, types.DockerManifestList},
		"manifests":       {filled(`{"manifests":[`, desc, "]}"), smallConfig, types.DockerManifestList},
	} {
		learnsWithin(t, what, tt.media, tt.manifest, tt.config)
	}
	big := filled(`{"rootfs":{"diff_ids":[`, `""`, "]}}")
	learnsWithin(t, "diffIDs", types.DockerManifestSchema2, manifestOf(big), big)
}

// learnsWithin learns from five references at once, and bounds what that
// allocates and what of it is alive together.
func learnsWithin(t *testing.T, what string, media types.MediaType, manifest, config []byte) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := config
		if strings.Contains(r.URL.Path, "/manifests/") {
			b = manifest
			w.Header().Set("Content-Type", string(media))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b) // the client may have gone
	}))
	defer srv.Close()
	p, err := pusher.New(pusher.Options{RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	lessons := &Lessons{ID: digest.FromBytes(config), DiffIDs: []digest.Digest{digest.FromString("a layer")}}
	// A collector that works at once shows what is alive, not what it leaves.
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	heap := func() int64 { // unlike ReadMemStats, it does not stop the world
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before, peak := heap(), int64(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				ref, err := name.ParseReference(fmt.Sprintf("%s/team/app:%d", strings.TrimPrefix(srv.URL, "http://"), i))
				if err == nil {
					_ = lessons.Learn(context.Background(), p, ref) // refused, mostly
				}
			})
		}
		wg.Wait()
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		peak = max(peak, heap())
		runtime.Gosched()
	}
	if got := peak - before; got > 64<<20 {
		t.Errorf("%s: %d MiB, want at most 64", what, got>>20)
	}
}

// What a tag says of layers is foreign input. Only what a blob can be is
// learnt, and the config of the image itself.
func TestLearn(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	var diffs []digest.Digest
	var layers []v1.Descriptor
	for i, l := range []struct {
		size  int64
		media types.MediaType
	}{
		{7, types.DockerLayer},
		{-1, types.DockerLayer},
		{7, types.DockerForeignLayer},
		{7, "application/vnd.in-toto+json"},
		{0, types.OCILayerZStd},
	} {
		diffs = append(diffs, digest.FromString(fmt.Sprint("plain ", i)))
		layers = append(layers, v1.Descriptor{MediaType: l.media, Size: l.size, Digest: toHash(digest.FromString(fmt.Sprint(i)))})
	}
	config := fmt.Appendf(nil, `{"rootfs":{"diff_ids":["%s","%s","%s","%s","%s"]}}`, diffs[0], diffs[1], diffs[2], diffs[3], diffs[4])
	raw, err := NewManifest(config, layers, false)
	if err != nil {
		t.Fatal(err)
	}
	img, err := NewImage(raw, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteLayer(ref.Context(), static.NewLayer(config, types.DockerConfigJSON)); err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(ref, img); err != nil {
		t.Fatal(err)
	}
	p, err := pusher.New(pusher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	lessons := &Lessons{ID: digest.FromBytes(config), DiffIDs: diffs}
	if err := lessons.Learn(context.Background(), p, ref); err != nil {
		t.Fatal(err)
	}
	got := lessons.Layers()
	for i, want := range []bool{true, false, false, false, true} {
		if (len(got[diffs[i]]) == 1) != want {
			t.Errorf("layer %d: learnt %+v", i, got[diffs[i]])
		}
	}
	if string(lessons.Config()) != string(config) {
		t.Errorf("the config is %q", lessons.Config())
	}
}
