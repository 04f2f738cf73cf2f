// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/examples/internal/trial"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

// A line on which no try is long enough.
func TestEachTryGoesOn(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := trial.Image(t, 5, 24*trial.MiB)
	p, err := proxy.Start(reg.Addr, proxy.Options{Rate: 6 * trial.MiB, Buffer: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	env := []string{"XDG_STATE_HOME=" + t.TempDir()}
	exit, out := trial.Run(t, env, trial.Build(t), "-for", "1500ms", "-tries", "20", img.Dir, p.Addr()+"/example/app:1")
	if exit != 0 || !strings.Contains(out, "app:1@"+img.Manifest.Digest) || strings.Count(out, "deadline of this try") < 2 {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	if up := p.Stats().Up; up > img.Total*3/2 {
		t.Errorf("%d bytes of an image of %d went up", up, img.Total)
	}
	trial.Same(t, img, reg.Addr+"/example/app:1")
}

func TestRetry(t *testing.T) {
	denied := errors.New("denied")
	for _, c := range []struct {
		name  string
		errs  []error
		tries int
		want  error
	}{
		{"at once", []error{nil}, 1, nil},
		{"third time", []error{resume.ErrInterrupted, resume.ErrInterrupted, nil}, 3, nil},
		{"never", []error{resume.ErrInterrupted, resume.ErrInterrupted, resume.ErrInterrupted, resume.ErrInterrupted}, 3, resume.ErrInterrupted},
		{"not worth it", []error{denied, nil}, 1, denied},
	} {
		n := 0
		err := retry(t.Context(), time.Hour, 3, func(context.Context) error { n++; return c.errs[n-1] })
		if !errors.Is(err, c.want) || n != c.tries {
			t.Errorf("%s: got %v after %d tries, want %v after %d", c.name, err, n, c.want, c.tries)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	if err := retry(ctx, time.Hour, 3, func(context.Context) error { n++; return resume.ErrInterrupted }); err == nil || n != 1 {
		t.Errorf("cancelled: got %v after %d tries", err, n)
	}
}
