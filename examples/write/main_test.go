// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/examples/internal/trial"
	"github.com/rpush-go/rpush/internal/testgear/nginx"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

func push(t *testing.T) trial.Push {
	return func(dir, reference string, resuming bool) error {
		rt := http.DefaultTransport
		if resuming {
			var err error
			if rt, err = resume.NewTransport(http.DefaultTransport, resume.TransportOptions{}); err != nil {
				return err
			}
		}
		return write(t.Context(), dir, reference, rt)
	}
}

func TestArrives(t *testing.T) { trial.Arrives(t, push(t)) }

// The set-up of the report: distribution 2 behind an nginx that buffers.
func TestArrivesAsReported(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{Tool: "docker-registry"})
	front := nginx.Start(t, reg.Addr, nginx.Options{})
	trial.ArrivesBehind(t, reg, front.Addr, push(t), 1.6)
}

func TestProgram(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := trial.Image(t, 1, 20*trial.MiB, 3*trial.MiB)
	p := trial.Dying(t, reg.Addr, 8*trial.MiB)
	exit, out := trial.Run(t, nil, trial.Build(t), img.Dir, p.Addr()+"/example/app:1")
	if exit != 0 || !strings.Contains(out, "resumed at byte") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	trial.Same(t, img, reg.Addr+"/example/app:1")
}
