// SPDX-License-Identifier: Apache-2.0

//go:build unix

package source

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rpush-go/rpush/resume"
)

// A named pipe in a layout is refused, and not waited for.
func TestPipesInALayout(t *testing.T) {
	img := randomImage(t)
	for _, name := range []string{"oci-layout", "index.json", "layer"} {
		p := newLayout(t, "pipe")
		check(t, p.AppendImage(img))
		file := filepath.Join(string(p), name)
		if name == "layer" {
			file = blob(p, must(img.Manifest()).Layers[0].Digest)
		}
		check(t, os.Remove(file))
		check(t, syscall.Mkfifo(file, 0o600))
		wantError(t, "oci:"+string(p), resume.ErrSource, "is not a regular file")
	}
}
