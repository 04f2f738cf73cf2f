// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/compress"
	"github.com/rpush-go/rpush/internal/known"
	"github.com/rpush-go/rpush/internal/spool"
	"github.com/rpush-go/rpush/pusher"
)

// slow is an engine that saves b only when it is told to.
type slow struct {
	b      []byte
	begin  chan struct{}
	ended  int // savings that were given up
	opened int
}

func (s *slow) save(ctx context.Context) (io.ReadCloser, error) {
	s.opened++
	select {
	case <-s.begin:
		return io.NopCloser(bytes.NewReader(s.b)), nil
	case <-ctx.Done():
		s.ended++
		return nil, context.Cause(ctx)
	}
}

// A blob that is made again is there when it can be read, not before: an engine
// may take longer to begin than a request may stall.
func TestRemadeBlobBegins(t *testing.T) {
	a := newArchive()
	a.file("layer.tar", bytes.Repeat([]byte("layer"), 1000))
	a.w.Close()
	for _, offset := range []int64{0, 7, 2 << 10} {
		synctest.Test(t, func(t *testing.T) {
			s := &slow{b: a.b.Bytes(), begin: make(chan struct{})}
			j := &Job{Input: &Saved{Save: s.save}, Algorithm: compress.None}
			var r io.ReadCloser
			var err error
			opened := make(chan struct{})
			go func() {
				defer close(opened)
				r, err = at(t.Context(), j.remake(t.Context(), "layer.tar"), offset)
			}()
			synctest.Wait()
			select {
			case <-opened:
				t.Error("it was opened before there was a byte of it")
			default:
			}
			close(s.begin)
			<-opened
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); int64(len(got)) != 5000-offset || err != nil {
				t.Errorf("from offset %d on there are %d bytes, %v", offset, len(got), err)
			}
		})
	}
}

// Who gives up a blob that is being made lets go of the engine as well, also
// before the first byte.
func TestRemadeBlobIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{begin: make(chan struct{})}
		j := &Job{Input: &Saved{Save: s.save}, Algorithm: compress.None}
		r := j.remake(t.Context(), "layer.tar")
		synctest.Wait()
		r.Close()
		synctest.Wait()
		if s.opened != 1 || s.ended != 1 {
			t.Errorf("of %d savings %d ended", s.opened, s.ended)
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		r = j.remake(t.Context(), "layer.tar")
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if _, err := at(ctx, r, 0); !errors.Is(err, gone) {
			t.Errorf("got %v, want the cause of the context", err)
		}
		synctest.Wait()
		if s.ended != 2 {
			t.Errorf("of %d savings %d ended", s.opened, s.ended)
		}
	})
}

// A spool that fails costs the second reading, not the push.
func TestSpoolThatFails(t *testing.T) {
	dir, err := spool.Open(t.TempDir()+"/spool", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, ends := range []bool{false, true} {
		w, err := dir.Create(ctx)
		if err != nil {
			t.Fatal(err)
		}
		w.Discard() // any Write fails now
		warned := 0
		j := &Job{Warn: func(error) { warned++ }}
		s := &sink{j: j, ctx: ctx, m: &made{w: w}, h: sha256.New()}
		if ends {
			cancel()
		}
		n, err := s.Write([]byte("layer"))
		switch {
		case ends && (err == nil || warned != 0):
			t.Errorf("a push that was cancelled goes on, with %d warnings", warned)
		case !ends && (n != 5 || err != nil || s.m.size != 5 || s.m.w != nil || warned != 1):
			t.Errorf("%d bytes, %v, %d warnings", n, err, warned)
		}
	}
	cancel()
}

// What a killed process left is not kept for what the registry has.
func TestSpoolIsClearedOfWhatArrived(t *testing.T) {
	d, ref := delivery(t)
	dir, err := spool.Open(t.TempDir()+"/spool", 0)
	if err != nil {
		t.Fatal(err)
	}
	arrived, missing := left(t, dir, "arrived"), left(t, dir, "missing")
	if err := remote.WriteLayer(ref.Context(), static.NewLayer([]byte("arrived"), types.OCILayer)); err != nil {
		t.Fatal(err)
	}
	j := &Job{
		Delivery: d, Spool: dir, Algorithm: compress.Gzip,
		at: map[digest.Digest]known.Layer{}, spooled: map[digest.Digest]*spool.Blob{},
		Cache: known.Open(""),
	}
	for _, l := range []known.Layer{arrived, missing} {
		diff := l.Digest // left does not compress
		if err := j.Cache.AddLayer(diff, l); err != nil {
			t.Fatal(err)
		}
		if err := j.lookFor(t.Context(), diff); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := dir.Get(t.Context(), arrived.Digest, arrived.Size); ok {
		t.Error("a blob that the registry has is still in the spool")
	}
	if j.spooled[missing.Digest] == nil || len(j.spooled) != 1 {
		t.Fatalf("from the spool comes %v, want the blob that the registry does not have", j.spooled)
	}
	j.spooled[missing.Digest].Keep()
}

// delivery is one to a registry of its own.
func delivery(t *testing.T) (*pusher.Delivery, name.Reference) {
	t.Helper()
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	return deliveryTo(t, reg, pusher.Options{})
}

// deliveryTo is one to team/app:1 at a server.
func deliveryTo(t *testing.T, srv *httptest.Server, o pusher.Options) (*pusher.Delivery, name.Reference) {
	t.Helper()
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	p, err := pusher.New(o)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	return d, ref
}

// left puts a blob into the spool as a killed process leaves it.
func left(t *testing.T, dir *spool.Dir, content string) known.Layer {
	t.Helper()
	w, err := dir.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	b, err := w.Keep(digest.FromString(content))
	if err != nil {
		t.Fatal(err)
	}
	b.Keep()
	return known.Layer{Digest: b.Digest, Size: b.Size, MediaType: string(types.OCILayer), Key: compress.Gzip.Key()}
}

// A cache that names one blob for two layers must neither publish the blob as
// both, nor leave the spool waiting for a delivery that never comes.
func TestOneSpooledBlobForTwoLayers(t *testing.T) {
	d, _ := delivery(t)
	place := t.TempDir() + "/spool"
	dir, err := spool.Open(place, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := left(t, dir, "layer")
	if dir, err = spool.Open(place, 1); err != nil { // full
		t.Fatal(err)
	}
	j := &Job{
		Delivery: d, Spool: dir, Algorithm: compress.Gzip,
		at: map[digest.Digest]known.Layer{}, spooled: map[digest.Digest]*spool.Blob{},
		Cache: known.Open(""),
	}
	for _, content := range []string{"layer", "other", "layer"} {
		diff := digest.FromString(content)
		if err := j.Cache.AddLayer(diff, l); err != nil {
			t.Fatal(err)
		}
		if err := j.lookFor(t.Context(), diff); err != nil {
			t.Fatal(err)
		}
	}
	if len(j.at) != 1 || len(j.spooled) != 1 {
		t.Fatalf("%d layers and %d blobs", len(j.at), len(j.spooled))
	}
	for _, b := range j.spooled {
		b.Keep()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := dir.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Discard()
	if _, err := w.Write([]byte("more")); !errors.Is(err, spool.ErrFull) {
		t.Errorf("got %v, want that the spool is full", err)
	}
}
