// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/pusher"
)

func compressed(t *testing.T, a compress.Algorithm, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := a.Writer(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A blob counts as a layer only if its own digest, its size and what it
// decompresses to are all as they should be.
func TestHolds(t *testing.T) {
	plain := []byte(strings.Repeat("a layer ", 5000))
	for _, a := range compress.Algorithms {
		blob := compressed(t, a, plain)
		media := string(a.LayerType(true))
		for _, tt := range []struct {
			name   string
			served []byte // by the registry
			named  []byte // its digest is in the manifest
			diff   []byte
			want   error
		}{
			{"right", blob, blob, plain, nil},
			{"another layer", blob, blob, []byte("other"), errDiffers},
			{"another blob", blob, []byte("other"), plain, errDiffers},
			{"cut off", blob[:len(blob)-1], blob, plain, errDiffers},
			{"cut off, with its digest", blob[:len(blob)-1], blob[:len(blob)-1], plain, errDiffers},
			{"followed by more", append(bytes.Clone(blob), "more"...), append(bytes.Clone(blob), "more"...), plain, errDiffers},
			{"nothing", nil, nil, plain, errDiffers},
			{"not compressed so", []byte("plain text"), []byte("plain text"), plain, errDiffers},
		} {
			l := known.Layer{Digest: digest.FromBytes(tt.named), Size: int64(len(tt.named)), MediaType: media}
			if err := holds(bytes.NewReader(tt.served), a, l, digest.FromBytes(tt.diff)); !errors.Is(err, tt.want) {
				t.Errorf("%s, %s: got %v, want %v", a, tt.name, err, tt.want)
			}
		}
	}
}

// zeros are read for as long as anyone wants.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A bomb is given up, and takes little memory.
func TestHoldsGivesUpBombs(t *testing.T) {
	var gz bytes.Buffer
	w, err := compress.Gzip.Writer(&gz)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// A frame that asks for a window of 128 MiB.
	var z bytes.Buffer
	e, err := zstd.NewWriter(&z, zstd.WithWindowSize(128<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(e, zeros{}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		blob  []byte
		media types.MediaType
		want  error
	}{
		{"gzip", gz.Bytes(), types.OCILayer, errTooLarge},
		{"zstd", z.Bytes(), types.OCILayerZStd, errDiffers},
	} {
		a, _ := compress.Of(tt.media)
		l := known.Layer{Digest: digest.FromBytes(tt.blob), Size: int64(len(tt.blob)), MediaType: string(tt.media)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := holds(bytes.NewReader(tt.blob), a, l, digest.FromString("layer"))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
			t.Errorf("%s: %d MiB allocated", tt.name, n>>20)
		}
	}
}

// A registry that sends a blob a byte at a time does not keep a push waiting:
// the layer is compressed instead.
func TestVerifyingEndsIfBytesTrickle(t *testing.T) {
	plain := bytes.Repeat([]byte("layer"), 1000)
	blob := compressed(t, compress.Gzip, plain)
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		stop := net.Serve(t, "reg.test:80", func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			for i := range blob {
				if _, err := w.Write(blob[i : i+1]); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				time.Sleep(50 * time.Second)
			}
		})
		tr := wire.New(wire.Options{Dial: net.Dial})
		defer func() {
			tr.CloseIdleConnections()
			stop()
		}()
		p, err := pusher.New(pusher.Options{Transport: tr, Scheme: pusher.SchemeHTTP, Keychain: authn.NewMultiKeychain()})
		if err != nil {
			t.Fatal(err)
		}
		var warned []string
		j := &Job{
			Reader: p, Repository: "reg.test/team/app",
			Warn: func(err error) { warned = append(warned, err.Error()) }, Doing: func(string) {},
		}
		l := known.Layer{
			Digest: digest.FromBytes(blob), Size: int64(len(blob)), MediaType: string(types.OCILayer),
			Repositories: []string{j.Repository},
		}
		repos := j.onRegistry(l.Repositories)
		began := time.Now()
		at, err := j.verifiedIn(t.Context(), digest.FromBytes(plain), l, repos, repos)
		if at != "" || err != nil {
			t.Errorf("got %q, %v, want nothing", at, err)
		}
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("it took %s", took)
		}
		if len(warned) != 1 || !strings.Contains(warned[0], "too slowly") {
			t.Errorf("warnings: %q, want one about a slow blob", warned)
		}
	})
}
