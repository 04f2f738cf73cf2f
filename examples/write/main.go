// SPDX-License-Identifier: Apache-2.0

// Command write pushes an OCI image layout with go-containerregistry's own
// remote.Write, over a transport that resumes. The one line that does it is the
// one with NewTransport.
//
//	go run ./write DIR REFERENCE
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/resume"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: write DIR REFERENCE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{OnEvent: tell()})
	if err == nil {
		err = write(ctx, os.Args[1], os.Args[2], rt)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tell says what happens to each upload. A PATCH, which is how
// go-containerregistry uploads, does not know its digest: the uploads have
// numbers.
func tell() func(resume.Event) {
	var mu sync.Mutex
	return func(e resume.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Kind {
		case resume.Broken:
			fmt.Fprintf(os.Stderr, "upload %d broken: %v\n", e.Upload, e.Err)
		case resume.Resumed:
			fmt.Fprintf(os.Stderr, "upload %d resumed at byte %d\n", e.Upload, e.Offset)
		}
	}
}

func write(ctx context.Context, dir, reference string, rt http.RoundTripper) error {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	img, err := image(dir)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(rt), remote.WithAuthFromKeychain(authn.DefaultKeychain))
}

// image is the first of a layout.
func image(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	top, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(top.Manifests) == 0 {
		return nil, fmt.Errorf("%s holds no image", dir)
	}
	return index.Image(top.Manifests[0].Digest)
}
