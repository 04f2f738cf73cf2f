// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// held is a Content of what is in it, under whatever digest.
type held map[v1.Hash][]byte

func (h held) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) { return h[d.Digest], nil }

func (h held) Open(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	b, ok := h[d.Digest]
	if !ok {
		return nil, errors.New("not found")
	}
	return io.NopCloser(bytes.NewReader(b[offset:])), nil
}

// put takes b in under its digest.
func (h held) put(mt types.MediaType, b []byte) v1.Descriptor {
	h[hash(b)] = b
	return v1.Descriptor{MediaType: mt, Digest: hash(b), Size: int64(len(b))}
}

func (h held) putJSON(mt types.MediaType, doc any) v1.Descriptor {
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return h.put(mt, b)
}

func (h held) stored(d v1.Descriptor) *pusher.Stored {
	return &pusher.Stored{Content: h, Descriptor: d}
}

// An image that says it was built on a repository which its author may not
// read, and names a blob there, does not make the pusher publish that blob. One
// that has the bytes is mounted.
func TestBaseIsMountedOnlyIfItsBytesAreHere(t *testing.T) {
	secret := content(1, 1000)
	for name, tt := range map[string]struct {
		bytes []byte // that the source has under the digest of the secret; nil is none
		size  int64
		want  bool
	}{
		"its bytes":     {secret, 1000, true},
		"other bytes":   {content(2, 1000), 1000, false},
		"fewer bytes":   {secret[:999], 1000, false},
		"no bytes":      {nil, 1000, false},
		"another size":  {secret, 999, false},
		"a larger size": {secret, 1001, false},
	} {
		inLab(t, scripted.Options{}, func(l *lab) {
			l.reg.PutBlob("secret/base", digest.FromBytes(secret).String(), secret)
			h := held{}
			config := h.put(types.OCIConfigJSON, []byte("{}"))
			layer := v1.Descriptor{MediaType: types.OCILayer, Digest: hash(secret), Size: tt.size}
			if tt.bytes != nil {
				h[layer.Digest] = tt.bytes
			}
			img := h.stored(h.putJSON(types.OCIManifestSchema1, v1.Manifest{
				SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{layer},
				Annotations: map[string]string{"org.opencontainers.image.base.name": "reg.test/secret/base:1"},
			}))
			r, err := l.push("reg.test/team/app:1", img)
			if got := l.reg.Blob("team/app", layer.Digest.String()) != nil; got != tt.want {
				t.Errorf("%s: the blob is published: %t, want %t", name, got, tt.want)
			}
			switch {
			case !tt.want && (!errors.Is(err, resume.ErrSource) || l.reg.Manifest("team/app", "1") != nil):
				t.Errorf("%s: %v, want a fault of the source", name, err)
			case tt.want && (err != nil || r.Blobs[0].State != pusher.BlobMounted):
				t.Errorf("%s: %v, %+v", name, err, r.Blobs)
			}
		})
	}
}
