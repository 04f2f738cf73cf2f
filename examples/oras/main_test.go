// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"testing"

	"github.com/rpush-go/rpush/examples/internal/trial"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

func TestArrives(t *testing.T) {
	trial.Arrives(t, func(dir, reference string, resuming bool) error {
		rt := http.DefaultTransport
		if resuming {
			// No spool: the layout's files have to do.
			var err error
			if rt, err = resume.NewTransport(http.DefaultTransport, resume.TransportOptions{SpoolLimit: -1}); err != nil {
				return err
			}
		}
		return push(t.Context(), dir, reference, rt)
	})
}

func TestProgram(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := trial.Image(t, 2, 20*trial.MiB, 3*trial.MiB)
	p := trial.Dying(t, reg.Addr, 8*trial.MiB)
	if exit, out := trial.Run(t, nil, trial.Build(t), img.Dir, p.Addr()+"/example/app:1"); exit != 0 {
		t.Errorf("exit %d\n%s", exit, out)
	}
	trial.Same(t, img, reg.Addr+"/example/app:1")
}
