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
// Nothing is logged and nothing printed unless a Logger is given.
package pusher
