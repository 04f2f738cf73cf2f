// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/testgear/recorded"
)

// What engines really write becomes the image that they speak of: the same
// config, or where they keep manifests, what they publish themselves.
func TestRecordedArchives(t *testing.T) {
	warned := map[string]string{
		"docker-29-containerd-partial":      "only linux/amd64 is pushed",
		"docker-29-containerd-partial-name": "only linux/amd64 is pushed",
	}
	for _, a := range recorded.All(t) {
		if strings.Contains(a.Command, "oci-archive") {
			continue // no engine saves one
		}
		for _, img := range a.Images {
			t.Run(a.Name+"/"+img.Tag, func(t *testing.T) {
				in := &Saved{Config: digest.Digest(img.ID)}
				for _, d := range img.DiffIDs {
					in.Layers = append(in.Layers, digest.Digest(d))
				}
				j := &Job{Input: in}
				if a.Whole {
					j.Input = &Whole{Digest: digest.Digest(img.ID)}
				}
				got, warnings, err := push(t, a.Tar, j)
				if err != nil {
					t.Fatal(err)
				}
				if want := warned[a.Name]; (want == "") != (len(warnings) == 0) || !strings.Contains(strings.Join(warnings, "\n"), want) {
					t.Errorf("warnings %q, want %q", warnings, want)
				}
				if a.Whole {
					h, err := partial.Digest(got)
					if err != nil {
						t.Fatal(err)
					}
					if h.String() != img.Pushed {
						t.Errorf("arrived as %s, the engine publishes %s", h, img.Pushed)
					}
					if idx, ok := got.(v1.ImageIndex); ok {
						images(t, idx)
					}
					return
				}
				one := got.(v1.Image)
				if h, err := one.ConfigName(); err != nil || h.String() != img.ID {
					t.Errorf("the image at the registry is %s, want %s, %v", h, img.ID, err)
				}
				wantDiffIDs(t, one, img.DiffIDs)
			})
		}
	}
}

// images checks all that an index names but for attestations.
func images(t *testing.T, idx v1.ImageIndex) {
	t.Helper()
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		img, err := idx.Image(d.Digest)
		if err == nil && manifest.Of(d).Attests() == "" {
			err = validate.Image(img)
		}
		if err != nil {
			t.Errorf("%s: %v", d.Digest, err)
		}
	}
}

func wantDiffIDs(t *testing.T, img v1.Image, want []string) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range c.RootFS.DiffIDs {
		got = append(got, d.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("diffIDs %v, want %v", got, want)
	}
}

// A layer that the registry has is skipped in what every engine writes: its
// name says which one it is before it is read, and says the truth.
func TestRecordedLayersAreKnownByName(t *testing.T) {
	n := 0
	for _, a := range recorded.All(t) {
		if a.Whole || len(a.Images) > 1 {
			continue
		}
		n++
		in := &Saved{}
		for _, d := range a.Images[0].DiffIDs {
			in.Layers = append(in.Layers, digest.Digest(d))
		}
		var said []digest.Digest
		_, err := saved.Walk(t.Context(), bytes.NewReader(a.Tar), func(so *saved.Archive, e saved.Entry, r io.Reader) error {
			d := in.claimed(so, e, saved.ChainIDs(in.Layers))
			if d == "" {
				return nil
			}
			said = append(said, d)
			got, err := digest.FromReader(r)
			if got != d {
				t.Errorf("%s: %s is said to be %s, and is %s", a.Name, e.Name, d, got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(in.Layers)
		slices.Sort(want)
		if slices.Sort(said); !slices.Equal(said, want) {
			t.Errorf("%s: the names say %s, want %s", a.Name, said, want)
		}
	}
	if n < 3 {
		t.Errorf("%d archives of one image, want those of Docker 20.10, of 29 and of podman", n)
	}
}

// Docker's builder makes OCI manifests of layers that have docker's types. What
// --format asks for holds for the parts too.
func TestRecordedFormats(t *testing.T) {
	want := map[Format][3]types.MediaType{
		OCI:  {types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer},
		V2S2: {types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer},
	}
	n := 0
	for _, a := range recorded.All(t) {
		if a.Name != "docker-29-containerd-id" {
			continue
		}
		for format, types := range want {
			n++
			img, _, err := push(t, a.Tar, &Job{Input: &Whole{Digest: digest.Digest(a.Images[0].ID)}, Format: format})
			if err != nil {
				t.Fatal(err)
			}
			m, err := img.(v1.Image).Manifest()
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range m.Layers {
				if l.MediaType != types[2] {
					t.Errorf("%s: layer %d is %s", format, i, l.MediaType)
				}
			}
			if m.MediaType != types[0] || m.Config.MediaType != types[1] {
				t.Errorf("%s: a %s with a config %s", format, m.MediaType, m.Config.MediaType)
			}
			wantDiffIDs(t, img.(v1.Image), a.Images[0].DiffIDs)
		}
	}
	if n != 2 {
		t.Errorf("%d archives were pushed, want one in two formats", n)
	}
}
