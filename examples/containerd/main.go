// SPDX-License-Identifier: Apache-2.0

// Command containerd pushes an OCI image layout with containerd's docker
// resolver and pusher, over a transport that resumes.
//
//	go run ./containerd DIR REFERENCE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rpush-go/rpush/resume"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: containerd DIR REFERENCE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{})
	if err == nil {
		err = push(ctx, os.Args[1], os.Args[2], rt)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func push(ctx context.Context, dir, reference string, rt http.RoundTripper) error {
	top, err := first(dir)
	if err != nil {
		return err
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(&http.Client{Transport: rt}),
			docker.WithPlainHTTP(docker.MatchLocalhost),
		),
	})
	pusher, err := resolver.Pusher(ctx, reference)
	if err != nil {
		return err
	}
	return remotes.PushContent(ctx, pusher, top, provider(dir), nil, platforms.All, nil)
}

// first is the descriptor of the first image of a layout.
func first(dir string) (v1.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return v1.Descriptor{}, err
	}
	if len(index.Manifests) == 0 {
		return v1.Descriptor{}, errors.New("the layout holds no image")
	}
	return index.Manifests[0], nil
}

// provider reads the blobs of a layout, in place of containerd's own store.
type provider string

func (p provider) ReaderAt(_ context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	f, err := os.Open(filepath.Join(string(p), "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return blob{f, st.Size()}, nil
}

type blob struct {
	*os.File
	size int64
}

func (b blob) Size() int64 { return b.size }
