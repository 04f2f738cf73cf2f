// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

var plainLayer = bytes.Repeat([]byte("layer"), 1000)

// plainArchive writes what docker save does of an image with one plain layer,
// for which rpush uses the cache and the spool.
func plainArchive(t *testing.T) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(plainLayer, types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "app.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	return file
}

// compressed returns the path of a compressed copy of a file.
func compressed(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".gz", out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file + ".gz"
}

// pushArchive pushes what plainArchive wrote, checks that the registry has
// that image, and returns what rpush wrote to stderr.
func pushArchive(t *testing.T, archive string, args ...string) string {
	t.Helper()
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer reg.Close()
	home := t.TempDir()
	for _, env := range []string{"HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "LocalAppData", "DOCKER_CONFIG"} {
		t.Setenv(env, home)
	}
	var out, errs bytes.Buffer
	ref, err := name.ParseReference(strings.TrimPrefix(reg.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, archive, ref.Name())
	if exit := Main(args, strings.NewReader(""), &out, &errs, []string{}); exit != 0 {
		t.Fatalf("rpush %v: exit %d\n%s", args, exit, errs.String())
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plainLayer) {
		t.Errorf("the registry has a layer of %d bytes, %v, that begins with %.20q", len(got), err, got)
	}
	return errs.String()
}

// files lists the files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A directory that the user names for the spool and the cache may hold anything.
func TestUsersFilesSurvive(t *testing.T) {
	dir := t.TempDir()
	hex := strings.Repeat("a", 64)
	users := map[string]string{}
	for _, file := range []string{
		"thesis.txt", "new-thesis.txt", "new-1", "rpush-new-1", "registries.json", "sha256-" + hex,
		"layers/photo.psd", "layers/sha256-" + hex + ".json", "layers/.new-1", "configs/nginx.conf",
		"rpush-spool/notes", "rpush-spool/new-1", "rpush-spool/sha256-" + hex + ".bak", "rpush-spool/rpush-new-year",
		"rpush-known/notes", "rpush-known/layers/notes", "rpush-known/layers/.new-1", "rpush-known/configs/sha256-1.json",
	} {
		path := filepath.Join(dir, filepath.FromSlash(file))
		users[path] = file
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		old := time.Now().AddDate(-1, 0, 0)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	archive := compressed(t, plainArchive(t)) // rpush has to copy it, too
	for range 2 {
		pushArchive(t, archive, "--spool-dir", dir, "--cache-dir", dir)
	}
	for _, path := range slices.Sorted(maps.Keys(users)) {
		if b, err := os.ReadFile(path); err != nil || string(b) != users[path] {
			t.Errorf("of the user's %s is left %q, %v", users[path], b, err)
		}
	}
	// rpush adds files to its own directories alone.
	for _, path := range files(t, dir) {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		if users[path] == "" && !strings.HasPrefix(rel, "rpush-") {
			t.Errorf("rpush made %s", rel)
		}
	}
}

// If rpush's directory is not a directory of rpush's, the push warns and goes on
// without it.
func TestForeignDirectoriesAreRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("links take a privilege there, and modes say nothing")
	}
	for _, tt := range []struct {
		name  string
		plant func(path, elsewhere string) error
		want  string
	}{
		{"a symbolic link", func(path, elsewhere string) error { return os.Symlink(elsewhere, path) }, "is a symbolic link"},
		{"the group may write", func(path, _ string) error {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			return os.Chmod(path, 0o770) //nolint:gosec // on purpose
		}, "can be written by other users"},
	} {
		for flag, own := range map[string]string{"--spool-dir": "rpush-spool", "--cache-dir": "rpush-known"} {
			dir, elsewhere := t.TempDir(), t.TempDir()
			path := filepath.Join(dir, own)
			if err := tt.plant(path, elsewhere); err != nil {
				t.Fatal(err)
			}
			stderr := pushArchive(t, plainArchive(t), flag, dir)
			if want := path + " " + tt.want; !strings.Contains(stderr, "warning: ") || !strings.Contains(stderr, want) {
				t.Errorf("%s, %s: stderr is\n%s\nwant a warning with %q", flag, tt.name, stderr, want)
			}
			for _, file := range append(files(t, elsewhere), files(t, path)...) {
				if file != path {
					t.Errorf("%s, %s: rpush wrote %s", flag, tt.name, file)
				}
			}
		}
	}
}

// A cache that names a blob for a layer, and a spool that has such a blob, may
// both be planted. An entry that the user signed is believed; what the spool has
// under the entry's digest is not.
func TestPlantedSpoolFileIsNotPublished(t *testing.T) {
	pack := func(layer []byte) []byte {
		var blob bytes.Buffer
		z := gzip.NewWriter(&blob)
		if _, err := z.Write(layer); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return blob.Bytes()
	}
	other, layer := pack([]byte("not the layer")), pack(plainLayer)
	swapped := bytes.Repeat([]byte("x"), len(layer))
	for _, tt := range []struct {
		name         string
		named, spool []byte // the blob that the entry names, and what the spool has instead
		signed       bool
	}{
		{"an entry that the user did not sign", other, other, false},
		{"a signed entry for another layer's blob", other, other, true},
		{"a signed entry, and another blob in the spool", layer, swapped, true},
		{"a signed entry, and half of its blob in the spool", layer, layer[:len(layer)/2], true},
	} {
		dir, state := t.TempDir(), t.TempDir()
		s, err := spool.Open(dir, 0)
		if err != nil {
			require.Missing(t, "no place for a spool: %v", err)
		}
		w, err := s.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(tt.spool); err != nil {
			t.Fatal(err)
		}
		named := digest.FromBytes(tt.named)
		b, err := w.Keep(named)
		if err != nil {
			t.Fatal(err)
		}
		b.Keep()
		cache := known.Open(dir)
		if tt.signed {
			key, err := known.ReadKey(filepath.Join(state, "rpush-known.key"), true)
			if err != nil {
				t.Fatal(err)
			}
			cache.SignWith(key)
		}
		if err := cache.AddLayer(digest.FromBytes(plainLayer), known.Layer{
			Digest: named, Size: int64(len(tt.named)), MediaType: string(types.OCILayer), Key: compress.Gzip.Key(),
		}); err != nil {
			t.Fatal(err)
		}
		pushArchive(t, plainArchive(t), "--spool-dir", dir, "--cache-dir", dir, "--state-dir", state)
		// A blob that fails the spool's check is deleted; one that no entry names is
		// not looked at.
		_, err = os.Stat(filepath.Join(dir, "rpush-spool", strings.Replace(named.String(), ":", "-", 1)))
		if looked := errors.Is(err, fs.ErrNotExist); looked != tt.signed {
			t.Errorf("%s: the spool looked at its blob: %v", tt.name, looked)
		}
	}
}
