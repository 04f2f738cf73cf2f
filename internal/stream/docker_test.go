// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"fmt"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/known"
)

// An engine that lists layers otherwise than the config does is not believed:
// nobody could run the image.
func TestConfigSaysWhichLayers(t *testing.T) {
	a, b := digest.FromString("plain a"), digest.FromString("plain b")
	config := fmt.Appendf(nil, `{"rootfs":{"diff_ids":[%q,%q]}}`, a, b)
	layer := func(content string) known.Layer {
		return known.Layer{Digest: digest.FromString(content), Size: 1, MediaType: string(types.OCILayer)}
	}
	for _, diffs := range [][]digest.Digest{{a, b}, {b, a}, {a}, {a, a}} {
		j := &Job{
			Input: &Saved{Config: digest.FromBytes(config), Layers: diffs}, Config: config,
			at: map[digest.Digest]known.Layer{a: layer("a"), b: layer("b")},
		}
		img, err := j.deliver(context.Background())
		if err != nil {
			t.Errorf("%v: %v", diffs, err)
			continue
		}
		m, err := img.(v1.Image).Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Layers) != 2 || m.Layers[0].Digest != toHash(layer("a").Digest) || m.Layers[1].Digest != toHash(layer("b").Digest) {
			t.Errorf("%v: the layers %+v", diffs, m.Layers)
		}
	}
}
