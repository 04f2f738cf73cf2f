// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/resume"
)

// hostedShelf is a registry that redirects a blob to storage by URLs that are
// signed for one request, and limits the rate of requests. Storage breaks the
// connection after every piece.
type hostedShelf struct {
	blob    []byte
	piece   int
	storage string // where blobs are redirected to
	before  []func(http.ResponseWriter)

	mu     sync.Mutex
	signed map[string]bool
	ranges []string // asked of the storage
	faults []string
}

func (s *hostedShelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(r.URL.Path, "/v2/") {
		if r.Header.Get("Authorization") == "" {
			s.faults = append(s.faults, "no credentials for the registry")
		}
		if len(s.before) > 0 {
			s.before[0](w)
			s.before = s.before[1:]
			return
		}
		key := r.Method + strconv.Itoa(len(s.signed))
		s.signed[key] = true
		w.Header().Set("Location", s.storage+"/storage?signed="+key)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	key := r.URL.Query().Get("signed")
	if !s.signed[key] || !strings.HasPrefix(key, r.Method) {
		s.faults = append(s.faults, "a URL was used twice, or for "+r.Method)
		w.WriteHeader(http.StatusForbidden)
		return
	}
	s.signed[key] = false
	if r.Header.Get("Authorization") != "" && s.storage != "" {
		s.faults = append(s.faults, "credentials for the storage")
	}
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	body, status := s.blob, http.StatusOK
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		at, _ := strconv.Atoi(strings.TrimSuffix(from, "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(body)-1, len(body)))
		body, status = body[at:], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if len(body) > s.piece {
		w.Write(body[:s.piece])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	w.Write(body)
}

// A blob is read from registries that redirect it to storage, or to another path
// of their own, that limit requests, and whose connections break.
func TestFetchHosted(t *testing.T) {
	status := func(code int, header, value, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set(header, value)
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	for name, storage := range map[string]string{"elsewhere": "http://other.test", "at home": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &hostedShelf{blob: content(1_000_000), piece: 300_000, storage: storage, signed: map[string]bool{}}
				s.before = []func(http.ResponseWriter){
					status(429, "Retry-After", "20", ""),
					status(429, "X-None", "", `{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 30s, allowed: 2000/minute"}]}`),
					status(403, "X-None", "", `{"errors":[{"code":"DENIED","message":"You have exceeded a secondary rate limit."}]}`),
					status(502, "X-None", "", ""),
				}
				network := memnet.New()
				srv := &http.Server{Handler: s}
				for _, host := range []string{"reg.test:80", "other.test:80"} {
					ln, err := network.Listen(host)
					if err != nil {
						t.Fatal(err)
					}
					go srv.Serve(ln)
				}
				tr := wire.New(wire.Options{UserAgent: "rpush/test", Dial: network.Dial})
				defer func() {
					tr.CloseIdleConnections()
					srv.Close()
					time.Sleep(time.Hour)
					synctest.Wait()
				}()
				c := clientAt(t, resume.Options{PlainHTTP: true, Transport: &basic{inner: tr}, External: tr, Tries: 3})
				began := time.Now()
				r := c.Fetch(t.Context(), digest.FromBytes(s.blob), int64(len(s.blob)), 0)
				got, err := io.ReadAll(r)
				r.Close()
				if err != nil || !bytes.Equal(got, s.blob) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if took := time.Since(began); took < 110*time.Second || took > 3*time.Minute {
					t.Errorf("took %s; the registry asked to wait 20 s, 30 s and a minute", took)
				}
				want := []string{"", "bytes=300000-", "bytes=600000-", "bytes=900000-"}
				if fmt.Sprint(s.ranges) != fmt.Sprint(want) {
					t.Errorf("asked for %q, want %q", s.ranges, want)
				}
				for _, f := range s.faults {
					t.Error(f)
				}
			})
		})
	}
}

func clientAt(t *testing.T, o resume.Options) *resume.Client {
	t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	c, err := resume.New(repo, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
