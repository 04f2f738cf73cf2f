// SPDX-License-Identifier: Apache-2.0

package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	return must(random.Image(1000, 2))
}

// newLayout writes an empty layout to dir below a new directory.
func newLayout(t *testing.T, dir string) layout.Path {
	t.Helper()
	return must(layout.Write(filepath.Join(t.TempDir(), dir), empty.Index))
}

func named(key, value string) layout.Option {
	return layout.WithAnnotations(map[string]string{key: value})
}

func blob(p layout.Path, h v1.Hash) string {
	return filepath.Join(string(p), "blobs", h.Algorithm, h.Hex)
}

// openOne opens the image that spec names, for as long as the test runs.
func openOne(ctx context.Context, spec string) (Source, error) {
	return openWith(ctx, spec, Options{})
}

func openWith(ctx context.Context, spec string, o Options) (Source, error) {
	i, err := Open(ctx, spec, o)
	if err != nil {
		return Source{}, err
	}
	return i.Image(ctx)
}

// configOf is the digest of the image's config.
func configOf(t *testing.T, s Source) v1.Hash {
	t.Helper()
	m := must(v1.ParseManifest(bytes.NewReader(must(s.Image.RawManifest()))))
	return m.Config.Digest
}

// wantDigest opens spec and compares what it leads to.
func wantDigest(t *testing.T, spec string, want interface{ Digest() (v1.Hash, error) }) {
	t.Helper()
	src, err := openOne(t.Context(), spec)
	if err != nil {
		t.Fatalf("Open(%q): %v", spec, err)
	}
	got, ok := src.Image.(interface{ Digest() (v1.Hash, error) })
	if !ok {
		t.Fatalf("Open(%q).Image is a %T", spec, src.Image)
	}
	if g, w := must(got.Digest()), must(want.Digest()); g != w {
		t.Errorf("Open(%q): digest %s, want %s", spec, g, w)
	}
}

// wantError opens spec and looks for all of words in the error.
func wantError(t *testing.T, spec string, kind error, words ...string) {
	t.Helper()
	_, err := openOne(t.Context(), spec)
	if !errors.Is(err, kind) {
		t.Fatalf("Open(%q): %v, want %q", spec, err, kind)
	}
	if errors.Is(err, ErrSpec) && errors.Is(err, resume.ErrSource) {
		t.Errorf("Open(%q): %v is of two kinds", spec, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("Open(%q): %v; want %q in it", spec, err, w)
		}
	}
}

func TestNoSource(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, tt := range []struct {
		spec string
		kind error
		word string
	}{
		{"", ErrSpec, "supported: docker://REF, oci:DIR"},
		{"image", ErrSpec, "supported"},
		{"foo:bar", ErrSpec, "supported"},
		{"oci:", ErrSpec, "no path"},
		{"docker-archive:", ErrSpec, "no path"},
		{"oci:dir:", ErrSpec, "empty"},
		{"oci:@sha256:" + strings.Repeat("0", 64), ErrSpec, "no path"},
		{"oci:dir@sha256:123", ErrSpec, "malformed digest"},
		{"docker-archive:a.tar:UPPER", ErrSpec, "UPPER"},
		{"docker-archive:a.tar@sha256:" + strings.Repeat("0", 64), ErrSpec, "by digest"},
		{"archive:a.tar", ErrSpec, "supported"},
		{"-", resume.ErrSource, "no standard input"},
		{"docker-daemon:alpine", resume.ErrSource, "docker-daemon: is not supported"},
		{"docker://UPPER", ErrSpec, "UPPER"},
		{"oci-archive:", ErrSpec, "no path"},
		{"oci-archive:absent.tar", resume.ErrSource, "absent.tar"},
		{"dir:d", resume.ErrSource, "not supported"},
		{"containers-storage:alpine", resume.ErrSource, "podman save --format oci-archive alpine | rpush - REF"},
		{"oci:absent", resume.ErrSource, "absent"},
		{"oci:absent:tag", resume.ErrSource, "absent"},
		{"docker-archive:absent.tar", resume.ErrSource, "absent.tar"},
		{"./absent", resume.ErrSource, "absent"},
		{"../absent:tag", resume.ErrSource, "absent"},
		{"/absent", resume.ErrSource, "absent"},
	} {
		wantError(t, tt.spec, tt.kind, tt.word)
	}
}

func TestSplit(t *testing.T) {
	t.Chdir(t.TempDir())
	check(t, os.Mkdir("dir", 0o700))
	digest := "sha256:" + strings.Repeat("ab", 32)
	tests := []struct{ in, path, tag, digest string }{
		{"dir", "dir", "", ""},
		{"dir:1.0", "dir", "1.0", ""},
		{"dir:reg.example:5000/app:1.0", "dir", "reg.example:5000/app:1.0", ""},
		{"dir@" + digest, "dir", "", digest},
		{"absent", "absent", "", ""},
		{"absent:1.0", "absent", "1.0", ""},
		{"absent:a:b", "absent:a", "b", ""},
	}
	if runtime.GOOS == "windows" {
		tests = append(tests, []struct{ in, path, tag, digest string }{
			{`C:\absent`, `C:\absent`, "", ""},
			{`C:\absent:1.0`, `C:\absent`, "1.0", ""},
		}...)
	} else {
		check(t, os.Mkdir("dir:1.0", 0o700)) // a path that exists wins
		check(t, os.Mkdir("a:b", 0o700))
		tests[1] = struct{ in, path, tag, digest string }{"dir:1.0", "dir:1.0", "", ""}
		tests = append(tests, struct{ in, path, tag, digest string }{"a:b:c:d", "a:b", "c:d", ""})
	}
	for _, tt := range tests {
		path, sel, err := split(tt.in)
		check(t, err)
		if digest := sel.digest.String(); path != tt.path || sel.tag != tt.tag || (tt.digest != "" && digest != tt.digest) {
			t.Errorf("split(%q) = %q, %q, %q; want %q, %q, %q", tt.in, path, sel.tag, digest, tt.path, tt.tag, tt.digest)
		}
	}
}

func TestOCIOne(t *testing.T) {
	img := randomImage(t)
	p := newLayout(t, "image")
	check(t, p.AppendImage(img, named(refName, "1.0")))

	for _, spec := range []string{
		"oci:%s", "oci:%s:1.0", "%s", "%s:1.0",
		"oci:%s@" + must(img.Digest()).String(),
	} {
		wantDigest(t, fmt.Sprintf(spec, p), img)
	}
	wantError(t, fmt.Sprintf("oci:%s:2.0", p), resume.ErrSource, `no image "2.0"`, ":1.0")
	wantError(t, fmt.Sprintf("oci:%s@sha256:%064d", p, 0), resume.ErrSource, ":1.0", must(img.Digest()).String())

	idx := must(random.Index(1000, 2, 2))
	p = newLayout(t, "index")
	check(t, p.AppendIndex(mutate.AppendManifests(idx, mutate.IndexAddendum{Add: must(random.Index(100, 1, 2))})))
	src := must(openOne(t.Context(), "oci:"+string(p)))
	if s, ok := src.Image.(*pusher.Stored); !ok || !s.Descriptor.MediaType.IsIndex() {
		t.Errorf("Image is a %T, want an index", src.Image)
	}
	if want := "oci:" + string(p); src.Name != want {
		t.Errorf("Name: %q, want %q", src.Name, want)
	}
}

func TestOCISeveral(t *testing.T) {
	a, b, c := randomImage(t), randomImage(t), randomImage(t)
	p := newLayout(t, "several")
	check(t, p.AppendImage(a, named(refName, "a")))
	check(t, p.AppendImage(a, named(refName, "also")))
	check(t, p.AppendImage(b, named(containerdName, "reg.example:5000/team/app:b")))
	check(t, p.AppendImage(c, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "arm64"})))

	spec := "oci:" + string(p)
	wantDigest(t, spec+":a", a)
	wantDigest(t, spec+":also", a)
	wantDigest(t, spec+":b", b)
	wantDigest(t, spec+":reg.example:5000/team/app:b", b)
	wantDigest(t, spec+"@"+must(c.Digest()).String(), c)
	list := []string{":a (", ":b (", must(c.Digest()).String() + " (linux/arm64)"}
	wantError(t, spec, resume.ErrSource, append(list, "choose one")...)
	wantError(t, spec+":5000", resume.ErrSource, append(list, `no image "5000"`)...)

	check(t, p.AppendImage(b, named(refName, "a")))
	wantError(t, spec+":a", resume.ErrSource, "several", must(a.Digest()).String(), must(b.Digest()).String())
}

// Two names for one image are no reason to ask which.
func TestOCISameImageTwice(t *testing.T) {
	img := randomImage(t)
	p := newLayout(t, "twice")
	check(t, p.AppendImage(img, named(refName, "1.0")))
	check(t, p.AppendImage(img, named(refName, "latest")))
	wantDigest(t, "oci:"+string(p), img)
}

func TestOCIDamaged(t *testing.T) {
	img := randomImage(t)
	m := must(img.Manifest())
	digest, layer := must(img.Digest()), m.Layers[1]
	for _, tt := range []struct {
		name   string
		damage func(p layout.Path) error
		words  []string
	}{
		{"missing layer", func(p layout.Path) error { return os.Remove(blob(p, layer.Digest)) },
			[]string{layer.Digest.String(), layer.Digest.Hex}},
		{"short layer", func(p layout.Path) error { return os.Truncate(blob(p, layer.Digest), 10) },
			[]string{layer.Digest.String(), "10 bytes", fmt.Sprintf("want %d", layer.Size)}},
		{"missing config", func(p layout.Path) error { return os.Remove(blob(p, m.Config.Digest)) },
			[]string{m.Config.Digest.String()}},
		{"missing manifest", func(p layout.Path) error { return os.Remove(blob(p, digest)) },
			[]string{digest.String()}},
		{"other manifest of the same size", func(p layout.Path) error {
			b := must(os.ReadFile(blob(p, digest)))
			b[len(b)-1] = ' '
			return os.WriteFile(blob(p, digest), b, 0o600)
		}, []string{digest.String(), "is damaged: it is sha256:"}},
		{"a directory for a blob", func(p layout.Path) error {
			check(t, os.Remove(blob(p, layer.Digest)))
			return os.Mkdir(blob(p, layer.Digest), 0o700)
		}, []string{"not a regular file"}},
		{"no marker", func(p layout.Path) error { return os.Remove(filepath.Join(string(p), layoutFile)) },
			[]string{"not an OCI image layout"}},
		{"unknown version", func(p layout.Path) error {
			return os.WriteFile(filepath.Join(string(p), layoutFile), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o600)
		}, []string{`"2.0.0"`}},
		{"no index.json", func(p layout.Path) error { return os.Remove(filepath.Join(string(p), "index.json")) },
			[]string{"index.json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newLayout(t, "damaged")
			check(t, p.AppendImage(img))
			check(t, tt.damage(p))
			wantError(t, "oci:"+string(p), resume.ErrSource, tt.words...)
			wantError(t, string(p), resume.ErrSource, tt.words...)
		})
	}
}

// A child deep in an index is checked like the rest.
func TestOCIDamagedChild(t *testing.T) {
	idx := must(random.Index(1000, 1, 3))
	p := newLayout(t, "index")
	check(t, p.AppendIndex(idx))
	child := must(idx.Image(must(idx.IndexManifest()).Manifests[2].Digest))
	layer := must(child.Manifest()).Layers[0].Digest
	check(t, os.Remove(blob(p, layer)))
	wantError(t, "oci:"+string(p), resume.ErrSource, layer.String())
}

// handmade writes a layout whose index.json has one descriptor, of doc.
func handmade(t *testing.T, mediaType types.MediaType, doc string) layout.Path {
	t.Helper()
	p := newLayout(t, "handmade")
	h, size, err := v1.SHA256(strings.NewReader(doc))
	check(t, err)
	check(t, os.MkdirAll(filepath.Dir(blob(p, h)), 0o700))
	check(t, os.WriteFile(blob(p, h), []byte(doc), 0o600))
	check(t, p.AppendDescriptor(v1.Descriptor{MediaType: mediaType, Digest: h, Size: size}))
	return p
}

func TestOCIForeignInput(t *testing.T) {
	const manifest = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s}}`
	for _, tt := range []struct {
		name, doc string
		mediaType types.MediaType
		word      string
	}{
		{"path in a digest", fmt.Sprintf(manifest, `"digest":"sha256:../../../../etc/passwd","size":1`), types.OCIManifestSchema1, "non-hex"},
		{"path in an algorithm", fmt.Sprintf(manifest, `"digest":"../..:00","size":1`), types.OCIManifestSchema1, "unsupported hash"},
		{"short digest", fmt.Sprintf(manifest, `"digest":"sha256:00","size":1`), types.OCIManifestSchema1, "wrong number"},
		{"no digest", fmt.Sprintf(manifest, `"size":1`), types.OCIManifestSchema1, "no digest"},
		{"negative size", fmt.Sprintf(manifest, fmt.Sprintf(`"digest":"sha256:%064d","size":-1`, 0)), types.OCIManifestSchema1, "size -1"},
		{"no JSON", "{", types.OCIManifestSchema1, "JSON"},
		{"another type inside", `{"mediaType":"` + string(types.OCIImageIndex) + `"}`, types.OCIManifestSchema1, "says it is"},
		{"no image", "{}", "text/plain", "neither an image nor an index"},
		{"too large", strings.Repeat(" ", maxDocument+1), types.OCIManifestSchema1, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, "oci:"+string(handmade(t, tt.mediaType, tt.doc)), resume.ErrSource, tt.word)
		})
	}

	t.Run("nested too deep", func(t *testing.T) {
		idx := must(random.Index(10, 1, 1))
		for range 16 {
			idx = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: idx})
		}
		p := newLayout(t, "deep")
		check(t, p.AppendIndex(idx))
		wantError(t, "oci:"+string(p), resume.ErrSource, "nested deeper")
	})

	t.Run("empty", func(t *testing.T) {
		wantError(t, "oci:"+string(newLayout(t, "empty")), resume.ErrSource, "no image")
	})
}

func TestOCIForeignLayerMayBeMissing(t *testing.T) {
	layer := must(random.Layer(100, types.OCIRestrictedLayer))
	img := must(mutate.AppendLayers(randomImage(t), layer))
	p := newLayout(t, "foreign")
	check(t, p.AppendImage(img))
	file := blob(p, must(layer.Digest()))
	check(t, os.Truncate(file, 1))
	wantError(t, "oci:"+string(p), resume.ErrSource, "1 bytes")
	check(t, os.Remove(file))
	wantDigest(t, "oci:"+string(p), img)
}

func TestSymlinkedBlobIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	img := randomImage(t)
	p := newLayout(t, "link")
	check(t, p.AppendImage(img))
	file := blob(p, must(img.Manifest()).Layers[0].Digest)
	check(t, os.Rename(file, file+".real"))
	check(t, os.Symlink(file+".real", file))
	wantError(t, "oci:"+string(p), resume.ErrSource, "not a regular file")
}

func TestCancelled(t *testing.T) {
	p := newLayout(t, "image")
	check(t, p.AppendImage(randomImage(t)))
	archive := dockerSaved(t, map[string]v1.Image{"app:1": randomImage(t)})
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	for _, spec := range []string{"oci:" + string(p), "docker-archive:" + archive} {
		if _, err := openOne(ctx, spec); !errors.Is(err, stop) || errors.Is(err, resume.ErrSource) {
			t.Errorf("Open(%q): %v, want %v", spec, err, stop)
		}
	}
}

// dockerSaved writes images as docker save does.
func dockerSaved(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	byTag := map[name.Tag]v1.Image{}
	for tag, img := range images {
		byTag[must(name.NewTag(tag))] = img
	}
	file := filepath.Join(t.TempDir(), "saved.tar")
	check(t, tarball.MultiWriteToFile(file, byTag))
	return file
}

func TestDockerArchive(t *testing.T) {
	a, b := randomImage(t), randomImage(t)
	one := dockerSaved(t, map[string]v1.Image{"app:1": a})
	for _, spec := range []string{"docker-archive:%s", "docker-archive:%s:app:1", "docker-archive:%s:docker.io/library/app:1", "%s", "%s:app:1"} {
		src, err := openOne(t.Context(), fmt.Sprintf(spec, one))
		check(t, err)
		got, want := configOf(t, src), must(a.ConfigName())
		if got != want {
			t.Errorf("config %s, want %s", got, want)
		}
	}

	two := dockerSaved(t, map[string]v1.Image{"app:1": a, "reg.example:5000/other:2": b})
	src := must(openOne(t.Context(), "docker-archive:"+two+":reg.example:5000/other:2"))
	if got, want := configOf(t, src), must(b.ConfigName()); got != want {
		t.Errorf("config %s, want %s", got, want)
	}
	wantError(t, "docker-archive:"+two, resume.ErrSource, "choose one", "app:1", "reg.example:5000/other:2")
	wantError(t, "docker-archive:"+two+":app:3", resume.ErrSource, `no image "app:3"`, "app:1")
}

// plainFile writes a file that is no archive.
func plainFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plain")
	check(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

// tarFile writes name, content pairs.
func tarFile(t *testing.T, files ...string) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		check(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))}))
		must(w.Write([]byte(files[i+1])))
	}
	check(t, w.Close())
	file := filepath.Join(t.TempDir(), "made.tar")
	check(t, os.WriteFile(file, buf.Bytes(), 0o600))
	return file
}

// What a pipe gives if the command before it fails is said once, and plainly.
func TestBrokenPipes(t *testing.T) {
	whole := must(os.ReadFile(tarFile(t, "manifest.json", "[]", "a", strings.Repeat("x", 10_000))))
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	must(w.Write(whole))
	check(t, w.Close())
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", "bad source: standard input is empty: the command that was to write it may have failed"},
		{"a word", "hello", "bad source: standard input is cut short: unexpected EOF"},
		{"half of gzip", gz.String()[:gz.Len()/2], "bad source: standard input is cut short: unexpected EOF"},
		{"xz", "\xfd7zXZ\x00", "standard input: bad source: it is compressed with xz, which is not supported: decompress it first"},
	} {
		_, err := Open(t.Context(), "-", Options{Stdin: strings.NewReader(tt.in), Spools: []string{t.TempDir()}})
		if fmt.Sprint(err) != tt.want || !errors.Is(err, resume.ErrSource) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

// A directory that cannot be used, such as one in a home that is read-only, is
// passed over.
func TestSpools(t *testing.T) {
	file, dir := plainFile(t, "in the way"), t.TempDir()
	for _, tt := range []struct {
		spools []string
		word   string
	}{
		{[]string{filepath.Join(file, "a"), dir}, "manifest.json"}, // it was read
		{[]string{filepath.Join(file, "a"), filepath.Join(file, "b")}, "has to be copied to be read: mkdir " + file},
	} {
		in := bytes.NewReader(must(os.ReadFile(tarFile(t, "a", "b"))))
		_, err := Open(t.Context(), "-", Options{Stdin: in, Spools: tt.spools})
		if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), tt.word) {
			t.Errorf("%q: got %v, want %q", tt.spools, err, tt.word)
		}
	}
}

func TestDockerArchiveDamaged(t *testing.T) {
	diffID := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	config := string(must(json.Marshal(v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID}}})))
	const manifest = `[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"]}]`

	plain := filepath.Join(t.TempDir(), "plain")
	check(t, os.WriteFile(plain, bytes.Repeat([]byte("no tar "), 1000), 0o600))

	whole := must(os.ReadFile(tarFile(t, "manifest.json", manifest, "c.json", config, "l.tar", strings.Repeat("x", 10_000))))
	short := filepath.Join(t.TempDir(), "short.tar")
	check(t, os.WriteFile(short, whole[:len(whole)-5000], 0o600))

	zipped := filepath.Join(t.TempDir(), "a.tar.gz")
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	must(gz.Write(whole[:len(whole)-5000]))
	check(t, gz.Close())
	check(t, os.WriteFile(zipped, buf.Bytes(), 0o600))

	for _, tt := range []struct{ name, file, word string }{
		{"no tar", plain, "not a tar archive"},
		{"cut short", short, "unexpected EOF"},
		{"cut short, compressed", zipped, "unexpected EOF"},
		{"compressed with xz", plainFile(t, "\xfd7zXZ\x00 and so on"), "compressed with xz"},
		{"empty", plainFile(t, ""), "empty"},
		{"no manifest.json", tarFile(t, "a", "b"), "manifest.json"},
		{"malformed manifest.json", tarFile(t, "manifest.json", "{"), "manifest.json"},
		{"no config", tarFile(t, "manifest.json", manifest, "l.tar", "x"), `"c.json" is missing`},
		{"no layer", tarFile(t, "manifest.json", manifest, "c.json", config), "l.tar"},
		{"a damaged layer", tarFile(t, "manifest.json", manifest, "c.json", config, "l.tar", buf.String()), "it is damaged"},
		{"fewer layers than the config", tarFile(t, "manifest.json", `[{"Config":"c.json"}]`, "c.json", config), "names 1"},
		{"too large", tarFile(t, "manifest.json", strings.Repeat(" ", maxDocument+1)), "more than"},
		{"config too large", tarFile(t, "manifest.json", manifest, "l.tar", "x", "c.json", strings.Repeat(" ", maxDocument+1)), "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, "docker-archive:"+tt.file, resume.ErrSource, tt.word)
			wantError(t, tt.file, resume.ErrSource, tt.word)
		})
	}
	wantError(t, "docker-archive:"+t.TempDir(), resume.ErrSource, "regular file")
}
