// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
)

// nfpmConfig is what nfpm makes deb, rpm and apk of.
var nfpmConfig = template.Must(template.New("").Parse(`name: rpush
arch: {{.Arch}}
platform: linux
version: {{.Version}}
section: utils
priority: optional
maintainer: rpush <maintainers@rpush.invalid>
description: |
  {{.Description}}.
  Pushes to any container registry, from the Docker engine, OCI layouts,
  archives or another registry.
homepage: {{.Home}}
license: Apache-2.0
mtime: {{.Time}}
suggests: [ca-certificates]
rpm:
  group: Development/Tools
  buildhost: localhost
contents:
  - {src: {{.Binary}}, dst: /usr/bin/rpush, file_info: {mode: 0755, mtime: {{.Time}}}}
  - {src: {{.Completions}}/rpush.bash, dst: /usr/share/bash-completion/completions/rpush, file_info: {mode: 0644, mtime: {{.Time}}}}
  - {src: {{.Completions}}/_rpush, dst: /usr/share/zsh/vendor-completions/_rpush, file_info: {mode: 0644, mtime: {{.Time}}}, packager: deb}
  - {src: {{.Completions}}/_rpush, dst: /usr/share/zsh/site-functions/_rpush, file_info: {mode: 0644, mtime: {{.Time}}}, packager: rpm}
  - {src: {{.Completions}}/_rpush, dst: /usr/share/zsh/site-functions/_rpush, file_info: {mode: 0644, mtime: {{.Time}}}, packager: apk}
  - {src: {{.Completions}}/rpush.fish, dst: /usr/share/fish/vendor_completions.d/rpush.fish, file_info: {mode: 0644, mtime: {{.Time}}}}
  - {src: LICENSE, dst: /usr/share/doc/rpush/copyright, file_info: {mode: 0644, mtime: {{.Time}}}}
{{- range .Pages}}
  - {src: {{$.Man}}/{{.}}, dst: /usr/share/man/man1/{{.}}, file_info: {mode: 0644, mtime: {{$.Time}}}}
{{- end}}
`))

// packages makes deb, rpm and apk for the targets with Linux.
func (r *release) packages() error {
	if r.nfpm == "" {
		return nil
	}
	man, pages, err := r.compressedMan()
	if err != nil {
		return err
	}
	for _, t := range r.targets {
		if t.os != "linux" {
			continue
		}
		var config bytes.Buffer
		if err := nfpmConfig.Execute(&config, map[string]any{
			"Arch": t.arch + t.arm, "Version": r.version, "Description": description, "Home": home,
			"Time": r.time.Format("2006-01-02T15:04:05Z"), "Binary": r.binary(t), "Completions": r.completionDir(),
			"Man": man, "Pages": pages,
		}); err != nil {
			return err
		}
		file := filepath.Join(r.work, "nfpm-"+t.name()+".yaml")
		if err := os.WriteFile(file, config.Bytes(), 0o666); err != nil {
			return err
		}
		for _, kind := range []string{"deb", "rpm", "apk"} {
			name := fmt.Sprintf("%s_%s.%s", r.base(), t.name(), kind)
			cmd := exec.Command(r.nfpm, "package", "--config", file, "--packager", kind, "--target", filepath.Join(r.out, name))
			cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.time.Unix()))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
			}
		}
	}
	return nil
}

// compressedMan has the man pages compressed, as Debian wants them.
func (r *release) compressedMan() (dir string, pages []string, err error) {
	dir = filepath.Join(r.work, "man.gz")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return "", nil, err
	}
	files, err := filepath.Glob(filepath.Join(r.manDir(), "*.1"))
	if err != nil {
		return "", nil, err
	}
	for _, f := range files {
		page, err := os.ReadFile(f)
		if err != nil {
			return "", nil, err
		}
		name := filepath.Base(f) + ".gz"
		err = writeFile(filepath.Join(dir, name), func(w io.Writer) error {
			z, _ := gzip.NewWriterLevel(w, gzip.BestCompression) // a valid level
			_, _ = io.Copy(z, strings.NewReader(string(page)))   // Close has the error
			return z.Close()
		})
		if err != nil {
			return "", nil, err
		}
		pages = append(pages, name)
	}
	return dir, pages, nil
}
