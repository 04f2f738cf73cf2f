// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// remote.WithProgress counts what is read of a body. After a break most of it is
// not read again, so that the count ends near 100 %.
func TestRemoteWithProgress(t *testing.T) {
	const size = 40 << 20
	reg := scripted.New(scripted.Options{LooseRange: true})
	t.Cleanup(reg.Close)
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	p, err := proxy.Start(strings.TrimPrefix(srv.URL, "http://"), proxy.Options{
		Buffer: 256 << 10, // sockets that hold more than the transport keeps cost a second reading
		Plan:   proxy.Every(9<<20, proxy.Fault{Kind: proxy.ResetClient}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	var dials atomic.Int64
	base := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	t.Cleanup(base.CloseIdleConnections)
	rt, err := resume.NewTransport(base, resume.TransportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(content(size), types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(p.Addr()+"/team/app:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	updates := make(chan v1.Update, 1)
	var last v1.Update
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			last = u
		}
	}()
	err = remote.Write(ref, img, remote.WithTransport(rt), remote.WithProgress(updates))
	<-done
	if err != nil {
		t.Fatal(err)
	}
	ratio := float64(last.Complete) / float64(last.Total)
	t.Logf("the progress ends at %.0f %%, after %d connections", 100*ratio, dials.Load())
	if dials.Load() < 4 {
		t.Errorf("%d connections: nothing broke", dials.Load())
	}
	if ratio > 1.1 {
		t.Errorf("the progress ends at %.0f %%", 100*ratio)
	}
}
