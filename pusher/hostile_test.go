// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memory"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// mostMemory is what one hostile document may make a push allocate, all in all.
const mostMemory = 64 << 20

// empties is a document of almost 4 MiB: a list of empty members.
func empties(head, member, tail string) []byte {
	n := (4<<20 - 1 - len(head) - len(tail) - len(member)) / (len(member) + 1)
	return []byte(head + strings.Repeat(member+",", n) + member + tail)
}

// bare is a v1.Image or v1.ImageIndex of nothing but its manifest.
type bare struct {
	raw []byte
	mt  types.MediaType
}

func (b bare) RawManifest() ([]byte, error)            { return b.raw, nil }
func (b bare) MediaType() (types.MediaType, error)     { return b.mt, nil }
func (b bare) Size() (int64, error)                    { return int64(len(b.raw)), nil }
func (b bare) Digest() (v1.Hash, error)                { return hash(b.raw), nil }
func (b bare) Manifest() (*v1.Manifest, error)         { return partial.Manifest(b) }
func (b bare) ConfigName() (v1.Hash, error)            { return partial.ConfigName(b) }
func (b bare) RawConfigFile() ([]byte, error)          { return []byte("{}"), nil }
func (b bare) ConfigFile() (*v1.ConfigFile, error)     { return &v1.ConfigFile{}, nil }
func (b bare) LayerByDigest(v1.Hash) (v1.Layer, error) { return nil, errors.New("none") }
func (b bare) LayerByDiffID(v1.Hash) (v1.Layer, error) { return nil, errors.New("none") }
func (b bare) Layers() ([]v1.Layer, error) {
	_, err := b.Manifest()
	return nil, err
}

type bareIndex struct{ bare }

func (b bareIndex) IndexManifest() (*v1.IndexManifest, error) {
	return v1.ParseIndexManifest(bytes.NewReader(b.raw))
}
func (b bareIndex) Image(v1.Hash) (v1.Image, error)           { return nil, errors.New("none") }
func (b bareIndex) ImageIndex(v1.Hash) (v1.ImageIndex, error) { return nil, errors.New("none") }

func TestManifestsOfEmptyEntriesAreRefused(t *testing.T) {
	for _, key := range []string{"layers", "blobs", "manifests"} {
		for _, member := range []string{"{}", `{"annotations":{"":""}}`} {
			for _, mt := range []types.MediaType{types.OCIManifestSchema1, types.OCIImageIndex} {
				raw := empties(`{"schemaVersion":2,"`+key+`":[`, member, "]}")
				h := held{}
				stored := h.stored(h.put(mt, raw))
				inLab(t, scripted.Options{}, func(l *lab) {
					var err error
					used := memory.Allocated(func() { _, err = l.push("reg.test/app:1", stored) })
					if !errors.Is(err, resume.ErrSource) || used > mostMemory {
						t.Errorf("%s of %s as %s: %.200s, %d bytes", key, member, mt, fmt.Sprint(err), used)
					}
					used = memory.Allocated(func() {
						if mt.IsIndex() {
							_, err = l.push("reg.test/app:1", bareIndex{bare{raw, mt}})
						} else {
							_, err = l.push("reg.test/app:1", bare{raw, mt})
						}
					})
					if !errors.Is(err, resume.ErrSource) || used > mostMemory {
						t.Errorf("%s of %s as %s, in memory: %.200s, %d bytes", key, member, mt, fmt.Sprint(err), used)
					}
				})
			}
		}
	}
}

// counting counts how often manifests are read.
type counting struct {
	held
	reads atomic.Int32
}

func (c *counting) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	c.reads.Add(1)
	return c.held.Manifest(ctx, d)
}

func TestChildNamedTwiceIsReadOnce(t *testing.T) {
	h := held{}
	layer := h.put(types.OCILayer, content(1, 1000))
	child := h.putJSON(types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: h.put(types.OCIConfigJSON, []byte("{}")), Layers: []v1.Descriptor{layer},
	})
	index := func(ds ...v1.Descriptor) v1.Descriptor {
		return h.putJSON(types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: ds})
	}
	inner := index(child, child)
	outer := index(inner, child, inner, child)
	other := child
	other.Size++
	lying := index(child, other)
	inLab(t, scripted.Options{}, func(l *lab) {
		c := &counting{held: h}
		if _, err := l.push("reg.test/app:1", &pusher.Stored{Content: c, Descriptor: outer}); err != nil {
			t.Fatal(err)
		}
		if n := c.reads.Load(); n != 3 {
			t.Errorf("3 manifests were read %d times", n)
		}
		_, err := l.push("reg.test/app:2", h.stored(lying))
		if !errors.Is(err, resume.ErrSource) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%d bytes and %d bytes", child.Size, other.Size)) {
			t.Errorf("a child with two sizes: %v", err)
		}
	})
}

// A walk over manifests ends with the context.
func TestReadingManifestsEndsWithTheContext(t *testing.T) {
	h := held{}
	var all []v1.Descriptor
	for i := range 100 {
		all = append(all, h.put(types.OCIManifestSchema1, fmt.Appendf(nil, `{"schemaVersion":2,"annotations":{"i":"%d"}}`, i)))
	}
	root := h.putJSON(types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, Manifests: all})
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &cancelling{held: h, cancel: func() { cancel(enough) }}
	_, err := newPusher(t, pusher.Options{}).Push(ctx, tagOf(t, "reg.test/app:1"), &pusher.Stored{Content: c, Descriptor: root})
	if !errors.Is(err, enough) || c.reads != 10 {
		t.Errorf("%v after %d manifests, want the cause after 10", err, c.reads)
	}
}

// cancelling ends the push at the tenth manifest.
type cancelling struct {
	held
	reads  int
	cancel func()
}

func (c *cancelling) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if c.reads++; c.reads == 10 {
		c.cancel()
	}
	return c.held.Manifest(ctx, d)
}

// What a registry lists is bounded, too.
func TestListsOfEmptyEntriesAreRefused(t *testing.T) {
	var answer []byte
	reg := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			w.Write(answer)
		}
	}))
	repo, err := newPusher(t, pusher.Options{}).Repository(t.Context(), tagOf(t, reg+"/app:1").Context())
	if err != nil {
		t.Fatal(err)
	}
	tags := func() error {
		_, err := repo.Tags(t.Context())
		return err
	}
	referrers := func() error {
		_, err := repo.Referrers(t.Context(), digest.FromString("x"))
		return err
	}
	for _, list := range []struct {
		key, member string
		read        func() error
	}{{"tags", `""`, tags}, {"manifests", "{}", referrers}} {
		answer = empties(`{"`+list.key+`":[`, list.member, "]}")
		var err error
		used := memory.Allocated(func() { err = list.read() })
		if !errors.Is(err, resume.ErrSource) || used > mostMemory {
			t.Errorf("%s: %.200s, %d bytes", list.key, fmt.Sprint(err), used)
		}
	}
}
