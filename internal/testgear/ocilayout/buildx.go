// SPDX-License-Identifier: Apache-2.0

package ocilayout

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// Export is what WriteBuildx wrote.
type Export struct {
	Dir string
	// Index is the image: an index of two platforms and their attestations.
	Index Entry
	// AMD64 and ARM64 are the images it names.
	AMD64, ARM64 Entry
	// Attestations are about AMD64 and ARM64.
	Attestations [2]Entry
	// Signature, where asked for, has AMD64 as its subject; CosignTag names a
	// manifest by the digest of Index. Neither is named by Index.
	Signature, Cosign Entry
	CosignTag         string
}

// Platform of an image.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// Entry is a descriptor as an index has it.
type Entry struct {
	Descriptor
	ArtifactType string    `json:"artifactType,omitempty"`
	Platform     *Platform `json:"platform,omitempty"`
}

const gzipLayerType = layerType + "+gzip"

// WriteBuildx makes dir what `docker buildx build --output type=oci
// --provenance` unpacks to for two platforms: real tars compressed with gzip,
// an index within index.json, an attestation for each image, and the names
// that buildx gives. With friends, index.json also names a signature whose
// subject is an image, and one with a tag made of the index's digest, as cosign
// writes it. Everything depends on the seed alone.
func WriteBuildx(dir string, seed uint64, friends bool) (e Export, err error) {
	e.Dir = dir
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return e, err
	}
	for i, p := range []*Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}} {
		img, err := writeImage(dir, seed, p)
		if err != nil {
			return e, err
		}
		if i == 0 {
			e.AMD64 = img
		} else {
			e.ARM64 = img
		}
		if e.Attestations[i], err = writeAttestation(dir, img); err != nil {
			return e, err
		}
	}
	e.Index.Descriptor, err = writeJSON(dir, indexType, map[string]any{
		"schemaVersion": 2, "mediaType": indexType,
		"manifests": []Entry{e.AMD64, e.ARM64, e.Attestations[0], e.Attestations[1]},
	})
	if err != nil {
		return e, err
	}
	top := []Entry{e.Index}
	top[0].Annotations = map[string]string{
		"io.containerd.image.name":          "docker.io/library/app:1",
		"org.opencontainers.image.created":  "2026-01-01T00:00:00Z",
		"org.opencontainers.image.ref.name": "1",
	}
	if friends {
		subject := e.AMD64.Descriptor
		if e.Signature, err = writeArtifact(dir, "application/vnd.example.signature", "signed by me", &subject); err != nil {
			return e, err
		}
		e.Signature.ArtifactType = "application/vnd.example.signature"
		if e.Cosign, err = writeArtifact(dir, "application/vnd.dev.cosign.simplesigning.v1+json", "{}", nil); err != nil {
			return e, err
		}
		e.CosignTag = strings.Replace(e.Index.Digest, ":", "-", 1) + ".sig"
		tagged := e.Cosign
		tagged.Annotations = map[string]string{"org.opencontainers.image.ref.name": e.CosignTag}
		top = append(top, e.Signature, tagged)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": top})
	if err != nil {
		return e, err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		return e, err
	}
	return e, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func writeImage(dir string, seed uint64, p *Platform) (e Entry, err error) {
	var layers []Descriptor
	diffIDs := []string{}
	for i := range 2 {
		content := make([]byte, 200_000)
		r := rand.NewChaCha8([32]byte{byte(seed), byte(i), byte(len(p.Architecture)), byte(len(p.Variant))})
		if _, err := r.Read(content[:100_000]); err != nil { // and as much that is compressible
			return e, err
		}
		var plain, packed bytes.Buffer
		w := tar.NewWriter(&plain)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%d", i), Mode: 0o644, Size: int64(len(content))}); err != nil {
			return e, err
		}
		if _, err := w.Write(content); err != nil {
			return e, err
		}
		if err := w.Close(); err != nil {
			return e, err
		}
		sum := sha256.Sum256(plain.Bytes())
		diffIDs = append(diffIDs, "sha256:"+hex.EncodeToString(sum[:]))
		gz := gzip.NewWriter(&packed)
		if _, err := gz.Write(plain.Bytes()); err != nil {
			return e, err
		}
		if err := gz.Close(); err != nil {
			return e, err
		}
		d, err := writeBlob(dir, gzipLayerType, &packed)
		if err != nil {
			return e, err
		}
		layers = append(layers, d)
	}
	config, err := writeJSON(dir, configType, map[string]any{
		"created": "2026-01-01T00:00:00Z", "os": p.OS, "architecture": p.Architecture, "variant": p.Variant,
		"config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return e, err
	}
	e.Platform = p
	e.Descriptor, err = writeJSON(dir, manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers,
	})
	return e, err
}

// writeAttestation is a manifest as BuildKit writes it about an image.
func writeAttestation(dir string, about Entry) (e Entry, err error) {
	statement, err := writeBlob(dir, "application/vnd.in-toto+json", strings.NewReader(`{"_type":"https://in-toto.io/Statement/v0.1","subject":"`+about.Digest+`"}`))
	if err != nil {
		return e, err
	}
	statement.Annotations = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}
	config, err := writeJSON(dir, configType, map[string]any{
		"os": "unknown", "architecture": "unknown", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{statement.Digest}},
	})
	if err != nil {
		return e, err
	}
	e.Descriptor, err = writeJSON(dir, manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": []Descriptor{statement},
	})
	e.Platform = &Platform{OS: "unknown", Architecture: "unknown"}
	e.Annotations = map[string]string{
		"vnd.docker.reference.digest": about.Digest,
		"vnd.docker.reference.type":   "attestation-manifest",
	}
	return e, err
}

// writeArtifact is a manifest with an empty config (image-spec v1.1,
// "Guidelines for Artifact Usage").
func writeArtifact(dir, artifactType, content string, subject *Descriptor) (e Entry, err error) {
	blob, err := writeBlob(dir, "application/octet-stream", strings.NewReader(content))
	if err != nil {
		return e, err
	}
	config, err := writeBlob(dir, "application/vnd.oci.empty.v1+json", strings.NewReader("{}"))
	if err != nil {
		return e, err
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": artifactType,
		"config": config, "layers": []Descriptor{blob},
	}
	if subject != nil {
		m["subject"] = subject
	}
	e.Descriptor, err = writeJSON(dir, manifestType, m)
	return e, err
}

// Tar writes a layout, or any other directory, to a file as an archive.
func Tar(dir, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}
