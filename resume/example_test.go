// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// fragileLine is a registry whose first PATCH breaks after 300000 bytes.
func fragileLine() (repo name.Repository, end func()) {
	srv := httptest.NewServer(scripted.New(scripted.Options{Intercept: brokenBody(300_000)}))
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		panic(err)
	}
	return repo, srv.Close
}

func ExampleClient_Upload() {
	repo, end := fragileLine()
	defer end()
	data := bytes.Repeat([]byte("0123456789"), 200_000)

	c, err := resume.New(repo, resume.Options{PlainHTTP: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	result, err := c.Upload(context.Background(), resume.Blob{
		Digest: digest.FromBytes(data),
		Size:   int64(len(data)),
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[offset:])), nil
		},
	})
	fmt.Println("breaks:", result.Breaks, "resumes:", result.Resumes, "error:", err)
	// Output: breaks: 1 resumes: 1 error: <nil>
}

// The transport below go-containerregistry. Other clients take theirs in other
// ways: oras-go in an auth.Client, containerd by docker.WithClient.
func ExampleNewTransport() {
	repo, end := fragileLine()
	defer end()
	layer := static.NewLayer(bytes.Repeat([]byte("0123456789"), 100_000), types.OCILayer)

	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = remote.WriteLayer(repo, layer, remote.WithTransport(rt))
	fmt.Println("error:", err)
	// Output: error: <nil>
}

func ExampleTransportOptions_onEvent() {
	repo, end := fragileLine()
	defer end()
	layer := static.NewLayer(bytes.Repeat([]byte("0123456789"), 100_000), types.OCILayer)

	rt, err := resume.NewTransport(http.DefaultTransport, resume.TransportOptions{OnEvent: func(e resume.Event) {
		switch e.Kind {
		case resume.Broken:
			fmt.Println("broken")
		case resume.Resumed:
			fmt.Printf("upload %d resumed at %d of %d bytes\n", e.Upload, e.Offset, e.Size)
		case resume.Committed:
			fmt.Println("committed", e.Digest[:19])
		}
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := remote.WriteLayer(repo, layer, remote.WithTransport(rt)); err != nil {
		fmt.Println(err)
	}
	// Output:
	// broken
	// upload 1 resumed at 300000 of 1000000 bytes
	// committed sha256:ec21d6462422
}

// The kind of an error says what to do next.
func ExampleError() {
	repo, err := name.NewRepository("registry.invalid/team/app")
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := resume.New(repo, resume.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Upload(context.Background(), resume.Blob{
		Digest: digest.FromString(""),
		Open:   func(context.Context, int64) (io.ReadCloser, error) { return http.NoBody, nil },
	})
	switch {
	case errors.Is(err, resume.ErrInterrupted):
		fmt.Println("try again later")
	case errors.Is(err, resume.ErrDenied):
		fmt.Println("other credentials are needed")
	case errors.Is(err, resume.ErrEndpoint):
		fmt.Println("there is no registry at this address")
	case errors.Is(err, resume.ErrSource):
		fmt.Println("the blob itself is damaged")
	case err != nil:
		fmt.Println("the registry does not take it")
	}
	// Output: there is no registry at this address
}
