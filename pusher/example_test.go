package pusher_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
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
