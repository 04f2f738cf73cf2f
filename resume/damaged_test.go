// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// A registry that is interrupted while it assembles a blob may be left with a
// session that it answers every question about with 500, as distribution 3 on S3
// is. Another session takes the blob after seconds.
func TestSessionDamagedByBreak(t *testing.T) {
	for name, o := range map[string]scripted.Options{
		"at the commit": {Intercept: on(scripted.Put, 1, scripted.Action{DamageSession: true})},
		"at a PATCH":    {Intercept: on(scripted.Patch, 1, scripted.Action{BreakBody: true, BodyLimit: 100_000, DamageSession: true})},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, o, resume.Options{}, func(l *lab) {
				began := time.Now()
				if res := l.delivers(content(2 * mib)); res.Restarts != 1 {
					t.Errorf("result %+v", res)
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// Only the text of GHCR's 403 says that it is a rate limit. If the connection
// breaks before the text has arrived, the answer is as good as none.
func TestDenialCutOff(t *testing.T) {
	text := []byte(`{"errors":[{"code":"DENIED","message":"` + strings.Repeat(".", 2000) + `you have exceeded a secondary rate limit"}]}`)
	for _, k := range []scripted.Kind{scripted.Post, scripted.Patch, scripted.Put} {
		for down := int64(100); down < 5000; down += 500 {
			o := scripted.GHCR()
			o.Intercept = on(k, 1, scripted.Action{Before: 403, Body: text})
			inLab(t, o, resume.Options{}, func(l *lab) {
				l.net.Latency = latency
				l.net.Plan = func(n int) memnet.Limits {
					if n == 0 {
						return memnet.Limits{Up: -1, Down: down}
					}
					return memnet.Unlimited()
				}
				l.delivers(content(2 * mib))
			})
		}
	}
}

// A registry that holds one byte says "0-0", as one that holds nothing does, and
// Pulp answers 500 to a PATCH at the wrong offset. Three of them end the session.
func TestOneByteOnPulp(t *testing.T) {
	o := scripted.Pulp()
	o.Intercept = on(scripted.Patch, 1, scripted.Action{AfterReset: true})
	inLab(t, o, resume.Options{}, func(l *lab) {
		began := time.Now()
		l.delivers(content(1))
		if took := time.Since(began); took > time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

// Cloudflare's registry and Pulp answer 500 to a commit that they cannot carry out.
// If one session gets nothing else, another is tried.
func TestCommitThatFails(t *testing.T) {
	for name, status := range map[string]scripted.StatusVerbs{"with a status": scripted.HeadAndGet, "without": scripted.NoStatus} {
		t.Run(name, func(t *testing.T) {
			f := func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.Put && r.Session == 1 {
					return scripted.Action{Before: 500}
				}
				return scripted.Action{}
			}
			ds := resume.MemoryDialects()
			ds.Save(host, resume.Dialect{NoStatus: status == scripted.NoStatus, StuckRange: status == scripted.NoStatus})
			inLab(t, scripted.Options{Status: status, Intercept: f}, resume.Options{Dialects: ds}, func(l *lab) {
				began := time.Now()
				l.delivers(content(2 * mib))
				if took := time.Since(began); took > 5*time.Minute {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// What is wrongly remembered of a registry's way to count does not make it a
// registry that holds less than it acknowledged.
func TestOffByOneWronglyRemembered(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{OffByOne: true})
	inLab(t, scripted.Options{Store: scripted.Boundary, Range: scripted.Stuck, MaxChunk: mib}, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		if res := l.delivers(content(3*mib + 1)); res.Restarts != 0 {
			t.Errorf("result %+v", res)
		}
	})
}
