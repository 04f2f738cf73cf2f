// Package manifest bounds what foreign JSON may cost: manifests, indexes, image
// configs, and the lists of an archive or a registry. A few megabytes of empty
// entries would otherwise decode to many times their size, and a few entries
// that name one another would be read for hours.
package manifest

import (
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The bounds of one document, and of all that one image leads to.
const (
	// MaxSize is the most bytes of a document: what registries accept
	// (distribution-spec v1.1, "Pushing manifests").
	MaxSize = 4 << 20
	// MaxElements is the most objects, lists and their members in a document. An
	// ordinary descriptor is 4 to 10 of them, so that several thousand fit.
	MaxElements = 1 << 16
	// MaxVisits is the most manifests and blobs that one image may lead to.
	MaxVisits = 1 << 15
	// MaxTotal is the most bytes of all manifests that one image leads to.
	MaxTotal = 32 << 20
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
