// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"context"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

type pushName struct{}

// One bar for an index needs the totals first, an end for each blob and each
// manifest, and with each event what it is about.
func TestEventsOfAnIndex(t *testing.T) {
	shared := content(9, 70_000)
	a, b := newImage(shared, content(1, 1000)), newImage(shared, content(2, 1000), shared)
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: a}, mutate.IndexAddendum{Add: b})
	want := resume.Total{Blobs: 5, Manifests: 3, Bytes: 70_000 + 2000 + int64(len(a.config)+len(b.config))}
	ref, err := name.ParseReference("reg.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := idx.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	inLab(t, scripted.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 30_000, Down: -1} }
		var events []resume.Event
		l.o.OnEvent = func(e resume.Event) { events = append(events, e) }
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		for _, round := range []string{"first", "second"} {
			events = nil
			ctx := context.WithValue(context.Background(), pushName{}, round)
			if _, err := p.Push(ctx, ref, &pusher.Bundle{Image: idx, Tags: []string{"2"}}); err != nil {
				t.Fatal(err)
			}
			if events[0].Kind != resume.EventPlanned {
				t.Errorf("%s: the first event is %q, want %q", round, events[0].Kind, resume.EventPlanned)
			}
			broken, blobs, manifests, tags := 0, map[digest.Digest]int64{}, map[digest.Digest]bool{}, map[string]digest.Digest{}
			for _, e := range events {
				if e.Total != want || e.Reference != "reg.test/a:1" || e.Repository != "reg.test/a" || e.Time.IsZero() {
					t.Errorf("%s: event %+v, want total %+v", round, e, want)
				}
				if e.Context == nil || e.Context.Value(pushName{}) != round {
					t.Errorf("%s: a %s event has not the context of the push", round, e.Kind)
				}
				switch e.Kind {
				case resume.Existed, resume.Mounted, resume.Committed:
					blobs[e.Digest] = e.Size
				case resume.EventPublished:
					if manifests[e.Digest] = true; e.Tag != "" {
						tags[e.Tag] = e.Digest
					}
					if e.MediaType == "" || e.Size == 0 {
						t.Errorf("%s: event %+v has no type or size", round, e)
					}
				case resume.Broken:
					broken++
				}
			}
			var bytes int64
			for _, n := range blobs {
				bytes += n
			}
			if got := (resume.Total{Blobs: len(blobs), Manifests: len(manifests), Bytes: bytes}); got != want {
				t.Errorf("%s: the events add up to %+v, want %+v", round, got, want)
			}
			if root := digest.FromBytes(raw); len(tags) != 2 || tags["1"] != root || tags["2"] != root {
				t.Errorf("%s: published tags %v, want 1 and 2 of %s", round, tags, root)
			}
			if round == "first" && broken == 0 {
				t.Error("nothing broke")
			}
		}
	})
}

// An image that is made while it is pushed has what is known of it as its total,
// and the whole when it is finished.
func TestEventsOfADelivery(t *testing.T) {
	img := newImage(content(1, 1000), content(2, 2000))
	inLab(t, scripted.Options{}, func(l *lab) {
		var totals []resume.Total
		l.o.OnEvent = func(e resume.Event) {
			if e.Kind == resume.EventPlanned {
				totals = append(totals, e.Total)
			}
		}
		p, err := pusher.New(l.o)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference("reg.test/a:1")
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Open(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		early := resume.Total{Blobs: 3, Manifests: 1}
		d.Plan(context.Background(), early)
		if _, err := d.Finish(context.Background(), img); err != nil {
			t.Fatal(err)
		}
		whole := early
		whole.Bytes = 3000 + int64(len(img.config))
		if len(totals) != 2 || totals[0] != early || totals[1] != whole {
			t.Errorf("totals %+v, want %+v and %+v", totals, early, whole)
		}
	})
}
