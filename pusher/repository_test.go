// SPDX-License-Identifier: Apache-2.0

package pusher_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func host(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func quiet(o ...registry.Option) http.Handler {
	return registry.New(append(o, registry.Logger(log.New(io.Discard, "", 0)))...)
}

func tagOf(t *testing.T, s string) name.Tag {
	t.Helper()
	tag, err := name.NewTag(s)
	if err != nil {
		t.Fatal(err)
	}
	return tag
}

func newPusher(t *testing.T, o pusher.Options) *pusher.Pusher {
	t.Helper()
	o.Scheme = pusher.SchemeHTTP
	o.RetryFor = -1
	p, err := pusher.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.CloseIdleConnections)
	return p
}

// basic gives everybody the same credentials.
type basic struct{}

func (basic) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "me", Password: "secret"}, nil
}

// A registry that keeps its manifests and blobs elsewhere is read from there,
// and elsewhere gets no credentials.
func TestRepositoryRedirects(t *testing.T) {
	store := quiet()
	var redirected, leaked atomic.Int32
	elsewhere := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		redirected.Add(1)
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/storage")
		store.ServeHTTP(w, r)
	}))
	from := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && (strings.Contains(r.URL.Path, "/blobs/") || strings.Contains(r.URL.Path, "/manifests/")) {
			http.Redirect(w, r, "http://"+elsewhere+"/storage"+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		store.ServeHTTP(w, r)
	}))
	img, err := random.Image(10_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	p := newPusher(t, pusher.Options{Keychain: basic{}})
	if _, err := p.Push(t.Context(), tagOf(t, from+"/app:1"), img); err != nil {
		t.Fatal(err)
	}
	repo, err := p.Repository(t.Context(), tagOf(t, from+"/app:1").Context())
	if err != nil {
		t.Fatal(err)
	}
	found, err := repo.Find(t.Context(), tagOf(t, from+"/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	to := host(t, quiet())
	r, err := p.Push(t.Context(), tagOf(t, to+"/copy:1"), found)
	want, _ := img.Digest()
	if err != nil || r.Digest.String() != want.String() {
		t.Fatalf("%s, %v, want %s", r.Digest, err, want)
	}
	if redirected.Load() < 5 || leaked.Load() != 0 {
		t.Errorf("%d requests elsewhere, %d of them with credentials", redirected.Load(), leaked.Load())
	}
	if _, err := repo.Find(t.Context(), tagOf(t, from+"/app:none")); !errors.Is(err, resume.ErrSource) {
		t.Errorf("no such tag: %v", err)
	}
	if tags, err := repo.Tags(t.Context()); err != nil || len(tags) != 1 || tags[0] != "1" {
		t.Errorf("tags %v, %v", tags, err)
	}
}

// Where the registry lists referrers itself it is left to it; where it does
// not, the list is kept under the fallback tag, once.
func TestReferrers(t *testing.T) {
	for _, native := range []bool{true, false} {
		addr := host(t, quiet(registry.WithReferrersSupport(native)))
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		desc, err := partial.Descriptor(img)
		if err != nil {
			t.Fatal(err)
		}
		friend, err := random.Image(50, 1)
		if err != nil {
			t.Fatal(err)
		}
		signature := mutate.Subject(friend, *desc).(v1.Image)
		p := newPusher(t, pusher.Options{})
		for range 2 {
			if _, err := p.Push(t.Context(), tagOf(t, addr+"/app:1"), &pusher.Bundle{
				Image: img, Tags: []string{"2"}, Referrers: []remote.Taggable{signature},
			}); err != nil {
				t.Fatal(err)
			}
		}
		repo, err := p.Repository(t.Context(), tagOf(t, addr+"/app:1").Context())
		if err != nil {
			t.Fatal(err)
		}
		tags, err := repo.Tags(t.Context())
		if want := map[bool]int{true: 2, false: 3}[native]; err != nil || len(tags) != want {
			t.Errorf("native %v: the tags %v, %v; want %d", native, tags, err, want)
		}
		found, err := repo.Find(t.Context(), tagOf(t, addr+"/app:2"))
		if err != nil {
			t.Fatal(err)
		}
		all, err := repo.Referrers(t.Context(), digest.Digest(found.Descriptor.Digest.String()))
		own, _ := signature.Digest()
		if err != nil || len(all) != 1 || all[0].Digest != own {
			t.Errorf("native %v: referrers %v, %v, want %s", native, all, err, own)
		}
	}
}

// noBase gives a token, or nothing where rights in secret/base are asked for too.
func noBase(w http.ResponseWriter, r *http.Request, token string, refused *atomic.Int32) {
	if strings.Contains(r.URL.RawQuery, "secret%2Fbase") {
		refused.Add(1)
		w.WriteHeader(http.StatusForbidden)
		return
	}
	fmt.Fprintf(w, `{"token":%q}`, token)
}

// A token server that gives nothing if one scope is not granted is asked
// again for what is needed.
func TestMountScopeRefused(t *testing.T) {
	blobs := quiet()
	var refused atomic.Int32
	var addr string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			noBase(w, r, "good", &refused)
			return
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+addr+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, r)
	})
	addr = host(t, h)
	img, err := random.Image(100, 2)
	if err != nil {
		t.Fatal(err)
	}
	base := tagOf(t, addr+"/secret/base:1").Context()
	r, err := newPusher(t, pusher.Options{MountFrom: []name.Repository{base}}).Push(t.Context(), tagOf(t, addr+"/app:1"), img)
	if err != nil || r.Sent == 0 || refused.Load() == 0 {
		t.Errorf("%v, %d bytes sent, %d tokens refused", err, r.Sent, refused.Load())
	}
}

// A mount that is not allowed costs nothing later: when the token ends, the
// next one is asked for without it.
func TestScopeOfAMountIsForgotten(t *testing.T) {
	blobs := quiet()
	var age, refused atomic.Int32 // the token that is good
	var addr string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			noBase(w, r, fmt.Sprint("good", age.Load()), &refused)
			return
		}
		scope := "repository:app:pull,push"
		mount := r.URL.Query().Has("mount")
		if mount {
			scope += " repository:secret/base:pull"
		}
		if r.Header.Get("Authorization") != fmt.Sprint("Bearer good", age.Load()) || mount {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+addr+`/token",service="x",scope="`+scope+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, r)
	})
	addr = host(t, h)
	d, err := newPusher(t, pusher.Options{}).Open(t.Context(), tagOf(t, addr+"/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		content := fmt.Sprint("blob ", i)
		b := resume.Blob{Digest: digest.FromString(content), Size: int64(len(content)), Open: func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content)), nil
		}}
		if held, err := d.Held(t.Context(), b.Digest, b.Size, "", addr+"/secret/base"); held || err != nil {
			t.Fatalf("held %v, %v", held, err)
		}
		age.Add(1)
		if err := d.Upload(t.Context(), b, ""); err != nil {
			t.Fatalf("blob %d: %v", i, err)
		}
	}
	if refused.Load() == 0 {
		t.Error("nothing was refused")
	}
}

// A connection that breaks within an answer is a break, too; what is too long
// is refused, and not cut.
func TestAnswersAreWhole(t *testing.T) {
	store := quiet()
	var breaks, long atomic.Int32
	reg := host(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path == "/v2/" {
			store.ServeHTTP(w, r)
			return
		}
		if long.Load() > 0 {
			w.Header().Set("Content-Type", "application/json")
			w.Write(make([]byte, 5<<20))
			return
		}
		all := httptest.NewRecorder()
		store.ServeHTTP(all, r)
		for k, v := range all.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(all.Body.Len()))
		w.WriteHeader(all.Code)
		if breaks.Add(1)%2 == 0 {
			w.Write(all.Body.Bytes())
			return
		}
		w.Write(all.Body.Bytes()[:all.Body.Len()/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag := tagOf(t, reg+"/team/app:1")
	p, err := pusher.New(pusher.Options{Scheme: pusher.SchemeHTTP, RetryFor: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Push(context.Background(), tag, img); err != nil {
		t.Fatal(err)
	}
	want, _ := img.RawManifest()
	doc, err := p.Manifest(context.Background(), tag)
	if err != nil || string(doc.Raw) != string(want) {
		t.Errorf("over a connection that breaks the manifest is %.100s, %v", doc, err)
	}
	r, err := p.Repository(context.Background(), tag.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tags, err := r.Tags(context.Background()); err != nil || len(tags) != 1 {
		t.Errorf("over a connection that breaks the tags are %q, %v", tags, err)
	}
	if breaks.Load() < 4 {
		t.Errorf("%d answers, none was broken", breaks.Load())
	}
	long.Add(1)
	if _, err := p.Manifest(context.Background(), tag); !errors.Is(err, resume.ErrRefused) || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("an answer that is too long gave %v", err)
	}
}
