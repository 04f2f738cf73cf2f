// SPDX-License-Identifier: Apache-2.0

// Command oras copies an OCI image layout to a registry with oras-go, over a
// transport that resumes.
//
//	go run ./oras DIR REFERENCE
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/rpush-go/rpush/resume"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: oras DIR REFERENCE")
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

// push copies the image named "latest" of a layout. The client is oras-go's
// own, with its retries, over another transport.
func push(ctx context.Context, dir, reference string, rt http.RoundTripper) error {
	src, err := oci.NewFromFS(ctx, os.DirFS(dir))
	if err != nil {
		return err
	}
	repo, err := remote.NewRepository(reference)
	if err != nil {
		return err
	}
	client := &auth.Client{
		Client: &http.Client{Transport: retry.NewTransport(rt)},
		Cache:  auth.NewCache(),
	}
	if store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{}); err == nil {
		client.Credential = credentials.Credential(store)
	}
	repo.Client = client
	repo.PlainHTTP = local(repo.Reference.Registry)
	_, err = oras.Copy(ctx, src, "latest", repo, repo.Reference.Reference, oras.DefaultCopyOptions)
	return err
}
