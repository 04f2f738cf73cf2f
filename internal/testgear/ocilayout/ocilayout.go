// SPDX-License-Identifier: Apache-2.0

// Package ocilayout makes and compares OCI image layouts (image-spec v1.1) of
// any size for tests. Content is pseudo-random and depends only on the seed.
package ocilayout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// Descriptor of one blob.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Image is what Write wrote.
type Image struct {
	Dir      string
	Manifest Descriptor
	Config   Descriptor
	Layers   []Descriptor
	Total    int64 // bytes of manifest, config and layers
}

// BlobPath is the file of a blob of a layout.
func BlobPath(dir, digest string) string {
	return filepath.Join(dir, "blobs", strings.Replace(digest, ":", string(filepath.Separator), 1))
}

// Write makes dir an image layout with one image, named "latest", of one layer
// per size. The layers are noise and not tars; their media type is that of an
// uncompressed tar, so that their diff IDs are their digests. Layers are
// streamed to disk.
func Write(dir string, seed uint64, layerSizes ...int64) (Image, error) {
	im := Image{Dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return im, err
	}
	diffIDs := []string{}
	for i, size := range layerSizes {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(i))
		d, err := writeBlob(dir, layerType, io.LimitReader(rand.NewChaCha8(key), size))
		if err != nil {
			return im, err
		}
		im.Layers = append(im.Layers, d)
		diffIDs = append(diffIDs, d.Digest)
		im.Total += d.Size
	}
	var err error
	im.Config, err = writeJSON(dir, configType, map[string]any{
		"created":      "2026-01-01T00:00:00Z",
		"architecture": "amd64",
		"os":           "linux",
		"config":       map[string]any{},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return im, err
	}
	im.Manifest, err = writeJSON(dir, manifestType, map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        im.Config,
		"layers":        append([]Descriptor{}, im.Layers...),
	})
	if err != nil {
		return im, err
	}
	im.Total += im.Config.Size + im.Manifest.Size
	named := im.Manifest
	named.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     indexType,
		"manifests":     []Descriptor{named},
	})
	if err != nil {
		return im, err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		return im, err
	}
	return im, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func writeJSON(dir, mediaType string, v any) (Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Descriptor{}, err
	}
	return writeBlob(dir, mediaType, strings.NewReader(string(b)))
}

func writeBlob(dir, mediaType string, r io.Reader) (d Descriptor, err error) {
	f, err := os.CreateTemp(filepath.Join(dir, "blobs"), "new-*")
	if err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	h := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, h), r, make([]byte, 256<<10))
	if err != nil {
		return d, err
	}
	if err = f.Chmod(0o644); err != nil {
		return d, err
	}
	if err = f.Close(); err != nil {
		return d, err
	}
	d = Descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}
	return d, os.Rename(f.Name(), BlobPath(dir, d.Digest))
}

// Compare says how two layouts differ in what is reachable from their
// index.json, which itself may differ in annotations. Every blob is hashed again
// on both sides, so equal sets of digests are equal bytes.
func Compare(a, b string) error {
	as, err := reachable(a)
	if err != nil {
		return err
	}
	bs, err := reachable(b)
	if err != nil {
		return err
	}
	for digest := range as {
		if !bs[digest] {
			return fmt.Errorf("ocilayout: %s is in %s but not in %s", digest, a, b)
		}
	}
	for digest := range bs {
		if !as[digest] {
			return fmt.Errorf("ocilayout: %s is in %s but not in %s", digest, b, a)
		}
	}
	return nil
}

// node is a manifest or an index.
type node struct {
	Config    *Descriptor  `json:"config"`
	Layers    []Descriptor `json:"layers"`
	Manifests []Descriptor `json:"manifests"`
}

func reachable(dir string) (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	var root node
	if err := json.Unmarshal(b, &root); err != nil {
		return nil, fmt.Errorf("ocilayout: %s: index.json: %w", dir, err)
	}
	if len(root.Manifests) == 0 {
		return nil, fmt.Errorf("ocilayout: %s: index.json names nothing", dir)
	}
	seen := map[string]bool{}
	return seen, walk(dir, root, seen)
}

func walk(dir string, n node, seen map[string]bool) error {
	if n.Config != nil {
		n.Layers = append(n.Layers, *n.Config)
	}
	for _, d := range n.Layers {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			if err := check(dir, d, nil); err != nil {
				return err
			}
		}
	}
	for _, d := range n.Manifests {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		var text strings.Builder
		if err := check(dir, d, &text); err != nil {
			return err
		}
		var child node
		if err := json.Unmarshal([]byte(text.String()), &child); err != nil {
			return fmt.Errorf("ocilayout: %s: %s: %w", dir, d.Digest, err)
		}
		if err := walk(dir, child, seen); err != nil {
			return err
		}
	}
	return nil
}

// check hashes a blob, and copies it to w if there is one.
func check(dir string, d Descriptor, w io.Writer) error {
	f, err := os.Open(BlobPath(dir, d.Digest))
	if err != nil {
		return fmt.Errorf("ocilayout: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	to := io.Writer(h)
	if w != nil {
		to = io.MultiWriter(h, w)
	}
	n, err := io.CopyBuffer(to, f, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("ocilayout: %w", err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != d.Digest || n != d.Size {
		return fmt.Errorf("ocilayout: %s: %s of %d bytes holds %s of %d bytes", dir, d.Digest, d.Size, got, n)
	}
	return nil
}
