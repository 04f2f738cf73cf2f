// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	home        = "https://github.com/rpush-go/rpush"
	description = "Pushes container images with uploads that continue after a broken connection"
)

// release is one version of rpush.
type release struct {
	version, commit string
	time            time.Time
	out             string // absolute
	nfpm            string
	targets         []target

	work string // a directory for what is in between
}

// base begins the names of all files.
func (r *release) base() string { return "rpush_" + r.version }

// build writes all files. SHA256SUMS comes last: it names all others.
func (r *release) build() (err error) {
	if r.work, err = os.MkdirTemp("", "rpush-release-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	if err := replaceDirectory(r.out); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		run  func() error
	}{
		{"man pages and completions", r.documents},
		{"binaries", r.binaries},
		{"archives", r.archives},
		{"packages", r.packages},
		{"image", r.image},
		{"bill of materials", r.billOfMaterials},
		{"checksums", r.sums},
		{"formula and flake", r.recipes},
	} {
		if err := step.run(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// marker is in a directory that this program may replace.
const marker = "SHA256SUMS"

// replaceDirectory empties dir, if it holds an earlier release.
func replaceDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() == marker || strings.HasPrefix(e.Name(), "rpush_")
	}) {
		return fmt.Errorf("%s holds something else than a release", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o777)
}

// binary is where the program for a target is, before it is packed.
func (r *release) binary(t target) string { return filepath.Join(r.work, t.name(), t.binary()) }

func (r *release) binaries() error {
	const variables = "github.com/rpush-go/rpush/internal/cli"
	for _, t := range r.targets {
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
			"-ldflags", fmt.Sprintf("-s -w -buildid= -X %[1]s.Version=%[2]s -X %[1]s.Commit=%[3]s", variables, r.version, r.commit),
			"-o", r.binary(t), "github.com/rpush-go/rpush/cmd/rpush")
		// What the environment says of Go must not change the result.
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0", "CGO_ENABLED=0",
			"GOOS="+t.os, "GOARCH="+t.arch, "GOARM="+t.arm)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	return nil
}

// files are those beside SHA256SUMS that it names.
func (r *release) files() ([]string, error) {
	entries, err := os.ReadDir(r.out)
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != marker {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (r *release) sums() error {
	names, err := r.files()
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, name := range names {
		sum, err := r.sum(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s  %s\n", sum, name)
	}
	return os.WriteFile(filepath.Join(r.out, marker), []byte(b.String()), 0o644)
}

// sum is the SHA-256 of a published file, in hex.
func (r *release) sum(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(r.out, name))
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), err
}
