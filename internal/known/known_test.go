// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestLayers(t *testing.T) {
	c := Open(t.TempDir())
	diff := digest.FromString("diff")
	made := Layer{Digest: digest.FromString("a"), Size: 1, MediaType: "gzip", Key: "key", Repositories: []string{"r/one"}}
	learnt := Layer{Digest: digest.FromString("b"), Size: 2, MediaType: "gzip", Repositories: []string{"r/two"}}
	for _, l := range []Layer{made, learnt, {Digest: made.Digest, Size: 1, MediaType: "gzip", Repositories: []string{"r/three"}}} {
		if err := c.AddLayer(diff, l); err != nil {
			t.Fatal(err)
		}
	}
	made.Repositories = []string{"r/three", "r/one"}
	if got, want := c.Layers(diff), []Layer{made, learnt}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := c.Layers(digest.FromString("other")); len(got) != 0 {
		t.Errorf("another layer is known: %+v", got)
	}
	for range 2 * maxBlobs {
		c.AddLayer(diff, Layer{Digest: digest.FromString(time.Now().String())})
	}
	if n := len(c.Layers(diff)); n != maxBlobs {
		t.Errorf("%d blobs of one layer are kept, want %d", n, maxBlobs)
	}
}

// open is a process of the user with this key.
func open(dir, key string) *Cache {
	c := Open(dir)
	c.SignWith([]byte(key))
	return c
}

func TestDamageIsNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(dir, "key")
	diff := digest.FromString("diff")
	path := c.path(layers, diff)
	os.MkdirAll(filepath.Dir(path), 0o700)
	for _, b := range []string{"", "{", `{"version":2,"layers":[{"digest":"sha256:0"}]}`, `{"version":1,"layers":[{"digest":"sha256:0"}]}`,
		`{"version":1,"layers":[{"digest":"` + diff.String() + `","size":-1}]}`} {
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		c = open(dir, "key")
		if got := c.Layers(diff); len(got) != 0 {
			t.Errorf("%q is read as %+v", b, got)
		}
		if err := c.AddLayer(diff, Layer{Digest: diff}); err != nil || len(c.Layers(diff)) != 1 {
			t.Errorf("%q: %v, and then %+v", b, err, c.Layers(diff))
		}
	}
	config := []byte(`{"a":1}`)
	id := digest.FromBytes(config)
	if err := c.AddConfig(id, config); err != nil {
		t.Fatal(err)
	}
	if got, ok := c.Config(id); !ok || !bytes.Equal(got, config) {
		t.Errorf("got %q, %t", got, ok)
	}
	os.WriteFile(c.path(configs, id), []byte(`{"a":2}`), 0o600)
	if got, ok := c.Config(id); ok {
		t.Errorf("a damaged config is taken: %q", got)
	}
	var none *Cache
	if none.Layers(diff) != nil || none.AddLayer(diff, Layer{}) != nil || none.AddConfig(id, config) != nil {
		t.Error("the nil cache knows something")
	}
	if err := Open("/dev/null/x").AddLayer(diff, Layer{}); err == nil {
		t.Error("a place that is none is no error")
	}
}

func TestOldGoes(t *testing.T) {
	dir := t.TempDir()
	c := open(dir, "key")
	diff := digest.FromString("diff")
	c.AddLayer(diff, Layer{Digest: diff})
	prune(filepath.Join(c.dir, layers), time.Now().Add(expiry-time.Hour))
	if len(open(dir, "key").Layers(diff)) != 1 {
		t.Error("gone before the expiry")
	}
	prune(filepath.Join(c.dir, layers), time.Now().Add(expiry+time.Hour))
	if len(open(dir, "key").Layers(diff)) != 0 {
		t.Error("still there after the expiry")
	}
}

// What someone else wrote, or altered, is no statement about a layer.
func TestOnlyWhatThisUserSignedCounts(t *testing.T) {
	dir := t.TempDir()
	diff, other := digest.FromString("diff"), digest.FromString("other")
	own := Layer{Digest: digest.FromString("a"), Size: 1, MediaType: "gzip", Key: "key", Repositories: []string{"r/one"}}
	if err := open(dir, "key").AddLayer(diff, own); err != nil {
		t.Fatal(err)
	}
	if got, want := open(dir, "key").Layers(diff), []Layer{own}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, c := range []*Cache{open(dir, "another key"), Open(dir)} {
		if got := c.Layers(diff); len(got) != 0 {
			t.Errorf("another user's statement counts: %+v", got)
		}
	}
	path := open(dir, "key").path(layers, diff)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{own.Digest.String(), other.String()}, {`"size":1`, `"size":2`}, {`"gzip"`, `"zstd"`}, {`"key":"key"`, `"key":""`}, {`"signature":"`, `"signature":"AA`},
	} {
		altered := bytes.Replace(b, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(altered, b) {
			t.Fatalf("%s has no %s", b, change[0])
		}
		os.WriteFile(path, altered, 0o600)
		if got := open(dir, "key").Layers(diff); len(got) != 0 {
			t.Errorf("%s counts: %+v", altered, got)
		}
	}
	// A statement about one layer is none about another.
	os.WriteFile(open(dir, "key").path(layers, other), b, 0o600)
	if got := open(dir, "key").Layers(other); len(got) != 0 {
		t.Errorf("the statement about another layer counts: %+v", got)
	}
}

// What rpush compressed comes before what it verified.
func TestOwnLayersComeFirst(t *testing.T) {
	c := Open("")
	diff := digest.FromString("diff")
	for i, key := range []string{"", "key", ""} {
		if err := c.AddLayer(diff, Layer{Digest: digest.FromString(string(rune('a' + i))), Key: key}); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Layers(diff); len(got) != 3 || got[0].Key != "key" || got[1].Digest != digest.FromString("c") {
		t.Errorf("got %+v", got)
	}
}

func TestReadKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "key")
	if _, err := ReadKey(file, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that it does not exist", err)
	}
	one, err := ReadKey(file, true)
	if err != nil || len(one) != keySize {
		t.Fatalf("%d bytes, %v", len(one), err)
	}
	two, err := ReadKey(file, true)
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("%x and then %x, %v", one, two, err)
	}
	if other, err := ReadKey(file+"2", true); err != nil || bytes.Equal(one, other) {
		t.Errorf("another key is %x, %v", other, err)
	}
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(file, true); err == nil {
		t.Error("a damaged key is taken")
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(file+"2", 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(file+"2", true); err == nil {
		t.Error("a key that others can read is taken")
	}
}
