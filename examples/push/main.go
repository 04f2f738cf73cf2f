// SPDX-License-Identifier: Apache-2.0

// Command push is a small pusher of one's own: it delivers an OCI image layout
// with package pusher, and shows each blob's progress as a bar, or in a log as
// lines.
//
//	go run ./push DIR REFERENCE
package main

import (
	"context"
	"errors"
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
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: push DIR REFERENCE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1], os.Args[2], os.Stdout)
	stop()
	switch {
	case errors.Is(err, resume.ErrInterrupted):
		fmt.Fprintln(os.Stderr, "interrupted, try again:", err)
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, reference string, out io.Writer) error {
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

	d := &display{out: out, tty: isTerminal(out)}
	p, err := pusher.New(pusher.Options{UserAgent: "rpush-example", OnEvent: d.on})
	if err != nil {
		return err
	}
	report, err := p.Push(ctx, ref, img)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s@%s\n", report.Reference, report.Digest)
	return nil
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
