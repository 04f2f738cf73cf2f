// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

func open(t *testing.T, path string, max int64) *Dir {
	t.Helper()
	d, err := Open(path, max)
	if err != nil {
		require.Missing(t, "no place for a spool: %v", err)
	}
	return d
}

func put(t *testing.T, d *Dir, b []byte) *Blob {
	t.Helper()
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	blob, err := w.Keep(digest.FromBytes(b))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// files counts the files of the spool in dir.
func files(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(dir, owndir.Spool))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestBlobWaitsForALaterProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	in := bytes.Repeat([]byte("layer"), 1000)
	d := open(t, dir, 0)
	b := put(t, d, in)
	r, err := b.Open(context.Background(), 7)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(r); !bytes.Equal(got, in[7:]) {
		t.Errorf("from offset 7 there are %d bytes, want %d", len(got), len(in)-7)
	}
	r.Close()
	w, err := d.Create(context.Background()) // half written at the kill
	if err != nil {
		t.Fatal(err)
	}
	w.f.Close()
	b.Keep()

	d = open(t, dir, 0)
	if n := files(t, dir); n != 1 {
		t.Errorf("%d files are left, want the whole blob alone", n)
	}
	if _, ok := d.Get(context.Background(), digest.FromString("other"), 5); ok {
		t.Error("a blob that was never there was found")
	}
	b, ok := d.Get(context.Background(), digest.FromBytes(in), int64(len(in)))
	if !ok {
		t.Fatal("the blob is gone")
	}
	b.Delivered()
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left after the delivery", n)
	}
}

func TestDamagedBlobIsNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	d := open(t, dir, 0)
	in := bytes.Repeat([]byte("layer"), 1000)
	for _, damage := range []func(string) error{
		func(p string) error { return os.Truncate(p, 100) },
		func(p string) error { return os.WriteFile(p, make([]byte, len(in)), 0o600) },
	} {
		b := put(t, d, in)
		b.Keep()
		if err := damage(b.path); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.Get(context.Background(), b.Digest, b.Size); ok {
			t.Error("a damaged blob was found")
		}
		if n := files(t, dir); n != 0 {
			t.Errorf("%d files are left", n)
		}
	}
}

// A file that is planted in the spool, and named for a layer by a planted cache,
// is no blob of the layer.
func TestPlantedBlobIsNone(t *testing.T) {
	gz := func(parts ...string) []byte {
		var b bytes.Buffer
		for _, p := range parts {
			z := gzip.NewWriter(&b)
			if _, err := z.Write([]byte(p)); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	dir := t.TempDir()
	d := open(t, dir, 0)
	layer := digest.FromString("layer")
	for _, tt := range []struct {
		name string
		blob []byte
		want bool
	}{
		{"compressed", gz("layer"), true},
		{"in two members", gz("lay", "er"), true},
		{"plain", []byte("layer"), true},
		{"nothing", nil, false},
		{"another layer", gz("other"), false},
		{"another plain layer", []byte("other"), false},
		{"a longer layer", gz("layer", "more"), false},
		{"cut short", gz("layer")[:20], false},
		{"bytes that follow", append(gz("layer"), "more"...), false},
		{"what cannot be decompressed", []byte("\xfd7zXZ\x00layer"), false},
	} {
		b := put(t, d, tt.blob)
		b.Keep()
		got, ok := d.GetLayer(t.Context(), layer, b.Digest, b.Size)
		if ok != tt.want {
			t.Errorf("%s: given out: %t, want %t", tt.name, ok, tt.want)
		}
		if ok {
			got.Delivered()
		}
		if n := files(t, dir); n != 0 {
			t.Errorf("%s: %d files are left", tt.name, n)
		}
	}
	b := put(t, d, nil)
	b.Keep()
	if _, ok := d.GetLayer(t.Context(), "", b.Digest, b.Size); ok {
		t.Error("a blob is given out as a layer without a diffID")
	}
}

// Two processes deliver one blob; that of the first must not be taken from
// under the second.
func TestBlobInUseStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	one := open(t, dir, 0)
	in := []byte("layer")
	a := put(t, one, in)
	two := open(t, dir, 0)
	b, ok := two.Get(context.Background(), a.Digest, a.Size)
	if !ok {
		t.Fatal("the blob is not found")
	}
	a.Delivered()
	r, err := b.Open(context.Background(), 0)
	if err != nil {
		t.Fatalf("the second process has lost the blob: %v", err)
	}
	r.Close()
	b.Delivered()
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// Two processes make one blob at once. The later file takes the name, and
// neither process may lose what it sends.
func TestBlobMadeTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	in := []byte("layer")
	a, b := put(t, open(t, dir, 0), in), put(t, open(t, dir, 0), in)
	whole := func(when string, b *Blob) {
		t.Helper()
		r, err := b.Open(context.Background(), 1)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		defer r.Close()
		if got, err := io.ReadAll(r); string(got) != "ayer" || err != nil {
			t.Errorf("%s: read %q, %v", when, got, err)
		}
	}
	if err := os.WriteFile(b.path, []byte("other"), 0o600); err != nil { // to tell them apart
		t.Fatal(err)
	}
	whole("while the name is another's", a)
	if err := os.WriteFile(b.path, in, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Delivered()
	if n := files(t, dir); n != 1 {
		t.Errorf("%d files: the first process took the second's away", n)
	}
	whole("after the other's delivery", b)
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	whole("without its name", b)
	b.Delivered()
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

func TestOldBlobsGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	d := open(t, dir, 0)
	b := put(t, d, []byte("layer"))
	b.Keep()
	d.sweep(time.Now().Add(expiry - time.Hour))
	if n := files(t, dir); n != 1 {
		t.Errorf("%d files before the expiry, want 1", n)
	}
	d.sweep(time.Now().Add(expiry + time.Hour))
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files after the expiry", n)
	}
}

func TestFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	const max = 3 * step
	d := open(t, dir, max)
	piece := make([]byte, step)
	held := put(t, d, piece)
	w, err := d.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// The second piece has to wait for the blob that is being delivered.
	wrote := make(chan error)
	go func() {
		var err error
		for range 2 {
			if err == nil {
				_, err = w.Write(piece)
			}
		}
		wrote <- err
	}()
	held.Delivered()
	if err := <-wrote; err != nil {
		t.Errorf("after a delivery: %v", err)
	}
	if _, err := w.Write(piece); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want that it is full", err)
	}
	w.Discard()
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}

	// A wait ends with its context.
	held = put(t, d, append(piece, piece...))
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("gone")
	cancel(gone)
	w, err = d.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(piece); !errors.Is(err, gone) {
		t.Errorf("got %v, want the cause of the context", err)
	}
	w.Discard()
	held.Delivered()
}

func TestBadPlaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(link, 0o700), os.Symlink(t.TempDir(), filepath.Join(link, owndir.Spool))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below"), link} {
		if _, err := Open(path, 0); err == nil {
			t.Errorf("%s was taken", path)
		}
	}
}
