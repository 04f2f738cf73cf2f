// SPDX-License-Identifier: Apache-2.0

package slogger_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume/slogger"
)

type traced struct{}

// tracing is a handler that notes what a tracing one takes from the context.
type tracing struct {
	slog.Handler
	mu     *sync.Mutex
	traces map[any]int
}

func (h tracing) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.traces[ctx.Value(traced{})]++
	return h.Handler.Handle(ctx, r)
}

func TestLevelsAndFields(t *testing.T) {
	var out bytes.Buffer
	l := slogger.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	l.Debug("not wanted")
	l.WithField("digest", "sha256:a").Info("upload resumed")
	l.WithError(errors.New("reset")).Warn("request broken")
	l.Error("no")
	want := `level=INFO msg="upload resumed" digest=sha256:a
level=WARN msg="request broken" error=reset
level=ERROR msg=no
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// Each line of a push has the context of the push.
func TestContext(t *testing.T) {
	reg := scripted.New(scripted.Options{})
	t.Cleanup(reg.Close)
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	h := tracing{slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}), &sync.Mutex{}, map[any]int{}}
	p, err := pusher.New(pusher.Options{Keychain: authn.NewMultiKeychain(), Logger: slogger.New(all{h})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("hello"), types.DockerLayer))
	if err != nil {
		t.Fatal(err)
	}
	for _, trace := range []string{"a", "b"} {
		ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/app:" + trace)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Push(context.WithValue(t.Context(), traced{}, trace), ref, img); err != nil {
			t.Fatal(err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.traces["a"] == 0 || h.traces["b"] == 0 || h.traces[nil] > 0 {
		t.Errorf("lines by trace: %v", h.traces)
	}
}

// all wants every level.
type all struct{ slog.Handler }

func (all) Enabled(context.Context, slog.Level) bool { return true }

func ExampleNew() {
	h := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	logger := slogger.New(h) // for the Logger of any Options
	logger.WithField("offset", 4096).Info("upload resumed")
	// Output:
	// level=INFO msg="upload resumed" offset=4096
}
