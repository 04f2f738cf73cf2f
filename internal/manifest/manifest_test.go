package manifest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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
