// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// member is a file of an archive.
type member struct {
	name string // as the archive has it
	from string // the file to read; empty for a directory
	mode int64
}

// archives packs a binary with its documents for each target.
func (r *release) archives() error {
	documents := []member{
		{"LICENSE", "LICENSE", 0o644}, {"README.md", "README.md", 0o644}, {"CHANGELOG.md", "CHANGELOG.md", 0o644},
	}
	for dir, from := range map[string]string{"completions": r.completionDir(), "man": r.manDir()} {
		files, err := filepath.Glob(filepath.Join(from, "*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			documents = append(documents, member{dir + "/" + filepath.Base(f), f, 0o644})
		}
	}
	slices.SortFunc(documents, func(a, b member) int { return strings.Compare(a.name, b.name) })
	for _, t := range r.targets {
		members := append([]member{{t.binary(), r.binary(t), 0o755}}, documents...)
		pack, name := packTar, r.archive(t)
		if t.os == "windows" {
			pack = packZip
		}
		if err := writeFile(filepath.Join(r.out, name), func(w io.Writer) error { return pack(w, members, r.time) }); err != nil {
			return err
		}
	}
	return nil
}

// archive is the name of the archive for a target.
func (r *release) archive(t target) string {
	if t.os == "windows" {
		return r.base() + "_" + t.name() + ".zip"
	}
	return r.base() + "_" + t.name() + ".tar.gz"
}

// writeFile makes a file of what write writes.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// packTar writes a tar file, compressed with gzip. Its members belong to root
// and are as old as the commit.
func packTar(w io.Writer, members []member, at time.Time) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, m := range members {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: m.mode, ModTime: at, Format: tar.FormatUSTAR}
		if m.from == "" {
			h.Typeflag, h.Name = tar.TypeDir, m.name+"/"
			if err := t.WriteHeader(h); err != nil {
				return err
			}
			continue
		}
		b, err := os.ReadFile(m.from)
		if err != nil {
			return err
		}
		h.Size = int64(len(b))
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

func packZip(w io.Writer, members []member, at time.Time) error {
	z := zip.NewWriter(w)
	for _, m := range members {
		h := &zip.FileHeader{Name: m.name, Method: zip.Deflate, Modified: at}
		h.SetMode(os.FileMode(m.mode))
		to, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(m.from)
		if err != nil {
			return err
		}
		if _, err := to.Write(b); err != nil {
			return err
		}
	}
	return z.Close()
}
