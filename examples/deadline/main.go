// SPDX-License-Identifier: Apache-2.0

// Command deadline is a step of a CI: it pushes an OCI image layout, within a
// deadline for each try, and tries again where that was not enough. Each try
// goes on where the one before stood, also where that was another process.
//
//	go run ./deadline -for 10m -tries 6 DIR REFERENCE
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func main() {
	limit := flag.Duration("for", 10*time.Minute, "the deadline of each try")
	tries := flag.Int("tries", 6, "how many there may be")
	flag.Parse()
	if flag.NArg() != 2 || *limit <= 0 || *tries < 1 {
		fmt.Fprintln(os.Stderr, "usage: deadline [-for TIME] [-tries N] DIR REFERENCE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := retry(ctx, *limit, *tries, func(ctx context.Context) error { return push(ctx, flag.Arg(0), flag.Arg(1)) })
	stop()
	switch {
	case errors.Is(err, resume.ErrInterrupted):
		fmt.Fprintln(os.Stderr, "not done in time, the same again continues:", err)
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errDeadline = errors.New("the deadline of this try is over")

// retry tells what can be tried again from what cannot by the kind of error,
// never by its text: ErrInterrupted is the one worth another try.
func retry(ctx context.Context, limit time.Duration, tries int, push func(context.Context) error) error {
	for n := 1; ; n++ {
		try, cancel := context.WithTimeoutCause(ctx, limit, errDeadline)
		err := push(try)
		cancel()
		if err == nil || !errors.Is(err, resume.ErrInterrupted) || ctx.Err() != nil || n == tries {
			return err
		}
		fmt.Fprintf(os.Stderr, "try %d of %d: %v\n", n, tries, err)
	}
}

func push(ctx context.Context, dir, reference string) error {
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
	state, err := resume.StateDir()
	if err != nil {
		return err
	}
	// The next run continues the uploads that the deadline ends.
	p, err := pusher.New(pusher.Options{Store: resume.NewFileStore(state)})
	if err != nil {
		return err
	}
	report, err := p.Push(ctx, ref, img)
	if err != nil {
		return err
	}
	fmt.Printf("%s@%s\n", report.Reference, report.Digest)
	return nil
}
