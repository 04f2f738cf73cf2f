// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// Each Location of Artifact Registry is good for one PATCH or PUT. A session whose
// newest one is used up is lost, which is no failure.
func TestSingleUseLocations(t *testing.T) {
	for name, f := range map[string]func(scripted.Request) scripted.Action{
		"clean":            nil,
		"broken body":      brokenBody(50_000),
		"lost answer":      on(scripted.Patch, 1, scripted.Action{AfterReset: true}),
		"broken twice":     all(brokenBody(50_000), on(scripted.Patch, 2, scripted.Action{BreakBody: true, BodyLimit: 10})),
		"lost commit":      on(scripted.Put, 1, scripted.Action{AfterReset: true}),
		"no commit at all": on(scripted.Put, 1, scripted.Action{BeforeReset: true}),
		"500 to the PATCH": on(scripted.Patch, 1, scripted.Action{After: 500}),
		"503 to the PUT":   on(scripted.Put, 1, scripted.Action{Before: 503}),
		"429":              on(scripted.Patch, 1, scripted.Action{Before: 429}),
	} {
		for _, path := range []scripted.UploadPath{scripted.BlobsUploads, scripted.ArtifactsUploads} {
			for _, one := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, path %d, one PATCH %t", name, path, one), func(t *testing.T) {
					o := scripted.Options{SingleUse: true, OnePatch: one, UploadPath: path, Location: scripted.Relative, Intercept: f}
					inLab(t, o, resume.Options{}, func(l *lab) {
						l.delivers(content(100_000))
					})
				})
			}
		}
	}
}

// No error, log or event quotes an upload location, wherever a registry puts its
// uploads.
func TestLocationsStaySecret(t *testing.T) {
	quoting := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch {
			body := fmt.Sprintf(`{"errors":[{"code":"DENIED","message":"no access to %s","detail":"session %s"}]}`, r.Path, r.Upload)
			return scripted.Action{Before: http.StatusForbidden, Body: []byte(body)}
		}
		return scripted.Action{}
	}
	for _, path := range []scripted.UploadPath{scripted.BlobsUploads, scripted.BlobsUpload, scripted.ArtifactsUploads} {
		for _, f := range []func(scripted.Request) scripted.Action{quoting, on(scripted.Patch, 1, scripted.Action{BeforeReset: true})} {
			inLab(t, scripted.Options{UploadPath: path, Intercept: f}, resume.Options{RetryFor: -1}, func(l *lab) {
				err := l.fails(blobOf(content(1000)), nil)
				texts := []string{err.Error(), fmt.Sprintf("%+v", err), l.log.String()}
				for _, e := range l.events {
					texts = append(texts, fmt.Sprintf("%+v", e))
				}
				for _, s := range texts {
					if strings.Contains(s, "session-0") || strings.Contains(s, "_state") {
						t.Errorf("path %d: %s", path, s)
					}
				}
			})
		}
	}
}

// A commit that a gateway or a rate limit stopped is sent again, also if nobody
// says whether the session lives, as on ECR: no byte is sent twice.
func TestCommitStopped(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusBadGateway} {
		for _, known := range []bool{false, true} {
			o := scripted.ECR()
			o.Intercept = on(scripted.Put, 1, scripted.Action{Before: status})
			ds := resume.MemoryDialects()
			if known {
				ds.Save(host, resume.Dialect{NoStatus: true, StuckRange: true})
			}
			inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
				began := time.Now()
				res := l.delivers(content(100_000))
				if res.Restarts != 0 || res.Sent != 100_000 || time.Since(began) > time.Minute {
					t.Errorf("%d, known %t: %+v after %s", status, known, res, time.Since(began))
				}
			})
		}
	}
}
