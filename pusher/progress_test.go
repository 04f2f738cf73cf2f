// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
)

// Updates end at 100 %, however often connections break.
func TestProgress(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 60_000, Down: -1} }
		img := newImage(content(1, 500_000), content(2, 100_000))
		total := 600_000 + int64(len(img.config))
		updates := make(chan v1.Update, 10_000)
		progress := pusher.NewProgress(updates)
		l.o.OnEvent = progress.Event
		r, err := l.push("reg.test/team/app:1", img)
		progress.Close(err)
		progress.Close(errors.New("too late"))
		if err != nil || r.Breaks < 5 {
			t.Fatalf("%v, %+v", err, r)
		}
		n, back, last := 0, 0, v1.Update{}
		for u := range updates {
			if u.Error != nil || u.Total != total || u.Complete < 0 || u.Complete > u.Total {
				t.Errorf("update %+v, want a total of %d", u, total)
			}
			if n++; u.Complete < last.Complete {
				back++
			}
			last = u
		}
		if last.Complete != total || n < 10 {
			t.Errorf("%d updates, the last is %+v, want %d bytes", n, last, total)
		}
	})
}

// A push does not wait for who receives updates, and its error is the last one.
func TestProgressOfAFailure(t *testing.T) {
	inLab(t, scripted.Options{}, func(l *lab) {
		updates := make(chan v1.Update, 1)
		progress := pusher.NewProgress(updates)
		l.o.OnEvent = progress.Event
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference("reg.test/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = p.Push(ctx, ref, newImage(content(1, 1000)))
		go progress.Close(err)
		var last v1.Update
		for u := range updates {
			last = u
		}
		if err == nil || !errors.Is(last.Error, err) {
			t.Errorf("the last update is %+v, want the error %v", last, err)
		}
	})
}
