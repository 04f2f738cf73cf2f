// SPDX-License-Identifier: Apache-2.0

package ocilayout

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func write(t *testing.T, seed uint64, sizes ...int64) Image {
	t.Helper()
	im, err := Write(t.TempDir(), seed, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestWrite(t *testing.T) {
	im := write(t, 1, 0, 1, 1<<20+3)
	sum := im.Config.Size + im.Manifest.Size
	for i, want := range []int64{0, 1, 1<<20 + 3} {
		if got := im.Layers[i].Size; got != want {
			t.Errorf("layer %d: got %d bytes, want %d", i, got, want)
		}
		sum += want
	}
	if im.Total != sum {
		t.Errorf("total: got %d, want %d", im.Total, sum)
	}
	b, err := os.ReadFile(BlobPath(im.Dir, im.Config.Digest))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Architecture, OS string
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	if config.Architecture == "" || config.OS == "" || len(config.RootFS.DiffIDs) != 3 || config.RootFS.DiffIDs[2] != im.Layers[2].Digest {
		t.Errorf("config: got %s", b)
	}
	left, err := os.ReadDir(im.Dir + "/blobs")
	if err != nil || len(left) != 1 {
		t.Errorf("left behind in blobs: %v, %v", left, err)
	}
}

func TestCompare(t *testing.T) {
	a := write(t, 1, 1000, 2000)
	if b := write(t, 1, 1000, 2000); b.Manifest.Digest != a.Manifest.Digest {
		t.Errorf("one seed gave %s and %s", a.Manifest.Digest, b.Manifest.Digest)
	} else if err := Compare(a.Dir, b.Dir); err != nil {
		t.Error(err)
	}
	if err := Compare(a.Dir, write(t, 2, 1000, 2000).Dir); err == nil {
		t.Error("another seed compares equal")
	}
	if err := Compare(a.Dir, t.TempDir()); err == nil {
		t.Error("an empty directory compares equal")
	}
	for what, spoil := range map[string]func(path string, b []byte) error{
		"flipped":   func(p string, b []byte) error { b[500] ^= 1; return os.WriteFile(p, b, 0o644) },
		"truncated": func(p string, b []byte) error { return os.WriteFile(p, b[:999], 0o644) },
		"missing":   func(p string, b []byte) error { return os.Remove(p) },
	} {
		b := write(t, 1, 1000, 2000)
		path := BlobPath(b.Dir, b.Layers[0].Digest)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(path, content); err != nil {
			t.Fatal(err)
		}
		if err := Compare(a.Dir, b.Dir); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(b.Layers[0].Digest, "sha256:")) {
			t.Errorf("%s: got %v, want an error that names the layer", what, err)
		}
	}
}
