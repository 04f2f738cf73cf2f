// Package manifest bounds what foreign JSON may cost: manifests, indexes, image
// configs, and the lists of an archive or a registry. A few megabytes of empty
// entries would otherwise decode to many times their size, and a few entries
// that name one another would be read for hours.
package manifest

import (
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The bounds of one document, and of all that one image leads to.
const (
	// MaxSize is the most bytes of a document: what registries accept
	// (distribution-spec v1.1, "Pushing manifests").
	MaxSize = 4 << 20
	// MaxElements is the most objects, lists and their members in a document. An
	// ordinary descriptor is 4 to 10 of them, so that several thousand fit.
	MaxElements = 1 << 16
	// MaxNamed is the most blobs and manifests that one manifest may name.
	MaxNamed = 1 << 13
	// MaxVisits is the most manifests and blobs that one image may lead to.
	MaxVisits = 1 << 14
	// MaxTotal is the most bytes of all manifests that one image leads to.
	MaxTotal = 16 << 20
)

// Check reports a document that has more than MaxSize bytes or more than
// MaxElements elements. It allocates nothing and does not check the syntax.
func Check(raw []byte) error {
	if len(raw) > MaxSize {
		return fmt.Errorf("the document has %d bytes, more than %d", len(raw), MaxSize)
	}
	if n := Elements(raw); n > MaxElements {
		return fmt.Errorf("the document has %d JSON elements, more than %d", n, MaxElements)
	}
	return nil
}

// Unmarshal is json.Unmarshal for a document that passes Check. Decoding it
// allocates less than 64 MiB, whatever the document says.
func Unmarshal(raw []byte, into any) error {
	if err := Check(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// Manifest is what a manifest of any kind says that a push needs.
type Manifest struct {
	MediaType    types.MediaType   `json:"mediaType"`
	Config       *Descriptor       `json:"config"`
	Layers       []Descriptor      `json:"layers"`
	Blobs        []Descriptor      `json:"blobs"` // of an artifact manifest, which image-spec 1.1 dropped
	Manifests    []Descriptor      `json:"manifests"`
	Subject      *Descriptor       `json:"subject"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// Descriptor is a v1.Descriptor without what a push does not need, which may
// be large.
type Descriptor struct {
	MediaType types.MediaType `json:"mediaType"`
	Size      int64           `json:"size"`
	Digest    v1.Hash         `json:"digest"`
}

// V1 is d as other packages have it.
func (d Descriptor) V1() v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}
}

// Bare is d without what a Descriptor does not have.
func Bare(d v1.Descriptor) v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}
}

// Parse reads a manifest that a descriptor names as of type mt. What the
// manifest says of its own type must agree: one document may be valid as two
// kinds. It fails for more than MaxNamed descriptors, and where Check does.
func Parse(raw []byte, mt types.MediaType) (*Manifest, error) {
	m := &Manifest{}
	if err := Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if m.MediaType != "" && m.MediaType != mt {
		return nil, fmt.Errorf("it says it is %q, and is named as %q", m.MediaType, mt)
	}
	if n := len(m.Layers) + len(m.Blobs) + len(m.Manifests); n > MaxNamed {
		return nil, fmt.Errorf("it names %d blobs and manifests, more than %d", n, MaxNamed)
	}
	return m, nil
}

// Elements counts the objects, the lists, and the members of both after the
// first, which is what the cost of decoding grows with. For bytes that are not
// JSON the number means nothing, and decoding them fails before it allocates.
func Elements(raw []byte) int {
	n, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case !quoted && (c == '{' || c == '[' || c == ','):
			n++
		}
	}
	return n
}

// Visits is a walk over all that one image leads to, each digest once. The zero
// value is a walk that has seen nothing. It is not safe for concurrent use.
type Visits struct {
	sizes map[v1.Hash]int64
	seen  map[visit]bool
	total int64 // bytes of manifests
}

type visit struct {
	digest   v1.Hash
	manifest bool
}

// First reports whether the walk comes to d for the first time. A digest that
// is named both as a manifest and as a blob is visited as each of them.
//
// It fails for a digest that was named with another size before, for a manifest
// of more than MaxSize bytes, and at the bounds MaxVisits and MaxTotal.
func (v *Visits) First(d v1.Descriptor, isManifest bool) (bool, error) {
	if v.sizes == nil {
		v.sizes, v.seen = map[v1.Hash]int64{}, map[visit]bool{}
	}
	if size, ok := v.sizes[d.Digest]; ok && size != d.Size {
		return false, fmt.Errorf("%s is said to have %d bytes and %d bytes", d.Digest, size, d.Size)
	}
	at := visit{d.Digest, isManifest}
	if v.seen[at] {
		return false, nil
	}
	if len(v.seen) == MaxVisits {
		return false, fmt.Errorf("the image names more than %d manifests and blobs", MaxVisits)
	}
	if isManifest {
		if d.Size < 0 || d.Size > MaxSize {
			return false, fmt.Errorf("manifest %s has %d bytes, more than %d", d.Digest, d.Size, MaxSize)
		}
		if v.total += d.Size; v.total > MaxTotal {
			return false, fmt.Errorf("the manifests of the image have more than %d bytes together", MaxTotal)
		}
	}
	v.sizes[d.Digest], v.seen[at] = d.Size, true
	return true, nil
}
