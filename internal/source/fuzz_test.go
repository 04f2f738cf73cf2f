// SPDX-License-Identifier: Apache-2.0

package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/klauspost/compress/zstd"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/testgear/recorded"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// mostMemory is what one input may make the reader allocate, all in all: a zstd
// window, the documents, and the workers that compress.
const mostMemory = 400 << 20

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// readAll reads every manifest and blob that a source leads to, as a push does.
func readAll(ctx context.Context, src Source) error {
	if src.Plain != nil {
		return readPlain(src.Plain)
	}
	return everything(src.Image, func(s *pusher.Stored) error { return readStored(ctx, s, 0) })
}

func readPlain(p *saved.Plain) error {
	for _, l := range p.Layers {
		if l.Open == nil {
			continue
		}
		r, err := l.Open()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func readStored(ctx context.Context, s *pusher.Stored, depth int) error {
	below, err := children(ctx, s)
	if err != nil || depth > manifest.MaxDepth {
		return err
	}
	for i, child := range below {
		d := child.Descriptor
		if d.MediaType.IsImage() || d.MediaType.IsIndex() {
			if err := readStored(ctx, child, depth+1); err != nil {
				return err
			}
			continue
		}
		if i > 20 {
			break
		}
		r, err := s.Content.Open(ctx, d, d.Size/2)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, r)
		r.Close()
		if err == nil && n != d.Size-d.Size/2 {
			return fmt.Errorf("blob %s of %d bytes gave %d from the middle", d.Digest, d.Size, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fuzzArchive is one input of FuzzArchive.
func fuzzArchive(t *testing.T, input []byte) {
	before := allocated()
	for _, transport := range []string{anyArchive, "docker-archive", "oci-archive"} {
		o := Options{Stdin: bytes.NewReader(input), Referrers: true, DigestTags: true}
		images, err := transports[transport](t.Context(), stdin, o)
		if err != nil {
			if !errors.Is(err, resume.ErrSource) && !errors.Is(err, ErrSpec) {
				t.Errorf("%s: %v is of no kind", transport, err)
			}
			continue
		}
		images.o = o
		for _, sel := range []selector{{}, {tag: "app:1"}, {index: "0"}} {
			src, err := images.image(t.Context(), sel)
			switch {
			case err == nil:
				_ = readAll(t.Context(), src) // an archive may lie about what nobody checked
			case !errors.Is(err, resume.ErrSource) && !errors.Is(err, ErrSpec):
				t.Errorf("%s: %v is of no kind", transport, err)
			}
		}
		_, _ = images.Tags(t.Context())
		images.Close()
	}
	if used := allocated() - before; used > mostMemory+64*uint64(len(input)) {
		t.Errorf("%d bytes of input made for %d bytes of memory", len(input), used)
	}
}

// FuzzArchive reads archives that a stranger made.
func FuzzArchive(f *testing.F) {
	for _, seed := range archiveSeeds(f) {
		f.Add(seed)
	}
	for _, a := range recorded.All(f) {
		f.Add(a.Tar)
	}
	f.Fuzz(fuzzArchive)
}

// archiveSeeds are small archives of all kinds, and some that are hostile.
func archiveSeeds(t testing.TB) [][]byte {
	plain := smallArchives(t)
	seeds := append([][]byte{}, plain...)
	for _, p := range plain {
		var gz bytes.Buffer
		w := gzip.NewWriter(&gz)
		must(w.Write(p))
		w.Close()
		enc := must(zstd.NewWriter(nil))
		seeds = append(seeds, gz.Bytes(), enc.EncodeAll(p, nil), p[:len(p)/2], gz.Bytes()[:gz.Len()/2])
	}
	return append(seeds,
		tarOf(tarEntry{name: "manifest.json", link: "../../../../etc/passwd"}),
		tarOf(tarEntry{name: "manifest.json", link: "manifest.json"}),
		tarOf(tarEntry{name: "a", link: "b"}, tarEntry{name: "b", link: "a"}),
		[]byte("\x28\xb5\x2f\xfd\x00\xff\xff\xff\xff"),
		nil,
	)
}

// tarEntry is a file, or a link.
type tarEntry struct{ name, content, link string }

func tarOf(entries ...tarEntry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o600, Size: int64(len(e.content))}
		if e.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		must(w.Write([]byte(e.content)))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// smallArchives are one of each kind that tools write.
func smallArchives(t testing.TB) [][]byte {
	t.Helper()
	img := must(random.Image(60, 1))
	layer := must(img.Layers())[0]
	compressed := must(io.ReadAll(must(layer.Compressed())))
	uncompressed := must(io.ReadAll(must(layer.Uncompressed())))
	config, manifest := must(img.RawConfigFile()), must(img.RawManifest())
	cfg, dig := must(img.ConfigName()), must(img.Digest())
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}`,
		must(img.MediaType()), dig, len(manifest))
	name := blobName
	docker := func(config, layer string) string {
		return fmt.Sprintf(`[{"Config":%q,"RepoTags":["app:1"],"Layers":[%q]}]`, config, layer)
	}
	dir := strings.Repeat("a", 64)
	return [][]byte{
		// docker save before 25, podman save
		tarOf(tarEntry{name: dir + "/layer.tar", content: string(uncompressed)}, tarEntry{name: "c.json", content: string(config)},
			tarEntry{name: "manifest.json", content: docker("c.json", dir+"/layer.tar")}),
		// with a link to a layer that is there, as podman has it
		tarOf(tarEntry{name: "l.tar", content: string(uncompressed)}, tarEntry{name: dir + "/layer.tar", link: "../l.tar"},
			tarEntry{name: "c.json", content: string(config)}, tarEntry{name: "manifest.json", content: docker("c.json", dir+"/layer.tar")}),
		// crane
		tarOf(tarEntry{name: "c.json", content: string(config)}, tarEntry{name: "l.tar.gz", content: string(compressed)},
			tarEntry{name: "manifest.json", content: docker("c.json", "l.tar.gz")}),
		// buildx, skopeo
		tarOf(tarEntry{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`}, tarEntry{name: "index.json", content: index},
			tarEntry{name: name(cfg), content: string(config)}, tarEntry{name: name(dig), content: string(manifest)},
			tarEntry{name: name(must(layer.Digest())), content: string(compressed)}),
		// docker save since 25
		tarOf(tarEntry{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`}, tarEntry{name: "index.json", content: index},
			tarEntry{name: name(cfg), content: string(config)}, tarEntry{name: name(dig), content: string(manifest)},
			tarEntry{name: name(must(layer.Digest())), content: string(compressed)},
			tarEntry{name: "manifest.json", content: docker(name(cfg), name(must(layer.Digest())))}),
	}
}
