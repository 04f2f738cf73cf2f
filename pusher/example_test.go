// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func ExamplePusher_Push() {
	registry := httptest.NewServer(scripted.New(scripted.Options{}))
	defer registry.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(registry.URL, "http://") + "/team/app:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("hello"), types.DockerLayer))
	if err != nil {
		fmt.Println(err)
		return
	}

	p, err := pusher.New(pusher.Options{
		Keychain: authn.NewMultiKeychain(), // nobody; the default is docker's
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	report, err := p.Push(context.Background(), ref, img)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, b := range report.Blobs {
		fmt.Println(b.State, b.Size, "bytes")
	}
	fmt.Println("manifests:", len(report.Manifests))
	// Output:
	// uploaded 5 bytes
	// uploaded 233 bytes
	// manifests: 1
}

func ExampleNewProgress() {
	registry := httptest.NewServer(scripted.New(scripted.Options{}))
	defer registry.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(registry.URL, "http://") + "/team/app:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("hello"), types.DockerLayer))
	if err != nil {
		fmt.Println(err)
		return
	}

	updates := make(chan v1.Update, 1)
	progress := pusher.NewProgress(updates)
	p, err := pusher.New(pusher.Options{Keychain: authn.NewMultiKeychain(), OnEvent: progress.Event})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		_, err := p.Push(context.Background(), ref, img)
		progress.Close(err)
	}()
	var last v1.Update
	for last = range updates {
		// draw a bar
	}
	fmt.Println(last.Complete, "of", last.Total, "bytes", last.Error)
	// Output:
	// 238 of 238 bytes <nil>
}

func ExamplePusher_Open() {
	registry := httptest.NewServer(scripted.New(scripted.Options{}))
	defer registry.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(registry.URL, "http://") + "/team/app:1")
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := pusher.New(pusher.Options{Keychain: authn.NewMultiKeychain()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.CloseIdleConnections()
	d, err := p.Open(context.Background(), ref)
	if err != nil {
		fmt.Println(err)
		return
	}
	// A layer goes out as soon as it is known, the image when all of it is.
	layer := []byte("hello")
	err = d.Upload(context.Background(), resume.Blob{
		Digest: digest.FromBytes(layer), Size: int64(len(layer)),
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(layer[offset:])), nil
		},
	}, string(types.DockerLayer))
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer, types.DockerLayer))
	if err != nil {
		fmt.Println(err)
		return
	}
	report, err := d.Finish(context.Background(), img)
	fmt.Println(len(report.Blobs), "blobs", err)
	// Output:
	// 2 blobs <nil>
}
