// SPDX-License-Identifier: Apache-2.0

// Package manifest reads manifests and indexes: [Parse] is the one place that
// parses them, [Walker] the one walk over what they lead to, [Edit] the one way
// to change them, and [Descriptor.Attests] the one test for attestations.
//
// It bounds what foreign JSON may cost: manifests, indexes, image configs, and
// the lists of an archive or a registry. A few megabytes of empty entries would
// otherwise decode to many times their size, and a few entries that name one
// another would be read for hours.
package manifest

import (
	"encoding/json"
	"fmt"
	"slices"

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
	MaxVisits = 1 << 13
	// MaxTotal is the most bytes of all manifests that one image leads to.
	MaxTotal = 8 << 20

	// maxURLs is the most bytes of all URLs in a manifest that Image writes.
	maxURLs = 256 << 10
	// MaxDepth is how many levels of manifests may lie below the first. Real
	// images have one or two.
	MaxDepth = 16
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

// Artifact is the media type of artifact manifests, which image-spec 1.1 dropped.
const Artifact types.MediaType = "application/vnd.oci.artifact.manifest.v1+json"

// Is reports whether a media type is that of a manifest, an index or an
// artifact manifest, which are what a push delivers as manifests. Schema 1 is
// not among them.
func Is(mt types.MediaType) bool { return mt.IsImage() || mt.IsIndex() || mt == Artifact }

// Manifest is what a manifest of any kind says that a push needs.
type Manifest struct {
	MediaType    types.MediaType   `json:"mediaType"`
	Config       *Descriptor       `json:"config"`
	Layers       []Descriptor      `json:"layers"`
	Blobs        []Descriptor      `json:"blobs"` // of an artifact manifest
	Manifests    []Descriptor      `json:"manifests"`
	Subject      *Descriptor       `json:"subject"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// Descriptor is a v1.Descriptor without what a push does not need, which may
// be large.
type Descriptor struct {
	MediaType   types.MediaType `json:"mediaType"`
	Size        int64           `json:"size"`
	Digest      v1.Hash         `json:"digest"`
	Platform    *v1.Platform    `json:"platform,omitempty"` // of an image in an index
	Annotations Annotations     `json:"annotations"`
}

// Annotations are those of a descriptor that a push needs.
type Annotations struct {
	AttestsTo string `json:"vnd.docker.reference.digest"`
}

// attestsTo is the annotation by which buildx says in an index which image, by
// its digest, an attestation is about
// (https://docs.docker.com/build/metadata/attestations/attestation-storage/).
const attestsTo = "vnd.docker.reference.digest"

// Attests returns the digest of the image of the same index that d is an
// attestation about. It is empty if d is none.
func (d Descriptor) Attests() string { return d.Annotations.AttestsTo }

// V1 is the media type, size and digest of d.
func (d Descriptor) V1() v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}
}

// Of is d without what a Descriptor does not have.
func Of(d v1.Descriptor) Descriptor {
	return Descriptor{
		MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, Platform: d.Platform,
		Annotations: Annotations{AttestsTo: d.Annotations[attestsTo]},
	}
}

// Bare is the media type, size and digest of d.
func Bare(d v1.Descriptor) v1.Descriptor { return Of(d).V1() }

// Parse reads a manifest that a descriptor names as of type mt; "" is any type.
// What the manifest says of its own type must agree: one document may be valid
// as two kinds. Parse fails for more than MaxNamed descriptors, and if Check
// does.
func Parse(raw []byte, mt types.MediaType) (*Manifest, error) {
	m := &Manifest{}
	if err := Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if m.MediaType != "" && m.MediaType != mt && mt != "" {
		return nil, fmt.Errorf("it says it is %q, and is named as %q", m.MediaType, mt)
	}
	if n := len(m.Layers) + len(m.Blobs) + len(m.Manifests); n > MaxNamed {
		return nil, fmt.Errorf("it names %d blobs and manifests, more than %d", n, MaxNamed)
	}
	return m, nil
}

// Children are what a manifest of type mt names: the manifests of an index, or
// the blobs of any other, layers first and the config last.
func (m *Manifest) Children(mt types.MediaType) []Descriptor {
	if mt.IsIndex() {
		return m.Manifests
	}
	all := slices.Concat(m.Layers, m.Blobs)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	return all
}

// CheckRewrite reports a document that may have more than MaxSize bytes once it
// is encoded again: encoding/json escapes some characters.
func CheckRewrite(raw []byte) error {
	n := len(raw)
	for _, c := range raw {
		switch {
		case c == '<' || c == '>' || c == '&':
			n += len(`\u003c`) - 1
		case c >= 0x80: // of an invalid sequence each byte becomes U+FFFD
			n += len("\ufffd") - 1
		}
	}
	if n > MaxSize {
		return fmt.Errorf("the document may have %d bytes once it is changed, more than %d", n, MaxSize)
	}
	return nil
}

// Image writes the manifest of an image as docker writes it: the same config and
// layers give the same bytes. A layer that is fetched from elsewhere keeps its
// URLs; of other fields of the layers nothing stays but the type, the size and
// the digest.
func Image(mt types.MediaType, config v1.Descriptor, layers []v1.Descriptor) ([]byte, error) {
	m := v1.Manifest{SchemaVersion: 2, MediaType: mt, Config: config, Layers: make([]v1.Descriptor, len(layers))}
	if len(layers) > MaxNamed {
		return nil, fmt.Errorf("the image has %d layers, more than %d", len(layers), MaxNamed)
	}
	urls := 0
	for i, l := range layers {
		m.Layers[i] = Bare(l)
		if !l.MediaType.IsDistributable() {
			m.Layers[i].URLs = l.URLs
		}
		for _, u := range m.Layers[i].URLs {
			urls += len(u) + len(`"",`)
		}
	}
	if urls > maxURLs { // many layers may have the same long URL
		return nil, fmt.Errorf("the URLs of the layers have %d bytes, more than %d", urls, maxURLs)
	}
	return json.MarshalIndent(m, "", "   ")
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
