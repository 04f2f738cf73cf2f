package stream

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
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
	lessons := &Lessons{ID: digest.FromBytes(config)}
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
