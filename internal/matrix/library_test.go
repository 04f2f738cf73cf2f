// SPDX-License-Identifier: Apache-2.0

//go:build linux

package matrix

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// passing hides what a transport is, as a wrapper for tracing does.
type passing struct{ http.RoundTripper }

// TestCallersTransport pushes through transports of the caller's own to a
// registry that loses the upload with the connection. They deliver like the
// built-in transport: how much each connection survived is known.
func TestCallersTransport(t *testing.T) {
	for n, o := range map[string]pusher.Options{
		"built in":          {},
		"bare":              {Transport: &http.Transport{}},
		"wrapped":           {Transport: passing{&http.Transport{}}},
		"built in, wrapped": {Wrap: func(rt http.RoundTripper) http.RoundTripper { return passing{rt} }},
	} {
		t.Run(n, func(t *testing.T) {
			t.Parallel()
			at := direct(two, realreg.Options{})(t)
			p := binary.Through(t, at.addr, proxy.Options{Plan: proxy.Every(64*mib, proxy.Fault{Kind: proxy.ResetClient})})
			img := binary.Layout(t, 300, 200*mib)
			idx, err := layout.ImageIndexFromPath(img.Dir)
			if err != nil {
				t.Fatal(err)
			}
			o.Scheme, o.Store = pusher.SchemeHTTP, resume.MemoryStore()
			push, err := pusher.New(o)
			if err != nil {
				t.Fatal(err)
			}
			defer push.CloseIdleConnections()
			ref, err := name.ParseReference(p.Addr()+"/team/app:1", name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			_, err = push.Push(t.Context(), ref, idx)
			ratio := float64(p.Stats().Up) / float64(img.Total)
			t.Logf("forwarded %.3f x the bytes of the image, %d faults", ratio, p.Stats().Faults)
			if err != nil {
				t.Fatal(err)
			}
			if ratio > 1.4 {
				t.Errorf("forwarded %.3f x the bytes of the image, want at most 1.4", ratio)
			}
		})
	}
}
