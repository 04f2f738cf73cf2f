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
