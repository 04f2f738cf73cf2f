// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/saved"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/resume"
)

// plain is an image of layers in memory. opened counts how often each is read.
func plain(t *testing.T, layers ...string) (p *saved.Plain, opened map[string]int) {
	t.Helper()
	p, opened = &saved.Plain{}, map[string]int{}
	var diffs []string
	for i, content := range layers {
		a := newArchive()
		a.file(content[:1], []byte(content))
		a.w.Close()
		name := fmt.Sprintf("%d/layer.tar", i)
		d := digest.FromBytes(a.b.Bytes())
		p.Layers = append(p.Layers, saved.PlainLayer{DiffID: d, Name: name, Open: func() (io.ReadCloser, error) {
			opened[name]++
			return io.NopCloser(bytes.NewReader(a.b.Bytes())), nil
		}})
		diffs = append(diffs, fmt.Sprintf("%q", d))
	}
	p.Config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}}`, strings.Join(diffs, ","))
	return p, opened
}

func TestPlain(t *testing.T) {
	a, b := strings.Repeat("a text ", 1000), strings.Repeat("b text ", 2000)
	cache := known.Open(t.TempDir())
	for _, tt := range []struct {
		algorithm  compress.Algorithm
		format     Format
		media      types.MediaType
		layer      types.MediaType
		compressed int // layers
	}{
		{"", "", types.DockerManifestSchema2, types.DockerLayer, 2},
		{"", OCI, types.OCIManifestSchema1, types.OCILayer, 2}, // another registry: nothing is there
		{compress.Zstd, OCI, types.OCIManifestSchema1, types.OCILayerZStd, 2},
		{compress.None, "", types.DockerManifestSchema2, types.DockerUncompressedLayer, 2},
	} {
		p, opened := plain(t, a, b, a) // one layer twice
		job := &Job{Input: Plain{p}, Algorithm: tt.algorithm, Format: tt.format, Cache: cache}
		send := push
		if tt.algorithm != "" {
			send = deliver // the other client knows gzip only
		}
		got, warned, err := send(t, nil, job)
		if err != nil || len(warned) > 0 {
			t.Fatalf("%+v: %v, warnings %q", tt, err, warned)
		}
		img, ok := got.(v1.Image)
		if !ok {
			t.Fatalf("%+v: a %T", tt, got)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if m.MediaType != tt.media || len(m.Layers) != 3 || m.Layers[0].MediaType != tt.layer || m.Layers[0].Digest != m.Layers[2].Digest {
			t.Errorf("%+v: the manifest %+v", tt, m)
		}
		if id := digest.FromBytes(p.Config); m.Config.Digest.String() != id.String() {
			t.Errorf("%+v: the image is %s, want %s", tt, m.Config.Digest, id)
		}
		if s := job.Stats(); s.Compressed != tt.compressed || s.Exports != 0 || opened["0/layer.tar"] != 1 || opened["2/layer.tar"] != 0 {
			t.Errorf("%+v: %+v, read %v", tt, s, opened)
		}
	}
}

// docker load takes a layer without a byte, and docker push sends it.
func TestPlainLayerOfNoBytes(t *testing.T) {
	for _, a := range []compress.Algorithm{compress.Gzip, compress.Zstd, compress.None} {
		p, _ := plain(t, "some text")
		p.Layers = append(p.Layers, saved.PlainLayer{DiffID: digest.FromString(""), Name: "none/layer.tar", Open: func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("")), nil
		}})
		p.Config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, p.Layers[0].DiffID, p.Layers[1].DiffID)
		store, err := spool.Open(t.TempDir()+"/spool", 0)
		if err != nil {
			t.Fatal(err)
		}
		got, warned, err := deliver(t, nil, &Job{Input: Plain{p}, Algorithm: a, Spool: store})
		if err != nil || len(warned) > 0 {
			t.Errorf("%s: %v, warnings %q", a, err, warned)
			continue
		}
		m, err := got.(v1.Image).Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if l := m.Layers[1]; (l.Size == 0) != (a == compress.None) {
			t.Errorf("%s: the layer is %+v", a, l)
		}
	}
}

// Where the spool has no room each try makes the layer again, and it arrives.
func TestPlainWithoutSpool(t *testing.T) {
	p, opened := plain(t, strings.Repeat("a text ", 1000))
	small, err := spool.Open(t.TempDir()+"/spool", 1)
	if err != nil {
		t.Fatal(err)
	}
	cache := known.Open(t.TempDir())
	job := &Job{Input: Plain{p}, Spool: small, Cache: cache}
	if _, _, err = push(t, nil, job); err != nil {
		t.Fatal(err)
	}
	if l := cache.Layers(p.Layers[0].DiffID); len(l) != 1 || !slices.Equal(l[0].Repositories, []string{job.Repository}) {
		t.Errorf("of the layer is known: %+v", l)
	}
	if s := job.Stats(); s.Spooled != 0 || opened["0/layer.tar"] != 2 {
		t.Errorf("%+v, read %v", s, opened)
	}
}

// A layer that is not here, and is not to be, is named as it is.
func TestPlainForeign(t *testing.T) {
	p, _ := plain(t, strings.Repeat("a", 100), strings.Repeat("b", 100))
	foreign := v1.Descriptor{MediaType: types.DockerForeignLayer, Size: 7, Digest: toHash(digest.FromString("there")), URLs: []string{"https://example.com/blob"}}
	p.Layers[0].Open, p.Layers[0].Foreign = nil, foreign
	got, _, err := deliver(t, nil, &Job{Input: Plain{p}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := got.(v1.Image).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if l := m.Layers[0]; l.Digest != foreign.Digest || len(l.URLs) != 1 || l.MediaType != foreign.MediaType {
		t.Errorf("the foreign layer is %+v", l)
	}
}

func TestPlainRefuses(t *testing.T) {
	damaged, _ := plain(t, strings.Repeat("a", 100), strings.Repeat("b", 100))
	damaged.Layers[1].Open = damaged.Layers[0].Open
	gone, _ := plain(t, strings.Repeat("a", 100))
	gone.Layers[0].Open = func() (io.ReadCloser, error) { return nil, bad("it cannot be read") }
	for _, tt := range []struct {
		name, want string
		p          *saved.Plain
	}{
		{"damaged", `layer 2 of 2: bad source: "1/layer.tar" is damaged`, damaged},
		{"unreadable", "layer 1 of 1: bad source: it cannot be read", gone},
	} {
		_, _, err := push(t, nil, &Job{Input: Plain{tt.p}})
		if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%s: got %v, want a source error about %q", tt.name, err, tt.want)
		}
	}
}
