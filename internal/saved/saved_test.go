// SPDX-License-Identifier: Apache-2.0

package saved

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/recorded"
	"github.com/rpush-go/rpush/resume"
)

type file struct {
	name, body, link string
	kind             byte
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Size: int64(len(f.body)), Linkname: f.link, Typeflag: f.kind, Mode: 0o644}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// walk returns what went to the visitor, as NAME=CONTENT.
func walk(b []byte) (*Archive, []string, error) {
	var seen []string
	a, err := Walk(context.Background(), bytes.NewReader(b), func(_ *Archive, e Entry, r io.Reader) error {
		all, err := io.ReadAll(r)
		seen = append(seen, e.Name+"="+string(all))
		return err
	})
	return a, seen, err
}

func TestWalkHandsOutBlobsAndKeepsDocuments(t *testing.T) {
	json := `{"a":1}`
	d := digest.FromString(json)
	files := []file{
		{name: "./x/layer.tar", body: "layer"},
		{name: "x/json", body: " {}"},
		{name: "x/layer.tar", body: "a second one"},
		{name: "y/layer.tar", link: "../x/layer.tar", kind: tar.TypeSymlink},
		{name: "z/layer.tar", link: "x/layer.tar", kind: tar.TypeLink},
		{name: "empty"},
		{name: BlobName(d), body: json},
		{name: "manifest.json", body: `[{"Config":"x/json","Layers":["./x/layer.tar","y/layer.tar"],"RepoTags":["a:1"]}]`},
	}
	plain := archive(t, files...)
	var gz, zs bytes.Buffer
	gw := gzip.NewWriter(&gz)
	gw.Write(plain)
	gw.Close()
	zw, _ := zstd.NewWriter(&zs)
	zw.Write(plain)
	zw.Close()

	for _, b := range [][]byte{plain, gz.Bytes(), zs.Bytes()} {
		a, seen, err := walk(b)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"x/layer.tar=layer", "empty="}; !slices.Equal(seen, want) {
			t.Errorf("the visitor got %q, want %q", seen, want)
		}
		for _, name := range []string{"x/layer.tar", "./y/layer.tar", "z/layer.tar"} {
			if file, size, ok := a.Resolve(name); file != "x/layer.tar" || size != 5 || !ok {
				t.Errorf("%s leads to %q of %d bytes, %t", name, file, size, ok)
			}
		}
		images, err := a.Docker()
		if err != nil || len(images) != 1 || len(images[0].Layers) != 2 {
			t.Errorf("images %v, %v", images, err)
		}
		if b, err := a.Blob(d); string(b) != json || err != nil {
			t.Errorf("the blob is %q, %v", b, err)
		}
		if m, err := a.Index(); m != nil || err != nil {
			t.Errorf("an index %v, %v", m, err)
		}
	}
}

func TestWalkRefuses(t *testing.T) {
	layer := archive(t, file{name: "x/layer.tar", body: strings.Repeat("layer", 1000)})
	big := strings.Repeat(" ", MaxDocument) + "{}"
	loop := archive(t, file{name: "a", link: "b", kind: tar.TypeSymlink}, file{name: "b", link: "a", kind: tar.TypeSymlink},
		file{name: "out", link: "../../etc/passwd", kind: tar.TypeSymlink}, file{name: "abs", link: "/etc/passwd", kind: tar.TypeSymlink})
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "empty"},
		{"no tar", bytes.Repeat([]byte("no tar "), 1000), "not a tar archive"},
		{"short", layer[:1000], "cut short"},
		{"xz", []byte("\xfd7zXZ\x00\x00\x00"), "xz"},
		{"gzip cut short", []byte("\x1f\x8b\x08\x00"), "cut short"},
		{"large manifest", archive(t, file{name: "manifest.json", body: big}), "more than"},
		{"index", archive(t, file{name: "index.json", body: big}), "more than"},
	} {
		_, _, err := walk(tt.b)
		if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%s: got %v, want a source error about %q", tt.name, err, tt.want)
		}
	}
	a, _, err := walk(loop)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "out", "abs", "none"} {
		if file, _, ok := a.Resolve(name); ok {
			t.Errorf("%s leads to %s", name, file)
		}
	}
}

// A visitor that is told of the end too early would take half a layer for a
// whole one.
func TestWalkPassesOnHowReadingFailed(t *testing.T) {
	b := archive(t, file{name: "x/layer.tar", body: strings.Repeat("layer", 1000)})
	reset := errors.New("reset")
	r := io.MultiReader(bytes.NewReader(b[:2000]), &failing{reset})
	_, err := Walk(context.Background(), r, func(_ *Archive, _ Entry, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if !errors.Is(err, reset) || !errors.Is(err, resume.ErrSource) {
		t.Errorf("got %v", err)
	}
	mine := errors.New("mine")
	_, err = Walk(context.Background(), bytes.NewReader(b), func(*Archive, Entry, io.Reader) error { return mine })
	if err != mine || errors.Is(err, resume.ErrSource) {
		t.Errorf("got %v, want the visitor's error as it is", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	_, err = Walk(ctx, bytes.NewReader(b), func(_ *Archive, _ Entry, r io.Reader) error {
		cancel(mine)
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if err != nil && err != mine { // all of it may have been read before
		t.Errorf("got %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// What Docker 20.10 wrote for an image of two layers.
func TestPositionKnowsALayerByItsDirectory(t *testing.T) {
	const top = "862950bae99607362dca60a959b2cd3a4555591af0ec7cf648846f801e2a7dae"
	const base = "6dfc8c21eecc64d2a327962e39ce4ed0f7f3061e242050b3d39ebaecf2ca4a67"
	chain := ChainIDs([]digest.Digest{
		"sha256:ee0c6f1dbe70deb543c98c547e7266efe110e9b0f8f19b02c14d6307b66ff3c6",
		"sha256:40a8fcf341440af5b00e212a75f4018fc60d2e17cc0ba4fddcef45b3c3ad1c9d",
	})
	config := `{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,` +
		`"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null}`
	made := func(parent string) string {
		return fmt.Sprintf(`{"id":"x",%s"created":"1970-01-01T00:00:00Z","container_config":%s,"os":"linux"}`, parent, config)
	}
	b := archive(t,
		file{name: base + "/json", body: made("")}, file{name: base + "/layer.tar", body: "1"},
		file{name: top + "/json", body: made(`"parent":"` + base + `",`)}, file{name: top + "/layer.tar", body: "2"},
		file{name: "other/layer.tar", body: "3"},
	)
	got := map[string]int{}
	if _, err := Walk(context.Background(), bytes.NewReader(b), func(a *Archive, e Entry, _ io.Reader) error {
		got[e.Name] = a.Position(e, chain)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The JSON of the top layer is not the one its ID was made of.
	want := map[string]int{base + "/layer.tar": 0, top + "/layer.tar": -1, "other/layer.tar": -1}
	for name, at := range want {
		if got[name] != at {
			t.Errorf("%s is layer %d, want %d", name, got[name], at)
		}
	}
}

// The bounds hold whatever the input: nothing panics, and what is kept stays
// small.
func FuzzWalk(f *testing.F) {
	f.Add(archive(f, file{name: "x/layer.tar", body: "layer"}, file{name: "y", link: "x", kind: tar.TypeSymlink},
		file{name: "manifest.json", body: `[{"Config":"c","Layers":["x/layer.tar"]}]`}))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	for _, a := range recorded.All(f) {
		f.Add(a.Tar)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Walk(context.Background(), bytes.NewReader(b), func(a *Archive, e Entry, r io.Reader) error {
			n, err := io.Copy(io.Discard, io.LimitReader(r, 64<<20))
			if err == nil && n < min(e.Size, 64<<20) {
				t.Errorf("%s ended after %d of %d bytes", e.Name, n, e.Size)
			}
			a.Position(e, []digest.Digest{digest.FromString("x")})
			return err
		})
		if err != nil && !errors.Is(err, resume.ErrSource) {
			t.Errorf("got %v, not a source error", err)
		}
		if a.kept > maxDocuments || a.names > maxNames+2*len(b) {
			t.Errorf("%d bytes of documents and %d of names are kept", a.kept, a.names)
		}
		for name := range a.links {
			a.Resolve(name)
		}
		_, _ = a.Docker()
		_, _ = a.Index()
	})
}

// A layer may begin with a file whose name looks like the beginning of JSON.
func TestLayerThatLooksLikeJSON(t *testing.T) {
	for _, name := range []string{"[id].js", "{a}"} {
		layer := string(archive(t, file{name: name, body: "text"}))
		a, seen, err := walk(archive(t, file{name: "x/layer.tar", body: layer}))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"x/layer.tar=" + layer}; !slices.Equal(seen, want) {
			t.Errorf("a layer that begins with the file %q was not handed out", name)
		}
		if _, ok := a.Document("x/layer.tar"); ok {
			t.Errorf("a layer that begins with the file %q is a document", name)
		}
	}
}
