// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/testgear/recorded"
	"github.com/rpush-go/rpush/pusher"
)

// What engines really write arrives, by every spelling that reads it: as the
// engine publishes it where the archive has manifests, else its config and layers.
func TestRecordedArchives(t *testing.T) {
	for _, a := range recorded.All(t) {
		file := filepath.Join(t.TempDir(), a.Name+".tar")
		check(t, os.WriteFile(file, a.Tar, 0o600))
		spellings := []string{"-", file}
		if !strings.Contains(a.Command, "oci-archive") {
			spellings = append(spellings, "docker-archive:"+file)
		}
		if a.Whole {
			spellings = append(spellings, "oci-archive:"+file)
		}
		for _, img := range a.Images {
			for _, spec := range spellings {
				if len(a.Images) > 1 {
					spec += "#" + img.Tag
				}
				t.Run(a.Name+"/"+strings.Replace(spec, file, "FILE", 1), func(t *testing.T) {
					arrives(t, spec, a, img)
				})
			}
		}
	}
}

func arrives(t *testing.T, spec string, a recorded.Archive, img recorded.Image) {
	t.Helper()
	o := Options{Spools: []string{t.TempDir()}}
	// docker's view of an archive is of one platform.
	manifests := a.Whole && !strings.HasPrefix(spec, "docker-archive:")
	if manifests && strings.Contains(a.Name, "partial") {
		if _, err := pushed(t, spec, a, o); err == nil || !strings.Contains(err.Error(), "--platform") {
			t.Errorf("not all platforms are there: got %v, want a hint to --platform", err)
		}
		o.Platforms = []v1.Platform{{OS: "linux", Architecture: "amd64"}}
	}
	got, err := pushed(t, spec, a, o)
	check(t, err)
	if got == nil {
		return // package stream makes it
	}
	if manifests && got.Digest.String() != img.Pushed {
		t.Errorf("arrived as %s, the engine publishes %s", got.Digest, img.Pushed)
	}
	if got.MediaType.IsIndex() {
		return // all of it is what the engine publishes
	}
	one := must(got.Image())
	check(t, validate.Image(one))
	var diffIDs []string
	for _, d := range must(one.ConfigFile()).RootFS.DiffIDs {
		diffIDs = append(diffIDs, d.String())
	}
	if !slices.Equal(diffIDs, img.DiffIDs) {
		t.Errorf("layers %v, want %v", diffIDs, img.DiffIDs)
	}
}

// plain compares an image whose layers are not compressed with what the engine
// said of it.
func plain(t *testing.T, p *saved.Plain, a recorded.Archive, spec string) {
	t.Helper()
	id := digest.FromBytes(p.Config).String()
	i := slices.IndexFunc(a.Images, func(img recorded.Image) bool { return img.ID == id })
	if i < 0 || len(a.Images) > 1 && !strings.HasSuffix(spec, "#"+a.Images[i].Tag) {
		t.Fatalf("the image is %s, not that of %s", id, spec)
	}
	var diffIDs []string
	for _, l := range p.Layers {
		r := must(l.Open())
		got := must(digest.FromReader(r))
		r.Close()
		if got != l.DiffID {
			t.Errorf("layer %s has the digest %s, want %s", l.Name, got, l.DiffID)
		}
		diffIDs = append(diffIDs, got.String())
	}
	if want := a.Images[i].DiffIDs; !slices.Equal(diffIDs, want) {
		t.Errorf("layers %v, want %v", diffIDs, want)
	}
}

// pushed opens a source, pushes it, and returns what is at the registry; nothing
// where it is plain, which is compared here.
func pushed(t *testing.T, spec string, a recorded.Archive, o Options) (*remote.Descriptor, error) {
	t.Helper()
	o.Stdin = bytes.NewReader(a.Tar)
	images, err := Open(t.Context(), spec, o)
	check(t, err)
	defer images.Close()
	src, err := images.Image(t.Context())
	if err != nil {
		return nil, err
	}
	if src.Plain != nil {
		if plain(t, src.Plain, a, spec); a.Whole {
			t.Error("no manifest was found")
		}
		return nil, nil
	}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	ref := must(name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1"))
	if _, err = must(pusher.New(pusher.Options{})).Push(t.Context(), ref, src.Image); err != nil {
		return nil, err
	}
	return remote.Get(ref)
}

// Two images of one tag cannot both be pushed as all tags.
func TestAllTagsOfOneName(t *testing.T) {
	for _, a := range recorded.All(t) {
		if len(a.Images) < 2 {
			continue
		}
		images, err := Open(t.Context(), "-", Options{Stdin: bytes.NewReader(a.Tar), Spools: []string{t.TempDir()}})
		check(t, err)
		if _, err := images.Tags(t.Context()); err == nil || !strings.Contains(err.Error(), `several images with the tag "1"`) {
			t.Errorf("%s: got %v", a.Name, err)
		}
		images.Close()
	}
}

// Two names of one image may end in the same tag.
func TestAllTagsOfOneImage(t *testing.T) {
	img := randomImage(t)
	images, err := Open(t.Context(), dockerSaved(t, map[string]v1.Image{"app:1": img, "other:1": img}), Options{})
	check(t, err)
	defer images.Close()
	if tags, err := images.Tags(t.Context()); err != nil || len(tags) != 1 || tags["1"] == nil {
		t.Errorf("got %d tags, %v", len(tags), err)
	}
}
