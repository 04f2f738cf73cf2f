// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/stream"
)

// savedImage is what docker save writes of an image of plain layers.
type savedImage struct {
	file   string
	config []byte
	layers [][]byte
	diffs  []digest.Digest
}

// saveImage writes one whose layers differ by seed.
func saveImage(t *testing.T, seed string, layers int) *savedImage {
	t.Helper()
	s := &savedImage{file: filepath.Join(t.TempDir(), "app.tar")}
	var files, diffs []string
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(w *tar.Writer, name string, b []byte) {
		err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644})
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range layers {
		var b bytes.Buffer
		inner := tar.NewWriter(&b)
		add(inner, fmt.Sprint("file", i), []byte(strings.Repeat(fmt.Sprint(seed, " ", i, "\n"), 1000)))
		inner.Close()
		s.layers = append(s.layers, b.Bytes())
		s.diffs = append(s.diffs, digest.FromBytes(b.Bytes()))
		diffs = append(diffs, s.diffs[i].String())
		files = append(files, fmt.Sprintf("%d/layer.tar", i))
		add(w, files[i], b.Bytes())
	}
	var err error
	if s.config, err = json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}); err != nil {
		t.Fatal(err)
	}
	add(w, "config.json", s.config)
	m, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{"app:1"}, "Layers": files}})
	if err != nil {
		t.Fatal(err)
	}
	add(w, "manifest.json", m)
	w.Close()
	if err := os.WriteFile(s.file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// hub is a registry in this process.
type hub struct {
	addr       string
	sent, gets atomic.Int64 // requests that change blobs, and that read them
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			switch r.Method {
			case http.MethodGet:
				h.gets.Add(1)
			case http.MethodHead:
			default:
				h.sent.Add(1)
			}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	h.addr = strings.TrimPrefix(srv.URL, "http://")
	return h
}

func reference(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// publish puts an image to a reference whose layers are the blobs given, as any
// client may that can write there: its config claims what it likes.
func publish(t *testing.T, ref string, config []byte, blobs ...[]byte) (layers []v1.Descriptor) {
	t.Helper()
	to := reference(t, ref)
	for _, b := range append([][]byte{config}, blobs...) {
		if err := remote.WriteLayer(to.Context(), static.NewLayer(b, types.DockerLayer)); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range blobs {
		h, err := v1.NewHash(digest.FromBytes(b).String())
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, v1.Descriptor{MediaType: types.DockerLayer, Size: int64(len(b)), Digest: h})
	}
	raw, err := stream.NewManifest(config, layers, false)
	if err != nil {
		t.Fatal(err)
	}
	img, err := stream.NewImage(raw, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(to, img); err != nil {
		t.Fatal(err)
	}
	return layers
}

// packed is a layer as another tool than rpush compresses it: padded is a
// second member of gzip that holds nothing.
func packed(t *testing.T, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, part := range [][]byte{plain, nil} {
		w, err := compress.Gzip.Writer(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// poison is a layer that the image does not have.
func poison(t *testing.T, n int) (blobs [][]byte) {
	t.Helper()
	for i := range n {
		blobs = append(blobs, packed(t, fmt.Appendf(nil, "poison %d", i)))
	}
	return blobs
}

// served reads an image back, and compares what its layers decompress to with
// the diffIDs of the image that was pushed.
func (s *savedImage) served(t *testing.T, ref string) {
	t.Helper()
	img, err := remote.Image(reference(t, ref))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := img.ConfigName(); err != nil || id.String() != digest.FromBytes(s.config).String() {
		t.Errorf("%s: the image is %s, %v", ref, id, err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != len(s.diffs) {
		t.Fatalf("%s: %d layers, %v", ref, len(layers), err)
	}
	for i, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		got, err := digest.FromReader(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if got != s.diffs[i] {
			t.Errorf("%s: layer %d holds %s, want %s", ref, i, got, s.diffs[i])
		}
	}
}

// user is one with a home of their own. What pushes tell is by --output json.
type user struct {
	t    *testing.T
	home string
}

func newUser(t *testing.T) *user { return &user{t, t.TempDir()} }

func (u *user) push(args ...string) (layers stream.Stats, stderr string) {
	u.t.Helper()
	u.t.Setenv("HOME", u.home)
	for _, env := range []string{"XDG_CACHE_HOME", "XDG_STATE_HOME", "LocalAppData", "DOCKER_CONFIG"} {
		u.t.Setenv(env, filepath.Join(u.home, env))
	}
	var out, errs bytes.Buffer
	exit := Main(append([]string{"--output=json"}, args...), strings.NewReader(""), &out, &errs, []string{})
	if exit != 0 {
		u.t.Fatalf("rpush %v: exit %d\n%s", args, exit, errs.String())
	}
	var r struct {
		Pushes []struct{ Layers stream.Stats }
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || len(r.Pushes) == 0 {
		u.t.Fatalf("%v: %s", err, out.String())
	}
	return r.Pushes[0].Layers, errs.String()
}

// Anyone may say which blob holds a layer. Whatever they say, what is published
// is the image.
func TestNobodyElseSaysWhatALayerIs(t *testing.T) {
	for _, tt := range []struct {
		name string
		// push prepares and pushes, and returns where the image is.
		push func(t *testing.T, s *savedImage) []string
	}{
		{"the target's tag", func(t *testing.T, s *savedImage) []string {
			ref := newHub(t).addr + "/team/app:1"
			publish(t, ref, s.config, poison(t, len(s.diffs))...)
			newUser(t).push(s.file, ref)
			return []string{ref}
		}},
		{"one layer of the target's tag", func(t *testing.T, s *savedImage) []string {
			ref := newHub(t).addr + "/team/app:1"
			publish(t, ref, s.config, append([][]byte{packed(t, s.layers[0])}, poison(t, len(s.diffs)-1)...)...)
			newUser(t).push(s.file, ref)
			return []string{ref}
		}},
		{"--cache-from", func(t *testing.T, s *savedImage) []string {
			h := newHub(t)
			ref, cache := h.addr+"/team/app:1", h.addr+"/stranger/cache:1"
			publish(t, cache, s.config, poison(t, len(s.diffs))...)
			newUser(t).push("--cache-from", cache, s.file, ref)
			return []string{ref}
		}},
		{"a target on another registry", func(t *testing.T, s *savedImage) []string {
			a, b := newHub(t), newHub(t)
			one, two := a.addr+"/team/app:1", b.addr+"/team/app:1"
			blobs := poison(t, len(s.diffs))
			publish(t, one, s.config, blobs...)
			publish(t, b.addr+"/team/app:other", []byte(`{}`), blobs...) // the blobs alone
			newUser(t).push(s.file, one, "-t", two)
			return []string{one, two}
		}},
		{"the cache", func(t *testing.T, s *savedImage) []string {
			h := newHub(t)
			ref := h.addr + "/team/app:1"
			blobs := poison(t, len(s.diffs))
			layers := publish(t, h.addr+"/team/app:other", []byte(`{}`), blobs...)
			dir := filepath.Join(t.TempDir(), "cache")
			planted := known.Open(dir)
			for i, l := range layers {
				if err := planted.AddLayer(s.diffs[i], known.Layer{
					Digest: digest.Digest(l.Digest.String()), Size: l.Size, MediaType: string(l.MediaType), Key: compress.Gzip.Key(),
				}); err != nil {
					t.Fatal(err)
				}
			}
			newUser(t).push("--cache-dir", dir, s.file, ref)
			return []string{ref}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := saveImage(t, tt.name, 3)
			for _, ref := range tt.push(t, s) {
				s.served(t, ref)
			}
		})
	}
}

// What a manifest says is of use once it is verified: a blob that another tool
// compressed is neither compressed nor sent again, and is downloaded once.
func TestVerifiedLayersAreNotSent(t *testing.T) {
	for _, flag := range []bool{false, true} {
		s := saveImage(t, "verified", 3)
		h, u := newHub(t), newUser(t)
		one, two := h.addr+"/team/app:1", h.addr+"/team/app:2"
		args, from := []string{s.file, one}, one
		if flag {
			from = h.addr + "/team/base:1"
			args = []string{"--cache-from", from, s.file, one}
		}
		size := int64(0)
		for _, l := range publish(t, from, s.config, packed(t, s.layers[0]), packed(t, s.layers[1]), packed(t, s.layers[2])) {
			size += l.Size
		}
		stats, stderr := u.push(args...)
		if stats.Compressed != 0 || stats.Verified != size || strings.Contains(stderr, "warning") {
			t.Errorf("the first push: %+v, want %d bytes verified\n%s", stats, size, stderr)
		}
		s.served(t, one)
		before := h.sent.Load()
		if stats, _ := u.push(s.file, two); stats.Compressed != 0 || stats.Verified != 0 || h.sent.Load() != before {
			t.Errorf("the second push: %+v, %d requests that send", stats, h.sent.Load()-before)
		}
		s.served(t, two)
	}
}

// After one false statement of a manifest, no other blob of it is downloaded.
func TestFalseManifestIsLeftAlone(t *testing.T) {
	s := saveImage(t, "false", 20)
	h := newHub(t)
	ref := h.addr + "/team/app:1"
	most := int64(0)
	for _, l := range publish(t, ref, s.config, poison(t, len(s.diffs))...) {
		most = max(most, l.Size)
	}
	stats, stderr := newUser(t).push(s.file, ref)
	if stats.Verified > 3*most || stats.Compressed != len(s.diffs) {
		t.Errorf("%+v, want at most three blobs of %d bytes verified", stats, most)
	}
	if strings.Count(stderr, "no more layers are taken from") != 1 {
		t.Errorf("want one warning:\n%s", stderr)
	}
	s.served(t, ref)
}

// Compression gives the same bytes everywhere: a user who knows nothing sends
// nothing that another one pushed, even if no tag says so.
func TestAnotherAgentFindsWhatWasPushed(t *testing.T) {
	s := saveImage(t, "agents", 3)
	h := newHub(t)
	newUser(t).push(s.file, h.addr+"/team/app:1")
	before := h.sent.Load()
	other := newUser(t)
	if stats, _ := other.push(s.file, h.addr+"/team/app:2"); stats.Compressed != 3 || h.sent.Load() != before {
		t.Errorf("%+v, %d requests that send", stats, h.sent.Load()-before)
	}
	if stats, _ := other.push(s.file, h.addr+"/team/app:3"); stats.Compressed != 0 || stats.Verified != 0 || h.sent.Load() != before {
		t.Errorf("the second push of that user: %+v, %d requests that send", stats, h.sent.Load()-before)
	}
}
