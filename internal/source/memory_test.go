// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/resume"
)

// mostJSON is what the documents of one source may make the reader allocate,
// all in all.
const mostJSON = 64 << 20

// list is a document of almost 4 MiB: a list of equal members.
func list(head, member, tail string) string {
	n := (maxDocument - 1 - len(head) - len(tail) - len(member)) / (len(member) + 1)
	return head + strings.Repeat(member+",", n) + member + tail
}

// opens opens a source, and says what it allocated.
func opens(t *testing.T, spec string, o Options) (uint64, error) {
	t.Helper()
	before := allocated()
	images, err := Open(t.Context(), spec, o)
	if err == nil {
		_, err = images.Image(t.Context())
		images.Close()
	}
	return allocated() - before, err
}

// A source whose documents are lists of empty entries is refused before they
// are decoded.
func TestDocumentsOfEmptyEntries(t *testing.T) {
	const marker = `{"imageLayoutVersion":"1.0.0"}`
	for _, member := range []string{"{}", `{"annotations":{"":""}}`, `{"Layers":[""]}`} {
		image := list(`{"schemaVersion":2,"layers":[`, member, `]}`)
		for name, files := range map[string][]string{
			"index.json":    {"oci-layout", marker, "index.json", list(`{"manifests":[`, member, `]}`)},
			"manifest.json": {"manifest.json", list(`[`, member, `]`)},
			"a manifest": {"oci-layout", marker, "index.json", `{"manifests":[` + descriptorOf(t, types.OCIManifestSchema1, image) + `]}`,
				blobOf(t, image), image},
			"a config": {"manifest.json", `[{"Config":"c","Layers":[]}]`, "c", list(`{"history":[`, member, `]}`)},
		} {
			used, err := opens(t, tarFile(t, files...), Options{Referrers: true, DigestTags: true})
			if !errors.Is(err, resume.ErrSource) || used > mostJSON {
				t.Errorf("%s of %s: %.200s, %d bytes", name, member, fmt.Sprint(err), used)
			}
		}
	}
}

func descriptorOf(t *testing.T, mt types.MediaType, doc string) string {
	t.Helper()
	h, size, err := v1.SHA256(strings.NewReader(doc))
	check(t, err)
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mt, h, size)
}

func blobOf(t *testing.T, doc string) string {
	t.Helper()
	h, _, err := v1.SHA256(strings.NewReader(doc))
	check(t, err)
	return blobName(h)
}

// An index that names one large manifest many times, under other sizes or other
// digests, does not have it read as many times.
func TestOneManifestUnderManyNames(t *testing.T) {
	const many = 100
	large := fmt.Sprintf(`{"schemaVersion":2,"layers":[],"annotations":{"a":"%s"}}`, strings.Repeat("x", 4_000_000))
	d := descriptorOf(t, types.OCIManifestSchema1, large)
	var same, sizes, linked []string
	links := []tarEntry{}
	for i := range many {
		same = append(same, d)
		sizes = append(sizes, strings.Replace(d, `"size":`, fmt.Sprintf(`"size":%d`, i+1), 1))
		name := fmt.Sprintf("%064x", i)
		linked = append(linked, fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":%d}`, types.OCIManifestSchema1, name, len(large)))
		links = append(links, tarEntry{name: "blobs/sha256/" + name, link: "../../" + blobOf(t, large)})
	}
	for name, ds := range map[string][]string{"same": same, "sizes": sizes, "linked": linked} {
		entries := append([]tarEntry{
			{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`},
			{name: "index.json", content: `{"manifests":[` + strings.Join(ds, ",") + `]}`},
			{name: "manifest.json", content: `[{"Config":"c","Layers":[]}]`},
			{name: "c", content: `{"rootfs":{"diff_ids":[]}}`},
			{name: blobOf(t, large), content: large},
		}, links...)
		file := filepath.Join(t.TempDir(), "a.tar")
		check(t, os.WriteFile(file, tarOf(entries...), 0o600))
		for _, spec := range []string{file, "docker-archive:" + file, "oci-archive:" + file} {
			used, err := opens(t, spec, Options{Referrers: true, DigestTags: true})
			if used > mostJSON || err != nil && !errors.Is(err, resume.ErrSource) {
				t.Errorf("%s, %s: %v, %d bytes", name, strings.TrimSuffix(spec, file), err, used)
			}
		}
	}
}

// A layer that an archive says is elsewhere, and that an image has many times, is
// not described as many times in memory.
func TestForeignLayerManyTimes(t *testing.T) {
	const many = 5000
	d := "sha256:" + strings.Repeat("a", 64)
	config := `{"rootfs":{"diff_ids":[` + strings.Repeat(`"`+d+`",`, many-1) + `"` + d + `"]}}`
	for field, value := range map[string]string{
		"annotations": `{"a":"` + strings.Repeat("x", 100_000) + `"}`,
		"data":        `"` + strings.Repeat("eHh4", 25_000) + `"`,
		"urls":        `["https://example.com/` + strings.Repeat("x", 100_000) + `"]`,
	} {
		manifest := fmt.Sprintf(`[{"Config":"c","Layers":[%s""],"LayerSources":{%q:{"mediaType":%q,"size":5,"digest":%q,%q:%s}}}]`,
			strings.Repeat(`"",`, many-1), d, types.DockerForeignLayer, d, field, value)
		used, err := opens(t, tarFile(t, "manifest.json", manifest, "c", config), Options{})
		if used > mostJSON || (err == nil) != (field != "urls") || err != nil && !errors.Is(err, resume.ErrSource) {
			t.Errorf("%s: %v, %d bytes", field, err, used)
		}
	}
}

// One digest has one size.
func TestOneDigestWithTwoSizes(t *testing.T) {
	child := `{"schemaVersion":2,"layers":[]}`
	d := descriptorOf(t, types.OCIManifestSchema1, child)
	for _, other := range []string{
		strings.Replace(d, `"size":`, `"size":1`, 1),
		strings.NewReplacer(string(types.OCIManifestSchema1), string(types.OCILayer), `"size":`, `"size":2`).Replace(d),
	} {
		index := `{"schemaVersion":2,"manifests":[` + d + "," + other + `]}`
		file := tarFile(t, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`,
			"index.json", `{"manifests":[`+descriptorOf(t, types.OCIImageIndex, index)+`]}`,
			blobOf(t, index), index, blobOf(t, child), child)
		wantError(t, file, resume.ErrSource, fmt.Sprintf("is said to have %d bytes and", len(child)))
	}
}

// All that looks for manifests in an archive ends with the context.
func TestSearchEndsWithTheContext(t *testing.T) {
	var ds []string
	files := []string{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`, "manifest.json", `[{"Config":"c","Layers":[]}]`}
	for i := range 20 {
		doc := fmt.Sprintf(`{"schemaVersion":2,"annotations":{"i":"%d"}}`, i)
		ds = append(ds, descriptorOf(t, types.OCIManifestSchema1, doc))
		files = append(files, blobOf(t, doc), doc)
	}
	files = append(files, "index.json", `{"manifests":[`+strings.Join(ds, ",")+`]}`)
	a := must(openArchive(t.Context(), tarFile(t, files...), Options{}))
	defer a.close()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	n := 0
	_, err := a.search(ctx, must(readTop(tarred{a})).Manifests, func(v1.Descriptor, *manifest.Manifest) bool {
		if n++; n == 10 {
			cancel(enough)
		}
		return false
	})
	if err != enough || n != 10 {
		t.Errorf("%v after %d manifests, want the cause after 10", err, n)
	}
}

// A link that takes the place of a blob after it was looked at is not followed.
func TestBlobReplacedByALink(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	img := randomImage(t)
	p := newLayout(t, "swapped")
	root := must(os.OpenRoot(string(p)))
	defer root.Close()
	at := dir{name: string(p), root: root}
	check(t, p.AppendImage(img))
	m := must(img.Manifest())
	file := blob(p, m.Layers[0].Digest)
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, make([]byte, m.Layers[0].Size), 0o600))

	fi := must(at.regular(m.Layers[0]))
	f := must(at.openSame(blobName(m.Layers[0].Digest), fi))
	f.Close()
	check(t, os.Remove(file))
	check(t, os.Symlink(secret, file))
	if f, err := at.openSame(blobName(m.Layers[0].Digest), fi); err == nil {
		f.Close()
		t.Error("the link was followed")
	}
	if _, err := at.Open(t.Context(), m.Layers[0], 0); !errors.Is(err, resume.ErrSource) {
		t.Errorf("a link is opened: %v", err)
	}
}
