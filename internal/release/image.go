// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// imageTag is the tag of the image in its layout.
func (r *release) imageTag() string { return r.version }

// image makes an OCI layout: an index of images with the program and the roots
// of Mozilla, on nothing.
func (r *release) image() error {
	roots := filepath.Join(r.work, "ca-certificates.crt")
	if err := writeFile(roots, writeRoots); err != nil {
		return err
	}
	notes := map[string]string{
		"org.opencontainers.image.title":       "rpush",
		"org.opencontainers.image.description": description,
		"org.opencontainers.image.source":      home,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     r.version,
		"org.opencontainers.image.revision":    r.commit,
		"org.opencontainers.image.created":     r.time.Format("2006-01-02T15:04:05Z"),
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, t := range r.targets {
		if t.os != "linux" {
			continue
		}
		img, err := r.imageOf(t, roots, notes)
		if err != nil {
			return err
		}
		p := &v1.Platform{OS: t.os, Architecture: t.arch}
		if t.arm != "" {
			p.Variant = "v" + t.arm
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	index, _ = mutate.Annotations(index, notes).(v1.ImageIndex)
	dir := filepath.Join(r.work, "image")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": r.imageTag()})); err != nil {
		return err
	}
	var members []member
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		m := member{filepath.ToSlash(name), path, 0o644}
		if d.IsDir() {
			m.from, m.mode = "", 0o755
		}
		members = append(members, m)
		return err
	})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, r.base()+"_oci.tar.gz"), func(w io.Writer) error { return packTar(w, members, r.time) })
}

func (r *release) imageOf(t target, roots string, notes map[string]string) (v1.Image, error) {
	var layer bytes.Buffer
	err := packTar(&layer, []member{
		{"etc", "", 0o755}, {"etc/ssl", "", 0o755}, {"etc/ssl/certs", "", 0o755},
		{"etc/ssl/certs/ca-certificates.crt", roots, 0o644},
		{"tmp", "", 0o1777},
		{"usr", "", 0o755}, {"usr/bin", "", 0o755}, {"usr/bin/rpush", r.binary(t), 0o755},
	}, r.time)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: r.time}, CreatedBy: "rpush " + r.version}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = t.os, t.arch, v1.Time{Time: r.time}
	if t.arm != "" {
		config.Variant = "v" + t.arm
	}
	// Nobody has a home here: what rpush keeps goes to /tmp, or to a volume that
	// RPUSH_STATE_DIR names.
	config.Config = v1.Config{
		User: "65532:65532", WorkingDir: "/", Entrypoint: []string{"/usr/bin/rpush"},
		Env: []string{"PATH=/usr/bin", "HOME=/tmp"}, Labels: notes,
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	img, _ = mutate.Annotations(img, notes).(v1.Image)
	return img, nil
}

// writeRoots writes the authorities that Mozilla trusts without conditions.
func writeRoots(w io.Writer) error {
	var all [][]byte
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			all = append(all, root.Certificate)
		}
	}
	slices.SortFunc(all, bytes.Compare)
	for _, der := range all {
		if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	return nil
}
