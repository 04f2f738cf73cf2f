// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// ECR closed the connection to a POST for a repository that does not exist. The
// user hears of it long before the budget ends, once.
func TestPostWithoutAnswer(t *testing.T) {
	for posts, warnings := range map[int]int{2: 0, 3: 1, 8: 1} {
		o := scripted.Options{Intercept: func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Post && r.Seq <= posts {
				return scripted.Action{HangUp: true}
			}
			return scripted.Action{}
		}}
		inLab(t, o, resume.Options{}, func(l *lab) {
			l.net.Latency = latency
			l.delivers(content(10_000))
			got := 0
			for _, e := range l.events {
				if e.Kind == resume.Warned {
					got++
				}
			}
			if got != warnings {
				t.Errorf("%d POSTs without an answer: %d warnings, want %d", posts, got, warnings)
			}
		})
	}
}

// A repository that does not exist is an error of a type of its own, in the words of
// ECR and of Artifact Registry, which does not tell it from a denial.
func TestMissingRepository(t *testing.T) {
	for _, c := range []struct {
		status  int
		body    string
		kind    error
		missing bool
		certain bool
	}{
		{404, `{"errors":[{"code":"NAME_UNKNOWN","message":"The repository with name 'app' does not exist in the registry with id '1'"}]}`, resume.ErrRefused, true, true},
		{404, `{"errors":[{"code":"NAME_UNKNOWN","message":"Repository \"team\" not found"}]}`, resume.ErrRefused, true, true},
		{403, `{"errors":[{"code":"DENIED","message":"Permission \"artifactregistry.repositories.uploadArtifacts\" denied on resource \"x\" (or it may not exist)"}]}`, resume.ErrDenied, true, false},
		{403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, resume.ErrDenied, false, false},
	} {
		o := scripted.Options{Intercept: func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Post {
				return scripted.Action{Before: c.status, Body: []byte(c.body), Header: http.Header{"Content-Type": {"application/json"}}}
			}
			return scripted.Action{}
		}}
		inLab(t, o, resume.Options{}, func(l *lab) {
			e := l.fails(blobOf(content(100)), c.kind)
			var missing *resume.MissingRepositoryError
			if errors.As(e, &missing) != c.missing {
				t.Fatalf("got %v", e)
			}
			if c.missing && (missing.Certain != c.certain || missing.Repository != repository) {
				t.Errorf("got %+v", missing)
			}
			if n := l.count(scripted.Post); n != 1 {
				t.Errorf("%d POSTs", n)
			}
		})
	}
}

// ECR has no place for the empty blob, and answers 400. Cloudflare's registry, and
// docker-registry 2.8 on S3, answer 500. It is tried a few times at most, and the
// error has the registry's words.
func TestEmptyBlobRefused(t *testing.T) {
	for status, most := range map[int]int{http.StatusBadRequest: 2, http.StatusInternalServerError: 3} {
		for _, p := range scripted.Personalities() {
			p.Options.NoEmpty = status
			inLab(t, p.Options, resume.Options{}, func(l *lab) {
				began := time.Now()
				e := l.fails(blobOf(nil), resume.ErrRefused)
				var content *resume.ContentError
				if text := e.Error(); !strings.Contains(text, "does not have any parts") || !errors.As(e, &content) {
					t.Errorf("%s, %d: got %q", p.Name, status, text)
				}
				if n := l.count(scripted.Put); n > most || time.Since(began) > time.Minute {
					t.Errorf("%s, %d: %d PUTs in %s", p.Name, status, n, time.Since(began))
				}
			})
		}
	}
}

// A commit of the empty blob that fails by chance is tried again.
func TestEmptyBlobAfterFailures(t *testing.T) {
	o := scripted.Options{Intercept: func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Put && r.Seq < 3 {
			return scripted.Action{Before: http.StatusInternalServerError}
		}
		return scripted.Action{}
	}}
	inLab(t, o, resume.Options{}, func(l *lab) {
		if _, err := l.client.Upload(context.Background(), blobOf(nil)); err != nil {
			t.Error(err)
		}
	})
}
