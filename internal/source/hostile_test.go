// SPDX-License-Identifier: Apache-2.0

package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// A small archive that unpacks to more than there is room for ends with an
// error, not with a full disk.
func TestBombs(t *testing.T) {
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	must(w.Write(make([]byte, 64<<20)))
	check(t, w.Close())
	enc := must(zstd.NewWriter(nil))
	for name, bomb := range map[string][]byte{"gzip": gz.Bytes(), "zstd": enc.EncodeAll(make([]byte, 64<<20), nil)} {
		if len(bomb) > 100_000 {
			t.Fatalf("%s: %d bytes are no bomb", name, len(bomb))
		}
		dir := t.TempDir()
		_, err := Open(t.Context(), "-", Options{Stdin: bytes.NewReader(bomb), Spools: []string{dir}, room: 1 << 20})
		if err == nil || !strings.Contains(err.Error(), "--spool-dir") || !strings.Contains(err.Error(), "1048576") {
			t.Errorf("%s: %v", name, err)
		}
		if left := must(os.ReadDir(filepath.Join(dir, "rpush-spool"))); len(left) != 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

// Names and links of an archive lead to its own entries or nowhere.
func TestArchiveCannotBeLeft(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, []byte("{}"), 0o600))
	write := func(entries ...tarEntry) string {
		file := filepath.Join(t.TempDir(), "a.tar")
		check(t, os.WriteFile(file, tarOf(entries...), 0o600))
		return file
	}
	manifest := tarEntry{name: "manifest.json", content: `[{"Config":"` + secret + `","Layers":[]}]`}
	wantError(t, write(manifest), resume.ErrSource, "is missing")
	manifest.content = `[{"Config":"c","Layers":[]}]`
	wantError(t, write(manifest, tarEntry{name: "c", link: secret}), resume.ErrSource, "is missing")
	wantError(t, write(manifest, tarEntry{name: "c", link: "../../../../../../" + secret}), resume.ErrSource, "is missing")
	wantError(t, write(manifest, tarEntry{name: "c", link: "d"}, tarEntry{name: "d", link: "c"}), resume.ErrSource, "is missing")
	wantError(t, write(tarEntry{name: "manifest.json", link: secret}), resume.ErrSource, "manifest.json")
	wantError(t, write(tarEntry{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`},
		tarEntry{name: "index.json", content: `{"manifests":[{"mediaType":"` + string(types.OCIManifestSchema1) + `","digest":"sha256:../../` + secret + `","size":2}]}`}),
		resume.ErrSource, "index.json")
}

// Links of a layout lead to its own files or nowhere: its author may know the
// digest and the size of a blob in another store on this machine.
func TestLayoutCannotBeLeft(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	img := randomImage(t)
	store := newLayout(t, "store")
	check(t, store.AppendImage(img))
	for _, link := range []string{"blobs", "blobs/sha256", "index.json", "oci-layout", "blobs/sha256 within"} {
		p := newLayout(t, "mine")
		check(t, p.AppendImage(img))
		name, within := strings.CutSuffix(link, " within")
		at := filepath.Join(string(p), name)
		to := filepath.Join(string(store), name)
		if within {
			to = "../all"
			check(t, os.Rename(at, filepath.Join(string(p), "all")))
		}
		check(t, os.RemoveAll(at))
		check(t, os.Symlink(to, at))
		if within {
			wantDigest(t, "oci:"+string(p), img)
			continue
		}
		wantError(t, "oci:"+string(p), resume.ErrSource, "escapes")
	}
}

// Layouts of Bazel consist of links into its output base. They are followed into
// directories that the user names, and nowhere else.
func TestLayoutOfLinks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	img := randomImage(t)
	store := newLayout(t, "store")
	check(t, store.AppendImage(img))
	mine := filepath.Join(t.TempDir(), "mine")
	blobs := filepath.Join("blobs", "sha256")
	check(t, os.MkdirAll(filepath.Join(mine, blobs), 0o755))
	names := []string{"index.json", "oci-layout"}
	for _, e := range must(os.ReadDir(filepath.Join(string(store), blobs))) {
		names = append(names, filepath.Join(blobs, e.Name()))
	}
	for _, name := range names {
		check(t, os.Symlink(filepath.Join(string(store), name), filepath.Join(mine, name)))
	}
	wantError(t, "oci:"+mine, resume.ErrSource, "escapes")
	open := func(links ...string) error {
		_, err := openWith(t.Context(), "oci:"+mine, Options{Links: links})
		return err
	}
	check(t, open(string(store)))
	check(t, open(t.TempDir(), filepath.Dir(string(store))))
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(string(store), link))
	check(t, open(link))
	for _, elsewhere := range [][]string{{t.TempDir()}, {filepath.Join(string(store), blobs)}, {mine}} {
		if err := open(elsewhere...); !errors.Is(err, resume.ErrSource) {
			t.Errorf("links to another place than %q: %v", elsewhere, err)
		}
	}
	if err := open(filepath.Join(string(store), "missing")); !errors.Is(err, resume.ErrSource) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// Indexes that name the next one many times over are looked at once each: one
// visit for each way down would be some 10^10 of them.
func TestIndexesThatFanOut(t *testing.T) {
	entries := []string{"manifest.json", `[{"Config":"c","Layers":[]}]`, "c", `{"rootfs":{"diff_ids":[]}}`, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`}
	put := func(mt types.MediaType, doc string) string {
		h, size, err := v1.SHA256(strings.NewReader(doc))
		check(t, err)
		entries = append(entries, blobName(h), doc)
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mt, h, size)
	}
	config := put(types.OCIConfigJSON, "{}")
	d := put(types.OCIManifestSchema1, `{"schemaVersion":2,"config":`+config+`,"layers":[]}`)
	index := func() string { return `{"schemaVersion":2,"manifests":[` + strings.Repeat(d+",", 19) + d + `]}` }
	for range manifest.MaxDepth - 1 {
		d = put(types.OCIImageIndex, index())
	}
	entries = append(entries, "index.json", index())
	file := tarFile(t, entries...)
	for _, spec := range []string{file, "docker-archive:" + file} {
		if _, err := openOne(t.Context(), spec); err != nil {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

// What a header says about sizes is believed only as far as the file goes.
func TestLyingHeaders(t *testing.T) {
	whole := tarOf(tarEntry{name: "a", content: strings.Repeat("x", 5000)}, tarEntry{name: "manifest.json", content: "[]"})
	for _, cut := range []int{100, 512, 513, 600, 5000, 5632, 6000} {
		file := filepath.Join(t.TempDir(), "a.tar")
		check(t, os.WriteFile(file, whole[:cut], 0o600))
		wantError(t, file, resume.ErrSource)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.WriteHeader(&tar.Header{Name: "manifest.json", Size: 1 << 50, Format: tar.FormatGNU}))
	file := filepath.Join(t.TempDir(), "b.tar")
	check(t, os.WriteFile(file, b.Bytes(), 0o600))
	wantError(t, file, resume.ErrSource, "EOF")
}

// A part of an archive is read at any offset, as often as asked for, with a
// file of its own each time.
func TestSections(t *testing.T) {
	content := strings.Repeat("0123456789", 1000)
	file := filepath.Join(t.TempDir(), "a.tar")
	check(t, os.WriteFile(file, tarOf(tarEntry{name: "before", content: "x"}, tarEntry{name: "a", content: content}, tarEntry{name: "after", content: "y"}), 0o600))
	a := must(openArchive(t.Context(), file, Options{}))
	defer a.close()
	e, _ := a.find("./a")
	for _, off := range []int64{0, 1, 4999, 9999, 10000} {
		r := must(a.open(e, off))
		other := must(a.open(e, 0))
		must(io.CopyN(io.Discard, other, 77))
		if got := string(must(io.ReadAll(r))); got != content[off:] {
			t.Errorf("from %d: %d bytes, want %d", off, len(got), len(content)-int(off))
		}
		if p, ok := r.(interface{ File() *os.File }); ok && off < 9999 {
			check(t, r.Close())
			if _, err := p.File().Stat(); err == nil {
				t.Error("the file stays open")
			}
		}
		other.Close()
	}
	if _, err := a.open(e, 10001); err == nil {
		t.Error("an offset behind the end was taken")
	}
}

// One platform of several that fit must be named exactly.
func TestPickOne(t *testing.T) {
	d := func(hex string, p v1.Platform) manifest.Descriptor {
		return manifest.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: hex}, Platform: &p}
	}
	idx := &manifest.Manifest{Manifests: []manifest.Descriptor{
		d("a", v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}),
		d("b", v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}),
		d("c", v1.Platform{OS: "linux", Architecture: "amd64"}),
		d("e", v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"}),
		d("f", v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.1"}),
		{Digest: v1.Hash{Hex: "g"}},
	}}
	for in, want := range map[string]string{
		"linux/arm/v6": "a", "linux/arm/v7": "b", "linux/amd64": "c", "linux/amd64/v2": "e", "windows/amd64": "f",
		"linux/arm": "error: several", "linux/s390x": "error: no image",
	} {
		got, err := one(idx, *must(v1.ParsePlatform(in)))
		if err != nil {
			if word, ok := strings.CutPrefix(want, "error: "); !ok || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want %s", in, err, want)
			}
			continue
		}
		if got.Digest.Hex != want {
			t.Errorf("%s: %s, want %s", in, got.Digest.Hex, want)
		}
	}
}

// An index that loses images keeps all else that it says.
func TestEditKeepsTheRest(t *testing.T) {
	raw := []byte(`{"schemaVersion":2,"x-own":[1,2],"annotations":{"a":"b"},"manifests":[` +
		`{"mediaType":"m","digest":"sha256:` + strings.Repeat("a", 64) + `","size":1,"x":"kept"},` +
		`{"mediaType":"m","digest":"sha256:` + strings.Repeat("b", 64) + `","size":1}]}`)
	s := &pusher.Stored{Content: tarred{}, Descriptor: v1.Descriptor{MediaType: types.OCIImageIndex}}
	out := must(edit(s, raw, map[v1.Hash]bool{{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}: true}))
	got := string(must(out.Manifest(t.Context())))
	for _, w := range []string{`"x-own":[1,2]`, `"annotations":{"a":"b"}`, `"x":"kept"`} {
		if !strings.Contains(got, w) {
			t.Errorf("%s is lost: %s", w, got)
		}
	}
	var idx v1.IndexManifest
	check(t, json.Unmarshal([]byte(got), &idx))
	if len(idx.Manifests) != 1 || out.Descriptor.Size != int64(len(got)) {
		t.Errorf("%d manifests, size %d of %d", len(idx.Manifests), out.Descriptor.Size, len(got))
	}
}
