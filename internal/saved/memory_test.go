// SPDX-License-Identifier: Apache-2.0

package saved

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memory"
	"github.com/rpush-go/rpush/resume"
)

// mostMemory is what one hostile archive may make the reader allocate, all in
// all.
const mostMemory = 64 << 20

func TestDocumentsOfEmptyEntries(t *testing.T) {
	for _, member := range []string{"{}", `{"Layers":[""]}`, `{"annotations":{"":""}}`} {
		all := strings.Repeat(member+",", (MaxDocument-100)/(len(member)+1)) + member
		b := archive(t, file{name: "manifest.json", body: "[" + all + "]"}, file{name: "oci-layout", body: "{}"},
			file{name: "index.json", body: `{"manifests":[` + all + `]}`})
		var a *Archive
		var docker, index error
		used := memory.Allocated(func() {
			a, _, _ = walk(b)
			_, docker = a.Docker()
			_, index = a.Index()
		})
		if !errors.Is(docker, resume.ErrSource) || !errors.Is(index, resume.ErrSource) || used > mostMemory {
			t.Errorf("lists of %s: %.200s, %.200s, %d bytes", member, fmt.Sprint(docker), fmt.Sprint(index), used)
		}
	}
}

// One large JSON under the names of many layers is not hashed for each layer of
// the image, for each of the names.
func TestPositionIsBounded(t *testing.T) {
	chain := make([]digest.Digest, 50)
	for i := range chain {
		chain[i] = digest.FromString(fmt.Sprint(i))
	}
	for _, size := range []int{100_000, 500_000, 4_000_000} {
		files := []file{{name: "big/json", body: `{"config":"` + strings.Repeat("x", size) + `"}`}}
		for i := range 10 {
			dir := fmt.Sprintf("%064x", i)
			files = append(files, file{name: dir + "/json", link: "../big/json", kind: tar.TypeSymlink}, file{name: dir + "/layer.tar", body: "layer"})
		}
		b := archive(t, files...)
		layers := 0
		used := memory.Allocated(func() {
			a, err := Walk(context.Background(), bytes.NewReader(b), func(a *Archive, e Entry, _ io.Reader) error {
				layers++
				if at := a.Position(e, chain); at != -1 {
					t.Errorf("%s is layer %d", e.Name, at)
				}
				return nil
			})
			if err != nil || a.tried > maxTried {
				t.Errorf("%v, %d bytes were hashed", err, a.tried)
			}
		})
		if layers != 10 || used > mostMemory {
			t.Errorf("JSON of %d bytes: %d layers, %d bytes", size, layers, used)
		}
	}
}

// A document with many names is hashed once.
func TestBlobIsHashedOnce(t *testing.T) {
	doc := `{"a":1}`
	d := digest.FromString(doc)
	files := []file{{name: BlobName(d), body: doc}}
	for i := range 10 {
		files = append(files, file{name: fmt.Sprintf("blobs/sha256/%064x", i), link: d.Encoded(), kind: tar.TypeSymlink})
	}
	a, _, err := walk(archive(t, files...))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := a.Blob(digest.Digest(fmt.Sprintf("sha256:%064x", i))); !errors.Is(err, resume.ErrSource) {
			t.Errorf("a document under the digest of another: %v", err)
		}
	}
	if b, err := a.Blob(d); string(b) != doc || err != nil || len(a.digests) != 1 {
		t.Errorf("%q, %v, hashed %d times", b, err, len(a.digests))
	}
}

// The window that a zstd frame asks for is memory. With frames of growing windows
// a decoder allocates one after the other.
func TestZstdWindows(t *testing.T) {
	frames := func(least, most int) (b []byte) {
		for exponent := range byte(20) {
			for mantissa := range byte(8) {
				window := 1 << (10 + exponent)
				if window += window / 8 * int(mantissa); least <= window && window <= most {
					// A frame of one block, which is 128 KiB of zeros.
					b = append(b, 0x28, 0xb5, 0x2f, 0xfd, 0, exponent<<3|mantissa, 3, 0, 0x10, 0)
				}
			}
		}
		return b
	}
	for _, tt := range []struct {
		least, most int
		refused     bool
	}{
		{128 << 10, 8 << 20, false},
		{128 << 10, 128 << 20, true},
		{9 << 20, 9 << 20, true},
		{128 << 20, 128 << 20, true},
	} {
		var err error
		used := memory.Allocated(func() {
			r, e := Decompress(bytes.NewReader(frames(tt.least, tt.most)))
			if err = e; err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
		})
		refused := errors.Is(err, resume.ErrSource) && strings.Contains(err.Error(), "decompress it first")
		if refused != tt.refused || err != nil && !refused || used > 4*mostMemory { // 4 times: what was freed counts
			t.Errorf("windows from %d to %d: %v, %d bytes", tt.least, tt.most, err, used)
		}
	}
}
