// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/testgear/binary"
)

// hostile is an archive that is made to cost memory. It is written to a file:
// what this process uses counts as its child's.
type hostile struct {
	t *testing.T
	w *tar.Writer
}

func (h *hostile) add(name, link, content string) {
	header := &tar.Header{Name: name, Linkname: link, Size: int64(len(content)), Mode: 0o644}
	if link != "" {
		header.Typeflag = tar.TypeSymlink
	}
	err := h.w.WriteHeader(header)
	if err == nil {
		_, err = io.WriteString(h.w, content)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// blob adds one and returns its descriptor.
func (h *hostile) blob(mt types.MediaType, content string) string {
	d := digest.FromString(content)
	h.add("blobs/sha256/"+d.Encoded(), "", content)
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mt, d, len(content))
}

func (h *hostile) index(mt types.MediaType, manifests []string, rest string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]%s}`, mt, strings.Join(manifests, ","), rest)
}

// The process stays under 64 MiB, as the kernel counts it, for the worst that
// passes the bounds, from a file and from a pipe.
func TestHostileImagesTakeLittleMemory(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/app:1"
	config := func(h *hostile) string { return h.blob(types.OCIConfigJSON, "{}") }
	for _, tt := range []struct {
		name string
		make func(h *hostile)
		exit int
	}{
		{"many manifests and links", func(h *hostile) {
			c := config(h)
			var all []string
			const images = manifest.MaxVisits/2 - 10
			for i := range images {
				layer := h.blob(types.OCILayer, fmt.Sprint(i))
				all = append(all, h.blob(types.OCIManifestSchema1, fmt.Sprintf(
					`{"schemaVersion":2,"config":%s,"layers":[%s],"annotations":{"a":"%s"}}`, c, layer, strings.Repeat("x", manifest.MaxTotal/images-700))))
			}
			for i := range 15_000 {
				h.add(fmt.Sprintf("%d/%060d", i, 0), strings.Repeat("l", 60), "")
			}
			top := h.blob(types.OCIImageIndex, h.index(types.OCIImageIndex, all, ""))
			h.add("oci-layout", "", `{"imageLayoutVersion":"1.0.0"}`)
			h.add("index.json", "", h.index(types.OCIImageIndex, []string{top}, `,"annotations":{"a":"`+strings.Repeat("x", 3_900_000)+`"}`))
		}, 0},
		{"large manifests of many elements", func(h *hostile) {
			c := config(h)
			var all, layers []string
			for i := range 4000 {
				layers = append(layers, h.blob(types.OCILayer, fmt.Sprint(i)))
			}
			var many strings.Builder
			for i := range 40_000 {
				fmt.Fprintf(&many, `"%d":"",`, i)
			}
			for i := range 2 {
				all = append(all, h.blob(types.OCIManifestSchema1, fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s],"annotations":{%s"a":"%d%s"}}`,
					c, strings.Join(layers[2000*i:2000*i+2000], ","), many.String(), i, strings.Repeat("x", 3_100_000))))
			}
			top := h.blob(types.OCIImageIndex, h.index(types.OCIImageIndex, all, ""))
			h.add("oci-layout", "", `{"imageLayoutVersion":"1.0.0"}`)
			h.add("index.json", "", h.index(types.OCIImageIndex, []string{top}, ""))
		}, 0},
		{"one foreign layer many times", func(h *hostile) {
			const many = 5000
			d := digest.FromString("")
			h.add("c", "", `{"rootfs":{"diff_ids":[`+strings.Repeat(fmt.Sprintf("%q,", d), many-1)+fmt.Sprintf("%q", d)+`]}}`)
			h.add("manifest.json", "", fmt.Sprintf(`[{"Config":"c","Layers":[%s""],"LayerSources":{%q:{"mediaType":%q,"size":5,"digest":%q,"annotations":{"a":"%s"}}}}]`,
				strings.Repeat(`"",`, many-1), d, types.DockerForeignLayer, d, strings.Repeat("x", 2_000_000)))
		}, 0},
		{"no image", func(h *hostile) {
			for i := range 15_000 {
				h.add(fmt.Sprintf("%d/%0120d", i, 0), strings.Repeat("l", 100), "")
			}
		}, 1},
	} {
		path := filepath.Join(t.TempDir(), "app.tar")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		out := bufio.NewWriter(f)
		h := &hostile{t, tar.NewWriter(out)}
		tt.make(h)
		if err := errors.Join(h.w.Close(), out.Flush(), f.Close()); err != nil {
			t.Fatal(err)
		}
		r := rpush.Run(t, binary.Environ(t), "push", "--dry-run", path, ref)
		t.Logf("%s: peak %.1f MiB", tt.name, float64(r.Peak)/mib)
		if r.Exit != tt.exit || r.Peak <= 0 || r.Peak > 64*mib {
			t.Errorf("%s: exit %d, peak %.1f MiB\n%.2000s", tt.name, r.Exit, float64(r.Peak)/mib, r.Stderr)
		}
	}
}
