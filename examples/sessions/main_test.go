// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/examples/internal/trial"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

// One run breaks in the middle and gives up; the next, another process, sends
// the rest.
func TestNextRunContinues(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	img := trial.Image(t, 4, 40*trial.MiB)
	reset := proxy.Fault{Kind: proxy.ResetClient}
	p, err := proxy.Start(reg.Addr, proxy.Options{Plan: proxy.First(1, proxy.Every(30*trial.MiB, reset))})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	bin, db, ref := trial.Build(t), filepath.Join(t.TempDir(), "sessions.db"), p.Addr()+"/example/app:1"
	if exit, out := trial.Run(t, nil, bin, "-retry-for", "-1s", db, img.Dir, ref); exit != 3 {
		t.Fatalf("first run: exit %d\n%s", exit, out)
	}
	if st, err := os.Stat(db); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("database: %v, %v", st, err)
	}
	exit, out := trial.Run(t, nil, bin, db, img.Dir, ref)
	if exit != 0 || !strings.Contains(out, "app:1@"+img.Manifest.Digest) {
		t.Fatalf("second run: exit %d\n%s", exit, out)
	}
	if up := p.Stats().Up; up > img.Total*102/100 {
		t.Errorf("%d bytes of an image of %d went up", up, img.Total)
	}
	trial.Same(t, img, reg.Addr+"/example/app:1")
}
