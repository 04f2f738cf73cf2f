// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"errors"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     scripted.Options
		class resume.Class
		blind bool
	}{
		{"exact", scripted.Options{}, resume.Exact, false},
		{"GET only", scripted.Options{Status: scripted.GetOnly}, resume.Exact, false},
		{"parts", scripted.Options{PartSize: 512 << 10}, resume.Exact, false},
		{"boundary", scripted.Options{Store: scripted.Boundary}, resume.Boundary, false},
		{"2.x behind a proxy", scripted.Options{Store: scripted.Boundary, StaleIsGone: true, LooseRange: true}, resume.Boundary, false},
		{"fragile", scripted.Options{Store: scripted.Fragile}, resume.Fragile, false},
		{"2.x", scripted.Options{StaleIsGone: true, LooseRange: true}, resume.Fragile, false},
		{"blind", scripted.Options{Status: scripted.NoStatus}, resume.Fragile, true},
		{"monolithic", scripted.Options{OnePatch: true}, resume.Monolithic, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ds := resume.MemoryDialects()
			inLab(t, c.o, resume.Options{Dialects: ds}, func(l *lab) {
				p, err := l.client.Probe(l.t.Context())
				if err != nil || p.Class != c.class || p.Blind != c.blind {
					t.Errorf("got %+v, %v; want %s", p, err, c.class)
				}
				learns(t, ds, c.class)
				if n := l.count(scripted.Cancel); n != 1 {
					t.Errorf("%d sessions cancelled, want 1", n)
				}
				if len(p.Steps) < 4 || p.Steps[0].Status != 202 {
					t.Errorf("steps %+v", p.Steps)
				}
				if n := l.reg.Uploads(); n != 0 && c.class != resume.Fragile {
					t.Errorf("%d sessions are left", n)
				}
			})
		})
	}
}

// What a probe says of the registries that people push to.
func TestProbeOfHostedRegistries(t *testing.T) {
	classes := map[string]resume.Class{
		"ghcr": resume.Boundary, "ecr": resume.Exact, "gar": resume.Monolithic, "s3": resume.Boundary, "harbor": resume.Fragile,
		"jfrog": resume.Fragile, "r2": resume.Boundary, "pulp": resume.Boundary, "edge": resume.Boundary,
	}
	for _, r := range scripted.Personalities() {
		t.Run(r.Name, func(t *testing.T) {
			ds := resume.MemoryDialects()
			inLab(t, r.Options, resume.Options{Dialects: ds}, func(l *lab) {
				p, err := l.client.Probe(l.t.Context())
				if err != nil || p.Class != classes[r.Name] || p.Blind != (r.Name == "ecr") {
					t.Errorf("got %+v, %v; want %s", p, err, classes[r.Name])
				}
				// What was learnt lets a push through breaks.
				l.net.Latency = latency
				l.delivers(content(12 * mib))
			})
			if d, _ := ds.Load(host); r.Name == "ecr" && (!d.NoStatus || !d.StuckRange) {
				t.Errorf("learnt %+v", d)
			}
		})
	}
}

func TestProbeFails(t *testing.T) {
	for kind, want := range map[scripted.Kind]error{scripted.Post: resume.ErrDenied, scripted.Patch: resume.ErrDenied, scripted.Status: resume.ErrDenied} {
		inLab(t, scripted.Options{Intercept: on(kind, 1, scripted.Action{Before: 403})}, resume.Options{}, func(l *lab) {
			p, err := l.client.Probe(l.t.Context())
			if !errors.Is(err, want) || p == nil {
				t.Errorf("%s denied: %v", kind, err)
			}
		})
	}
}
