// SPDX-License-Identifier: Apache-2.0

package manifest_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/testgear/memory"
)

// mostMemory is what decoding one document may allocate, all in all.
const mostMemory = 64 << 20

// list is a document of one key with as many equal members as fit.
func list(key, member string, elements int) string {
	n := manifest.MaxSize/(len(member)+1) - 10
	if elements > 0 {
		n = min(n, (manifest.MaxElements-2)/elements)
	}
	return `{"` + key + `":[` + strings.Repeat(member+",", n-1) + member + `]}`
}

// Members that decode to much more than they are.
var members = []string{
	`{}`, `0`, `""`, `[]`, `{"annotations":{"":""}}`, `{"platform":{}}`, `{"urls":[""]}`, `{"data":""}`,
	`{"digest":"sha256:` + strings.Repeat("a", 64) + `"}`,
}

func TestAFullDocumentIsRefusedBeforeDecoding(t *testing.T) {
	for _, key := range []string{"layers", "manifests"} {
		for _, member := range members[:7] {
			doc := []byte(list(key, member, 0))
			var err error
			used := memory.Allocated(func() { err = manifest.Unmarshal(doc, &v1.Manifest{}) })
			if err == nil || !strings.Contains(err.Error(), "65536") {
				t.Errorf("%s of %s: %v", key, member, err)
			}
			if used > 1<<20 {
				t.Errorf("%s of %s: refusing it took %d bytes", key, member, used)
			}
		}
	}
}

// The most that is let through decodes within the bound.
func TestMemoryOfTheLargestDocuments(t *testing.T) {
	for _, member := range members {
		doc := list("layers", member, manifest.Elements([]byte(member))+1)
		if err := manifest.Check([]byte(doc)); err != nil {
			t.Fatal(member, err)
		}
		used := memory.Allocated(func() { _ = manifest.Unmarshal([]byte(doc), &v1.Manifest{}) })
		if used > mostMemory {
			t.Errorf("layers of %s: %d bytes", member, used)
		}
	}
	var b strings.Builder
	b.WriteString(`{"annotations":{`)
	for i := range manifest.MaxElements - 2 {
		fmt.Fprintf(&b, `"%d":"",`, i)
	}
	b.WriteString(`"":""}}`)
	var m v1.Manifest
	used := memory.Allocated(func() {
		if err := manifest.Unmarshal([]byte(b.String()), &m); err != nil {
			t.Error(err)
		}
	})
	if used > mostMemory || len(m.Annotations) != manifest.MaxElements-1 {
		t.Errorf("%d annotations: %d bytes", len(m.Annotations), used)
	}
}

func TestParse(t *testing.T) {
	const image, index = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	d := `{"mediaType":"m","size":7,"digest":"sha256:` + strings.Repeat("a", 64) + `"}`
	m, err := manifest.Parse([]byte(`{"config":`+d+`,"layers":[`+d+`],"subject":`+d+`,"annotations":{"a":"b"}}`), image)
	if err != nil || len(m.Layers) != 1 || m.Layers[0] != *m.Config || *m.Subject != *m.Config || m.Annotations["a"] != "b" {
		t.Errorf("%+v, %v", m, err)
	}
	if got := m.Config.V1(); got.Size != 7 || got.MediaType != "m" || got.Digest.Hex != strings.Repeat("a", 64) {
		t.Errorf("%+v", got)
	}
	for doc, want := range map[string]string{
		`{"mediaType":"` + index + `"}`:                                   "named as",
		`{"layers":[` + strings.Repeat("{},", manifest.MaxNamed) + `{}]}`: "8193 blobs",
		`{"layers":[` + strings.Repeat(",", manifest.MaxElements) + `]}`:  "more than 65536",
		`{"layers":[]} {"layers":[]}`:                                     "invalid character",
	} {
		if _, err := manifest.Parse([]byte(doc), image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", doc, err, want)
		}
	}
}

// A manifest that is written again has no more than MaxSize bytes.
func TestCheckRewrite(t *testing.T) {
	for _, char := range []string{"x", "<", "&", "\x80", "\u00e9", "\u2028", `\u0001`, `\n`} {
		for _, n := range []int{1000, 500_000, 1_000_000, 4_000_000} {
			doc := []byte(`{"annotations":{"a":"` + strings.Repeat(char, n/len(char)) + `"}}`)
			if manifest.CheckRewrite(doc) != nil {
				continue
			}
			var m v1.Manifest
			if err := json.Unmarshal(doc, &m); err != nil {
				t.Fatal(err)
			}
			out, err := json.Marshal(m)
			raw, rawErr := json.Marshal(json.RawMessage(doc))
			if err != nil || rawErr != nil || len(out) > manifest.MaxSize+200 || len(raw) > manifest.MaxSize {
				t.Errorf("%d times %q: %d and %d bytes, %v, %v", n, char, len(out), len(raw), err, rawErr)
			}
		}
	}
	if err := manifest.CheckRewrite([]byte(`{"annotations":{"a":"` + strings.Repeat("<", 1_000_000) + `"}}`)); err == nil {
		t.Error("a document passes that gets six times as long")
	}
}

// What an archive says about a layer that is fetched from elsewhere may be long,
// and many layers may be that layer.
func TestImageIsBounded(t *testing.T) {
	layer := v1.Descriptor{
		MediaType: types.DockerForeignLayer, Size: 5, URLs: []string{"https://example.com/" + strings.Repeat("<", 100)},
		Annotations: map[string]string{"a": strings.Repeat("x", 1<<20)}, Data: make([]byte, 1<<20),
	}
	one, err := manifest.Image(types.DockerManifestSchema2, v1.Descriptor{}, []v1.Descriptor{layer})
	if err != nil || len(one) > 10_000 || !strings.Contains(string(one), "https://example.com/") {
		t.Errorf("%d bytes, %v", len(one), err)
	}
	none, err := manifest.Image(types.DockerManifestSchema2, v1.Descriptor{}, nil)
	if err != nil || !strings.Contains(string(none), `"layers": []`) {
		t.Errorf("%s, %v", none, err)
	}
	many := slices.Repeat([]v1.Descriptor{layer}, manifest.MaxNamed)
	long := layer
	long.URLs = []string{strings.Repeat("<", 100_000)}
	empty := layer
	empty.URLs = make([]string, 1000)
	for name, layers := range map[string][]v1.Descriptor{
		"one URL many times": many, "long URLs": slices.Repeat([]v1.Descriptor{long}, 1000),
		"empty URLs": slices.Repeat([]v1.Descriptor{empty}, 5000), "too many layers": append(many, layer),
	} {
		used := memory.Allocated(func() { _, err = manifest.Image(types.DockerManifestSchema2, v1.Descriptor{}, layers) })
		if err == nil || used > mostMemory {
			t.Errorf("%s: %v, %d bytes", name, err, used)
		}
	}
}

func TestElements(t *testing.T) {
	for doc, want := range map[string]int{
		``: 0, `0`: 0, `"[,{"`: 0, `"\"[,{"`: 0, `"\\",[`: 2, `{}`: 1, `[]`: 1, `[1,2]`: 2, `{"a":{"b":[1,"x,y",3]},"c":""}`: 6,
	} {
		if got := manifest.Elements([]byte(doc)); got != want {
			t.Errorf("%s: %d, want %d", doc, got, want)
		}
	}
	if err := manifest.Check(make([]byte, manifest.MaxSize+1)); err == nil {
		t.Error("a document that is too large passes")
	}
}

// Elements is never less than what the decoder makes of a document.
func FuzzElements(f *testing.F) {
	for _, m := range members {
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var v any
		if json.Unmarshal(doc, &v) != nil {
			return
		}
		if got, want := manifest.Elements(doc), elements(v); got < want {
			t.Errorf("%s: %d, want at least %d", doc, got, want)
		}
	})
}

func elements(v any) (n int) {
	switch v := v.(type) {
	case []any:
		n = max(1, len(v))
		for _, m := range v {
			n += elements(m)
		}
	case map[string]any:
		n = max(1, len(v))
		for _, m := range v {
			n += elements(m)
		}
	}
	return n
}
