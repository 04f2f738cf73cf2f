// SPDX-License-Identifier: Apache-2.0

// Command sessions is a pusher that keeps its upload sessions in a database of
// its own, here bbolt: the next run continues what this one could not finish.
//
//	go run ./sessions DATABASE DIR REFERENCE
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func main() {
	retryFor := flag.Duration("retry-for", 0, "give up after so long without progress; 0 is 10m, negative at the first break")
	flag.Parse()
	if flag.NArg() != 3 {
		fmt.Fprintln(os.Stderr, "usage: sessions [-retry-for TIME] DATABASE DIR REFERENCE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, flag.Arg(0), flag.Arg(1), flag.Arg(2), pusher.Options{RetryFor: *retryFor}, os.Stdout)
	stop()
	switch {
	case errors.Is(err, resume.ErrInterrupted):
		fmt.Fprintln(os.Stderr, "interrupted, the same again continues:", err)
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, database, dir, reference string, o pusher.Options, out io.Writer) error {
	store, err := open(database)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // every transaction has been synced
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	top, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(top.Manifests) != 1 {
		return fmt.Errorf("%s holds %d images, not one", dir, len(top.Manifests))
	}
	img, err := index.Image(top.Manifests[0].Digest)
	if err != nil {
		return err
	}
	o.Store = store
	p, err := pusher.New(o)
	if err != nil {
		return err
	}
	report, err := p.Push(ctx, ref, img)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s@%s, %d of %d bytes sent\n", report.Reference, report.Digest, report.Sent, report.Size)
	return nil
}
