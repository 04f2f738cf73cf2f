// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// streamed is an image of layers that can be read once, behind one that need not.
func streamed(t *testing.T, readers ...io.Reader) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layer{content(1, 1000), "application/vnd.docker.image.rootfs.diff.tar.gzip"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range readers {
		if img, err = mutate.AppendLayers(img, stream.NewLayer(io.NopCloser(r))); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// A layer whose digest is known only after it was read is delivered like any
// other: it can be read again after a break.
func TestStreamedLayers(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		l.o.SpoolDir = t.TempDir()
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 400_000, Down: -1} }
		img := streamed(t, bytes.NewReader(noise(1<<20)), bytes.NewReader(noise(1000)))
		r := l.pushes("reg.test/team/app:1", img)
		if r.Breaks == 0 || len(r.Blobs) != 4 {
			t.Errorf("report %+v", r)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l1 := range layers {
			h, err := l1.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if b := l.reg.Blob("team/app", h.String()); digest.FromBytes(b).String() != h.String() {
				t.Errorf("layer %s has %d bytes at the registry", h, len(b))
			}
		}
		raw, err := img.RawManifest()
		if err != nil || !bytes.Equal(l.reg.Manifest("team/app", "1"), raw) {
			t.Errorf("the manifest is %q, %v", l.reg.Manifest("team/app", "1"), err)
		}
		if left, err := os.ReadDir(l.o.SpoolDir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		// The layers are at the registry: they need not be read.
		l.pushes("reg.test/team/app:2", img)
	})
}

func TestStreamedLayerFails(t *testing.T) {
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		r     io.Reader
		limit int64
		want  error
	}{
		"the source breaks": {io.MultiReader(bytes.NewReader(noise(300_000)), &failing{gone}), 0, gone},
		"it does not fit":   {bytes.NewReader(noise(300_000)), 200_000, resume.ErrSource},
		"it is not wanted":  {bytes.NewReader(noise(300_000)), -1, resume.ErrSource},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, scripted.Options{}, func(l *lab) {
				l.o.SpoolDir, l.o.SpoolLimit = t.TempDir(), c.limit
				_, err := l.push("reg.test/team/app:1", streamed(t, c.r))
				if !errors.Is(err, c.want) || !errors.Is(err, resume.ErrSource) || !named(err) {
					t.Errorf("got %v", err)
				}
				if len(l.reg.Requests()) > 0 {
					t.Errorf("%d requests", len(l.reg.Requests()))
				}
			})
		})
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
