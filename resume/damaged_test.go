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
	text := []byte(`{"errors":[{"code":"DENIED","message":"you have exceeded a secondary rate limit` + strings.Repeat(".", 2000) + `"}]}`)
	for _, k := range []scripted.Kind{scripted.Post, scripted.Patch, scripted.Put} {
		o := scripted.GHCR()
		o.Intercept = on(k, 1, scripted.Action{Before: 403, Body: text})
		inLab(t, o, resume.Options{}, func(l *lab) {
			l.net.Latency = latency
			l.net.Plan = func(n int) memnet.Limits {
				if n == 0 {
					return memnet.Limits{Up: -1, Down: map[scripted.Kind]int64{scripted.Post: 900, scripted.Patch: 1400, scripted.Put: 1800}[k]}
				}
				return memnet.Unlimited()
			}
			l.delivers(content(2 * mib))
			if n := l.net.Breaks(); n != 1 {
				t.Errorf("%s: %d breaks, want 1", k, n)
			}
		})
	}
}
