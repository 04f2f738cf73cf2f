// SPDX-License-Identifier: Apache-2.0

package manifest_test

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/manifest"
)

func TestEdit(t *testing.T) {
	d := func(i int, rest string) string {
		return `{"mediaType":"m","size":7,"digest":"` + hash(i).String() + `"` + rest + `}`
	}
	attests := func(i int) string {
		return `,"annotations":{"a":"b","vnd.docker.reference.digest":"` + hash(i).String() + `"}`
	}
	only := func(keep ...int) manifest.Changes {
		return manifest.Changes{Descriptor: func(d *manifest.Descriptor) bool {
			for _, k := range keep {
				if d.Digest == hash(k) {
					return true
				}
			}
			return false
		}}
	}
	for _, c := range []struct {
		name    string
		doc     string
		changes manifest.Changes
		want    string
	}{
		{"nothing", `{"z":1, "layers":[` + d(1, "") + `]}`, only(1), `{"z":1, "layers":[` + d(1, "") + `]}`},
		{"a list", `{"z":1,"manifests":[` + d(1, `,"x":2`) + `,` + d(2, "") + `],"a":{}}`, only(1), `{"z":1,"manifests":[` + d(1, `,"x":2`) + `],"a":{}}`},
		{"all of a list", `{"manifests":[` + d(1, "") + `]}`, only(), `{"manifests":[]}`},
		{"whatever the case", `{"Manifests":[` + d(1, "") + `]}`, only(), `{"Manifests":[]}`},
		{"null", `{"manifests":null}`, only(), `{"manifests":null}`},
		{"the type", `{"schemaVersion":2,"mediaType":"a","x":1}`, manifest.Changes{MediaType: "b"}, `{"schemaVersion":2,"mediaType":"b","x":1}`},
		{"a type if there is none", `{"x":1}`, manifest.Changes{MediaType: "b"}, `{"x":1,"mediaType":"b"}`},
		{"annotations", `{"annotations":{"a":"b"},"x":1}`, manifest.Changes{DropAnnotations: true}, `{"x":1}`},
		{"descriptors", `{"config":` + d(1, `,"x":1`) + `,"layers":[` + d(2, "") + `]}`, manifest.Changes{Descriptor: func(d *manifest.Descriptor) bool {
			if d.Digest == hash(1) {
				d.MediaType, d.Size, d.Digest = "n", 8, hash(3)
			}
			return true
		}}, `{"config":{"mediaType":"n","size":8,"digest":"` + hash(3).String() + `","x":1},"layers":[` + d(2, "") + `]}`},
		{"what is attested to", `{"manifests":[` + d(1, attests(2)) + `]}`, manifest.Changes{Descriptor: func(d *manifest.Descriptor) bool {
			d.Annotations.AttestsTo = hash(3).String()
			return true
		}}, `{"manifests":[` + d(1, attests(3)) + `]}`},
	} {
		got, err := manifest.Edit([]byte(c.doc), c.changes)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.doc != c.want { // written again
			var b strings.Builder
			enc := json.NewEncoder(&b)
			if err := enc.Encode(json.RawMessage(got)); err != nil {
				t.Fatal(err)
			}
			got = []byte(strings.TrimSpace(b.String()))
		}
		if string(got) != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
	for _, doc := range []string{``, `[]`, `{`, `{} {}`, `{"layers":[1]}`, `{"layers":[{"digest":"x"}]}`} {
		if got, err := manifest.Edit([]byte(doc), only()); err == nil {
			t.Errorf("%q: got %s", doc, got)
		}
	}
}

// Whatever Edit leaves of a document, it parses, and has what was to stay.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"mediaType":"` + string(types.OCIImageIndex) + `","manifests":[{"digest":"` + hash(1).String() + `","annotations":{"vnd.docker.reference.digest":"x"}},{"digest":"` + hash(2).String() + `"}]}`))
	f.Add([]byte(`{"config":{},"Layers":[{}],"layers":[{"size":1}],"annotations":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		before, err := manifest.Parse(raw, "")
		if err != nil {
			return
		}
		n := 0
		out, err := manifest.KeepManifests(raw, map[v1.Hash]bool{hash(1): true})
		if err != nil {
			return
		}
		after, err := manifest.Parse(out, "")
		if err != nil {
			t.Fatalf("%s became %s: %v", raw, out, err)
		}
		for _, d := range before.Manifests {
			if d.Digest == hash(1) {
				n++
			}
		}
		if len(after.Manifests) != n {
			t.Errorf("%s became %s", raw, out)
		}
	})
}
