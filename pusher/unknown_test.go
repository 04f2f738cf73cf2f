// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// The registry says that it has blobs, and then refuses the manifest because it
// does not, as some versions of Artifactory and a registry under garbage
// collection do. These blobs are sent again.
func TestUnknownBlobsAreSentAgain(t *testing.T) {
	img := newImage(content(1, 100), content(2, 200), content(3, 300))
	phantoms := []string{digest.FromBytes(img.layers[1]).String(), digest.FromBytes(img.layers[2]).String()}
	for name, o := range map[string]scripted.Options{
		"named":               {},
		"as BLOB_UNKNOWN":     {UnknownBlob: "BLOB_UNKNOWN"},
		"not named":           {HidesUnknownBlob: true},
		"fragile, with a cut": {Store: scripted.Fragile, Intercept: onceOn(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 10})},
		"lost commit":         {Intercept: onceOn(scripted.Put, 3, scripted.Action{AfterReset: true})},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, o, func(l *lab) {
				for i, d := range phantoms {
					l.reg.PutPhantom("a", d, int64(200+i*100))
				}
				r := l.pushes("reg.test/a:1", img)
				l.has("a", "1", img)
				for _, b := range r.Blobs {
					if b.State != pusher.BlobUploaded {
						t.Errorf("%s is reported as %s", b.Digest, b.State)
					}
				}
			})
		})
	}
}

// Garbage collection takes a blob away that this push has just uploaded. It is sent
// again, once.
func TestUploadedBlobIsSentAgain(t *testing.T) {
	img := newImage(content(1, 100), content(2, 200))
	lost := digest.FromBytes(img.layers[1]).String()
	for _, hides := range []bool{false, true} {
		for _, times := range []int{1, 5} {
			var reg *scripted.Registry
			o := scripted.Options{HidesUnknownBlob: hides, Intercept: func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.PutManifest && r.Seq <= times {
					reg.DropBlob("a", lost)
					reg.PutPhantom("a", lost, 200) // gone, and no fault of the client's
				}
				return scripted.Action{}
			}}
			inLab(t, o, func(l *lab) {
				reg = l.reg
				_, err := l.push("reg.test/a:1", img)
				puts := l.count(scripted.PutManifest)
				if times == 1 && (err != nil || puts != 2) || times > 1 && (!errors.Is(err, resume.ErrRefused) || puts != 2) {
					t.Errorf("hides %t, dropped %d times: %d PUTs of the manifest, %v", hides, times, puts, err)
				}
			})
		}
	}
}

func onceOn(k scripted.Kind, seq int, a scripted.Action) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		if r.Kind == k && r.Seq == seq {
			return a
		}
		return scripted.Action{}
	}
}

// Blobs that two manifests share are sent again once.
func TestUnknownBlobOfTwoManifests(t *testing.T) {
	shared := content(1, 100)
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: newImage(shared, content(2, 200))}, mutate.IndexAddendum{Add: newImage(shared, content(3, 300))})
	inLab(t, scripted.Options{}, func(l *lab) {
		l.reg.PutPhantom("a", digest.FromBytes(shared).String(), 100)
		l.pushes("reg.test/a:1", idx)
		if n := l.count(scripted.Post); n != 5 {
			t.Errorf("%d uploads, want 5", n)
		}
	})
}

// A registry that goes on refusing ends the push, with its words.
func TestUnknownBlobForEver(t *testing.T) {
	img := newImage(content(1, 100))
	phantom := digest.FromBytes(img.layers[0]).String()
	refuse := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.PutManifest {
			return scripted.Action{Before: 400, Body: []byte(`{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown","detail":"` + phantom + `"}]}`)}
		}
		return scripted.Action{}
	}
	inLab(t, scripted.Options{Intercept: refuse}, func(l *lab) {
		l.reg.PutPhantom("a", phantom, 100)
		_, err := l.push("reg.test/a:1", img)
		if !errors.Is(err, resume.ErrRefused) || !named(err) || !strings.Contains(err.Error(), "MANIFEST_BLOB_UNKNOWN") {
			t.Errorf("got %v", err)
		}
		if n := l.count(scripted.PutManifest); n != 2 {
			t.Errorf("the manifest was sent %d times, want 2", n)
		}
		if l.reg.Blob("a", phantom) == nil {
			t.Error("the blob was not sent again")
		}
	})
}

// A registry whose answers about manifests have no digest is believed by the
// bytes it gives.
func TestManifestDigestIsComputed(t *testing.T) {
	img := newImage(content(1, 100))
	inLab(t, scripted.Options{NoManifestDigest: []string{http.MethodHead, http.MethodGet}}, func(l *lab) {
		l.pushes("reg.test/a:1", img)
		l.o.NoClobber = true
		r := l.pushes("reg.test/a:1", img)
		if n := l.count(scripted.PutManifest); n != 1 || !r.Manifests[0].Existed {
			t.Errorf("the manifest was written %d times, want once; report %+v", n, r.Manifests)
		}
		var exists *pusher.ExistsError
		other := newImage(content(2, 100))
		if _, err := l.push("reg.test/a:1", other); !errors.As(err, &exists) || exists.Digest != digest.FromBytes(img.raw) {
			t.Errorf("got %v, want the digest of what is there", err)
		}
	})
}

// A registry that writes manifests from a queue, such as Pulp, answers 429 until
// the manifest is there. That is no failure.
func TestManifestInAQueue(t *testing.T) {
	img := newImage(content(1, 100))
	busy := scripted.Action{Before: 429, Header: http.Header{"Retry-After": {"3"}}}
	for name, c := range map[string]struct {
		answers []scripted.Action // to the PUTs
		puts    int
	}{
		"stored meanwhile":            {[]scripted.Action{{After: 429}, busy, busy, busy, busy}, 1},
		"stored by a later try":       {[]scripted.Action{busy, busy, busy, busy, {}}, 5},
		"stored, and without a delay": {[]scripted.Action{{Before: 429}, {Before: 429}, {Before: 429}, {After: 429}}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.PutManifest && r.Seq <= len(c.answers) {
					return c.answers[r.Seq-1]
				}
				return scripted.Action{}
			}
			inLab(t, scripted.Options{Intercept: f}, func(l *lab) {
				l.o.Tries = 2
				broken := 0
				l.o.OnEvent = func(e resume.Event) {
					if e.Kind == resume.Broken {
						broken++
					}
				}
				r := l.pushes("reg.test/a:1", img)
				l.has("a", "1", img)
				if n := l.count(scripted.PutManifest); n != c.puts || broken != 0 || r.Breaks != 0 {
					t.Errorf("%d PUTs, %d broken; want %d, 0", n, broken, c.puts)
				}
				var last time.Time
				for _, q := range l.reg.Requests() {
					if q.Kind != scripted.PutManifest {
						continue
					}
					if q.At.Sub(last) < 300*time.Millisecond {
						t.Errorf("the manifest was sent again after %s", q.At.Sub(last))
					}
					last = q.At
				}
			})
		})
	}
}
