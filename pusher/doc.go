// SPDX-License-Identifier: Apache-2.0

// Package pusher delivers container images and indexes to a registry over
// connections that break.
//
//	p, err := pusher.New(pusher.Options{})
//	report, err := p.Push(ctx, ref, img)
//
// It asks for all blobs at once, uploads what is missing with package resume,
// several blobs at a time, and writes the manifests last: never one before
// everything it names is at the registry. What was delivered stays there, so
// that the same call after a failure sends only the rest.
//
// Credentials come from a go-containerregistry keychain and go to the
// registry's own scheme, host and port and, as the token protocol has it, to
// the token server it names; never over plain HTTP unless Options.Scheme
// allows it.
//
// Nothing is logged and nothing printed unless a Logger is given. Progress
// comes as resume.Event values through Options.OnEvent. Errors are those of
// package resume, whose kinds say what to do next: after
// resume.ErrInterrupted the same call, in this process or another, sends what
// is missing.
//
// Sizes are in bytes. A Pusher is safe for concurrent use.
//
// Programs that push with go-containerregistry, oras-go or containerd and want
// to go on doing so need resume.NewTransport instead.
//
// The promise of compatibility is that of package resume.
package pusher
