package resume_test

import (
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

// ECR has no place for the empty blob. It is tried twice at most, and the error has the
// registry's words.
func TestEmptyBlobRefused(t *testing.T) {
	body := []byte(`{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"the upload does not have any parts"}]}`)
	o := scripted.Options{Intercept: func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Put {
			return scripted.Action{Before: http.StatusBadRequest, Body: body, Header: http.Header{"Content-Type": {"application/json"}}}
		}
		return scripted.Action{}
	}}
	inLab(t, o, resume.Options{}, func(l *lab) {
		began := time.Now()
		e := l.fails(blobOf(nil), resume.ErrRefused)
		if text := e.Error(); !strings.Contains(text, "does not have any parts") {
			t.Errorf("got %q", text)
		}
		if n := l.count(scripted.Put); n > 2 || time.Since(began) > time.Minute {
			t.Errorf("%d PUTs in %s", n, time.Since(began))
		}
	})
}
