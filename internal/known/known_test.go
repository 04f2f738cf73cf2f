package known

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
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

func TestDamageIsNothing(t *testing.T) {
	dir := t.TempDir()
	c := Open(dir)
	diff := digest.FromString("diff")
	path := c.path(layers, diff)
	os.MkdirAll(filepath.Dir(path), 0o700)
	for _, b := range []string{"", "{", `{"version":2,"layers":[{"digest":"sha256:0"}]}`, `{"version":1,"layers":[{"digest":"sha256:0"}]}`,
		`{"version":1,"layers":[{"digest":"` + diff.String() + `","size":-1}]}`} {
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
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
	c := Open(dir)
	diff := digest.FromString("diff")
	c.AddLayer(diff, Layer{Digest: diff})
	prune(filepath.Join(dir, layers), time.Now().Add(expiry-time.Hour))
	if len(c.Layers(diff)) != 1 {
		t.Error("gone before the expiry")
	}
	prune(filepath.Join(dir, layers), time.Now().Add(expiry+time.Hour))
	if len(c.Layers(diff)) != 0 {
		t.Error("still there after the expiry")
	}
}
