// SPDX-License-Identifier: Apache-2.0

// Package recorded holds what engines wrote when they saved images: see
// README.md.
package recorded

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"io"
	"path"
	"strings"
	"testing"
)

//go:embed testdata
var testdata embed.FS

// Archive is one that an engine wrote.
type Archive struct {
	Name string `json:"-"`
	// Engine wrote it, with its version, when told Command.
	Engine, Command string
	// Whole says that it holds manifests and blobs as they are to be published.
	Whole bool
	// Images in it, in the order they were asked for.
	Images []Image
	// Tar is the archive.
	Tar []byte `json:"-"`
}

// Image is what the engine said of one.
type Image struct {
	Tag string
	// ID is the digest of the config or, where the engine keeps images in
	// containerd, that of the manifest or index.
	ID      string
	DiffIDs []string
	// Pushed is the digest under which the engine itself published it.
	Pushed string
}

// All gives every archive there is.
func All(t testing.TB) (all []Archive) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	entries, err := testdata.ReadDir("testdata")
	must(err)
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		a := Archive{Name: name}
		b, err := testdata.ReadFile(path.Join("testdata", e.Name()))
		must(err)
		must(json.Unmarshal(b, &a))
		b, err = testdata.ReadFile(path.Join("testdata", name+".tar.gz"))
		must(err)
		z, err := gzip.NewReader(bytes.NewReader(b))
		must(err)
		a.Tar, err = io.ReadAll(z)
		must(err)
		all = append(all, a)
	}
	if len(all) == 0 {
		t.Fatal("nothing is recorded")
	}
	return all
}
