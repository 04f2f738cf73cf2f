// SPDX-License-Identifier: Apache-2.0

// Package docker makes images in a real Docker engine, and watches what is
// asked of it.
package docker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Engine is one that the docker command speaks to.
type Engine struct {
	Command string
	// Host is its address; empty is the command's choice.
	Host string
}

// Answers says whether there is an engine at the other end.
func (e Engine) Answers(ctx context.Context) error {
	_, err := e.Run(ctx, "version", "--format", "{{.Server.Version}}")
	return err
}

// Run calls the docker command and returns what it printed.
func (e Engine) Run(ctx context.Context, args ...string) (string, error) {
	if e.Host != "" {
		args = append([]string{"--host", e.Host}, args...)
	}
	cmd := exec.CommandContext(ctx, e.Command, args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0", "DOCKER_CLI_HINTS=false")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Layer is what one layer of an image holds.
type Layer struct {
	Random int64 // bytes that cannot be compressed
	Text   int64 // bytes that can, to some third
}

// Build makes an image of base ("scratch", or one that the engine has) and
// layers, one COPY each, in dir. The content depends on the seed and the number
// of the layer only.
func (e Engine) Build(ctx context.Context, dir, ref, base string, seed uint64, layers ...Layer) error {
	file := "FROM " + base + "\n"
	for i, l := range layers {
		name := fmt.Sprintf("file%d", i)
		if err := write(filepath.Join(dir, name), seed, uint64(i), l); err != nil {
			return err
		}
		file += fmt.Sprintf("COPY %s /%s\n", name, name)
	}
	file += fmt.Sprintf("LABEL seed=%d\nCMD [\"/file0\"]\n", seed)
	return e.BuildFile(ctx, dir, ref, file)
}

// BuildFile makes an image of a Dockerfile and what dir holds.
func (e Engine) BuildFile(ctx context.Context, dir, ref, file string) error {
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600); err != nil {
		return err
	}
	_, err := e.Run(ctx, "build", "-q", "-t", ref, dir)
	return err
}

func write(path string, seed, n uint64, l Layer) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(n)})
	block := make([]byte, 1<<20)
	for left := l.Random; left > 0; {
		k := min(left, int64(len(block)))
		r.Read(block[:k])
		if _, err := f.Write(block[:k]); err != nil {
			return err
		}
		left -= k
	}
	pick := rand.New(r)
	for left := l.Text; left > 0; {
		line := block[:0]
		for len(line) < 64<<10 {
			line = append(line, words[pick.IntN(len(words))]...)
			line = fmt.Appendf(line, " %x ", pick.Uint32())
		}
		k := min(left, int64(len(line)))
		if _, err := f.Write(line[:k]); err != nil {
			return err
		}
		left -= k
	}
	return f.Close()
}

var words = strings.Fields(`a image layer of the registry is what a tar archive holds and every program finds
	usr lib share doc man locale python site packages include static const struct return error package func`)
