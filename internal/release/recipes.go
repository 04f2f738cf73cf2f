// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"text/template"
)

// sources are what a formula or a flake downloads.
type sources struct {
	Version, Description, Home, Base string
	r                                *release
}

// Sum is the SHA-256 of the archive for a target, in hex.
func (s sources) Sum(os, arch string) (string, error) { return s.r.sum(s.Archive(os, arch)) }

// SRI is the same as Nix writes it.
func (s sources) SRI(os, arch string) (string, error) {
	sum, err := s.Sum(os, arch)
	if err != nil {
		return "", err
	}
	raw, err := hex.DecodeString(sum)
	return "sha256-" + base64.StdEncoding.EncodeToString(raw), err
}

// Archive is its name.
func (s sources) Archive(os, arch string) string { return s.r.archive(target{os: os, arch: arch}) }

var formula = template.Must(template.New("").Parse(`# The formula of a tap: put it into Formula/rpush.rb.
class Rpush < Formula
  desc "{{.Description}}"
  homepage "{{.Home}}"
  version "{{.Version}}"
  license "Apache-2.0"
{{range $os := .Systems}}
  on_{{if eq $os "darwin"}}macos{{else}}linux{{end}} do
    on_arm do
      url "{{$.Base}}/{{$.Archive $os "arm64"}}"
      sha256 "{{$.Sum $os "arm64"}}"
    end
    on_intel do
      url "{{$.Base}}/{{$.Archive $os "amd64"}}"
      sha256 "{{$.Sum $os "amd64"}}"
    end
  end
{{end}}
  def install
    bin.install "rpush"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/rpush.bash" => "rpush"
    zsh_completion.install "completions/_rpush"
    fish_completion.install "completions/rpush.fish"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/rpush version")
  end
end
`))

var flake = template.Must(template.New("").Parse(`{
  description = "{{.Description}}";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      version = "{{.Version}}";
      archives = {
        x86_64-linux = { name = "{{.Archive "linux" "amd64"}}"; hash = "{{.SRI "linux" "amd64"}}"; };
        aarch64-linux = { name = "{{.Archive "linux" "arm64"}}"; hash = "{{.SRI "linux" "arm64"}}"; };
        x86_64-darwin = { name = "{{.Archive "darwin" "amd64"}}"; hash = "{{.SRI "darwin" "amd64"}}"; };
        aarch64-darwin = { name = "{{.Archive "darwin" "arm64"}}"; hash = "{{.SRI "darwin" "arm64"}}"; };
      };
      package = system: archive:
        let pkgs = nixpkgs.legacyPackages.${system}; in {
          default = pkgs.stdenvNoCC.mkDerivation {
            pname = "rpush";
            inherit version;
            src = pkgs.fetchurl {
              url = "{{.Base}}/${archive.name}";
              inherit (archive) hash;
            };
            sourceRoot = ".";
            nativeBuildInputs = [ pkgs.installShellFiles ];
            installPhase = ''
              install -Dm755 rpush $out/bin/rpush
              installManPage man/*.1
              installShellCompletion --bash --name rpush completions/rpush.bash
              installShellCompletion --zsh completions/_rpush
              installShellCompletion --fish completions/rpush.fish
            '';
            meta = {
              description = "{{.Description}}";
              homepage = "{{.Home}}";
              license = pkgs.lib.licenses.asl20;
              mainProgram = "rpush";
            };
          };
        };
    in
    { packages = builtins.mapAttrs package archives; };
}
`))

// recipes writes what installs the archives elsewhere. They hold the sums of
// the archives, and SHA256SUMS does not name them.
func (r *release) recipes() error {
	if len(r.targets) != len(targets) {
		return nil // archives are missing
	}
	data := struct {
		sources
		Systems []string
	}{
		sources{r.version, description, home, home + "/releases/download/v" + r.version, r},
		[]string{"darwin", "linux"},
	}
	for name, text := range map[string]*template.Template{"homebrew/rpush.rb": formula, "nix/flake.nix": flake} {
		var b bytes.Buffer
		if err := text.Execute(&b, data); err != nil {
			return err
		}
		file := filepath.Join(r.out, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			return err
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
