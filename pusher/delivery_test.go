// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// early is a blob that is given before its image is known.
func early(b []byte) resume.Blob {
	return resume.Blob{Digest: digest.FromBytes(b), Size: int64(len(b)), Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[offset:])), nil
	}}
}

func TestDeliveryTakesBlobsBeforeTheImage(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		img := newImage(content(1, 1000), content(2, 2000), content(3, 3000), content(4, 4000))
		l.reg.PutBlob("base/image", digest.FromBytes(img.layers[1]).String(), img.layers[1])
		l.reg.PutBlob("team/app", digest.FromBytes(img.layers[2]).String(), img.layers[2])
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference("reg.test/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Open(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it is there
			if err := d.Upload(context.Background(), early(img.layers[0]), "layer"); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range []bool{true, true, true, false} {
			b := early(img.layers[i])
			// Repositories of other registries, and this one, are no place to mount from.
			held, err := d.Held(context.Background(), b.Digest, b.Size, "layer", "other.test/base/image", "reg.test/team/app", "reg.test/none", "reg.test/base/image")
			if err != nil || held != want {
				t.Errorf("layer %d is held: %t, %v, want %t", i, held, err, want)
			}
		}
		before := d.Report()
		if len(before.Blobs) != 4 || before.Sent != 1000 {
			t.Errorf("before the image: %+v", before)
		}
		r, err := d.Finish(context.Background(), img)
		if err != nil {
			t.Fatal(err)
		}
		want := []pusher.BlobState{pusher.BlobUploaded, pusher.BlobMounted, pusher.BlobExisted, pusher.BlobUploaded, pusher.BlobUploaded}
		for i, b := range r.Blobs {
			if b.State != want[i] {
				t.Errorf("blob %d is %s, want %s", i, b.State, want[i])
			}
		}
		if all := int64(1000 + 4000 + len(img.config)); r.Sent != all {
			t.Errorf("%d bytes were sent, want %d: %+v", r.Sent, all, r.Blobs)
		}
		l.has("team/app", "1", img)
	})
}

func TestManifestAndConfig(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		img := newImage(content(1, 1000))
		l.pushes("reg.test/team/app:1", img)
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		repo, err := name.NewRepository("reg.test/team/app")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := p.Manifest(context.Background(), repo.Tag("1"))
		if err != nil || !bytes.Equal(doc.Raw, img.raw) {
			t.Errorf("the manifest is %v, %v", doc, err)
		}
		config, err := p.Config(context.Background(), repo, digest.FromBytes(img.config))
		if err != nil || !bytes.Equal(config.Raw, img.config) {
			t.Errorf("the config is %v, %v", config, err)
		}
		for _, ref := range []name.Reference{repo.Tag("2"), repo.Digest(digest.FromString("none").String())} {
			if doc, err := p.Manifest(context.Background(), ref); doc != nil || err != nil {
				t.Errorf("%s is %v, %v, want nothing", ref, doc, err)
			}
		}
		if c, err := p.Config(context.Background(), repo, digest.FromString("none")); c != nil || err != nil {
			t.Errorf("a config that is not there is %v, %v", c, err)
		}
	})
}

// What is no name of a repository is not asked for in the name of one.
func TestHeldElsewhere(t *testing.T) {
	var asked []string
	reg := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			asked = append(asked, r.URL.Query().Get("from"))
		}
		if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	p := newPusher(t, pusher.Options{})
	d, err := p.Open(context.Background(), tagOf(t, reg+"/team/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	b := early([]byte("layer"))
	held, err := d.Held(context.Background(), b.Digest, b.Size, "layer",
		reg+"/a:pull repository:other", reg+"/", "other.test/base", reg+"/team/app", reg+"/team/base")
	if err != nil || held {
		t.Errorf("the layer is held: %t, %v", held, err)
	}
	if want := []string{"team/base"}; !slices.Equal(asked, want) {
		t.Errorf("mounts were tried from %q, want %q", asked, want)
	}
}

// Some servers add parameters to the type of what they answer.
func TestManifestType(t *testing.T) {
	index := []byte(`{"schemaVersion":2,"manifests":[]}`)
	reg := host(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", string(types.OCIImageIndex)+"; charset=utf-8")
		w.Write(index)
	}))
	doc, err := newPusher(t, pusher.Options{}).Manifest(context.Background(), tagOf(t, reg+"/team/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	if doc.MediaType != string(types.OCIImageIndex) {
		t.Errorf("the manifest has the type %q", doc.MediaType)
	}
}
