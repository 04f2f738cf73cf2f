// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
)

// An image is pushed to, read from and copied within each registry that people
// push to, also if that limits the first requests of each kind.
func TestHostedRegistries(t *testing.T) {
	img := newImage(content(1, 3<<20), content(2, 1000))
	for _, r := range scripted.Personalities() {
		for _, limited := range []bool{false, true} {
			t.Run(r.Name, func(t *testing.T) {
				o := r.Options
				o.NoManifestDigest = []string{http.MethodGet}
				if limited {
					o.Intercept = func(q scripted.Request) scripted.Action {
						if q.Seq == 1 {
							return scripted.Action{Before: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}}
						}
						return scripted.Action{}
					}
				}
				inLab(t, o, func(l *lab) {
					ctx, began := context.Background(), time.Now()
					l.pushes("reg.test/team/app:1", img)
					l.has("team/app", "1", img)
					p, err := pusher.New(l.o)
					if err != nil {
						t.Fatal(err)
					}
					ref, err := name.ParseReference("reg.test/team/app:1")
					if err != nil {
						t.Fatal(err)
					}
					repo, err := p.Repository(ctx, ref.Context())
					if err != nil {
						t.Fatal(err)
					}
					stored, err := repo.Find(ctx, ref)
					if err != nil {
						t.Fatal(err)
					}
					if stored.Descriptor.Digest != hash(img.raw) {
						t.Errorf("read %s, want %s", stored.Descriptor.Digest, hash(img.raw))
					}
					l.pushes("reg.test/team/copy:1", stored)
					l.has("team/copy", "1", img)
					if took := time.Since(began); took > 5*time.Minute {
						t.Errorf("took %s", took)
					}
				})
			})
		}
	}
}
