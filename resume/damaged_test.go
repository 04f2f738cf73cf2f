package resume_test

import (
	"testing"
	"time"

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
