// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

// transport sets remote.Write over the transport beside remote.Write, each in a
// process of its own, which is this program.
func (b *bench) transport(reg *realreg.Registry) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	img, err := ocilayout.Write(filepath.Join(b.dir, "image"), 3, 512*mib)
	if err != nil {
		return err
	}
	defer os.RemoveAll(img.Dir)
	kind := func(name string) client {
		return client{name, func(dir, ref string) []string { return []string{"-one", name, dir, ref} }, self}
	}
	return b.clean(img, reg, kind("resuming"), kind("plain"))
}

// write is what any program does with go-containerregistry.
func write(dir, reference string, resuming bool) error {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	top, err := index.IndexManifest()
	if err != nil {
		return err
	}
	img, err := index.Image(top.Manifests[0].Digest)
	if err != nil {
		return err
	}
	rt := http.DefaultTransport
	if resuming {
		if rt, err = resume.NewTransport(http.DefaultTransport, resume.TransportOptions{}); err != nil {
			return err
		}
	}
	return remote.Write(ref, img, remote.WithTransport(rt))
}
