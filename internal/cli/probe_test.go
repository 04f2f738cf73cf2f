// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/resume"
)

// The first line says what a user wants to know.
func TestProbeVerdict(t *testing.T) {
	repo, err := name.NewRepository("reg.example/team/app")
	if err != nil {
		t.Fatal(err)
	}
	for class, want := range map[resume.Class]string{
		resume.Exact:      "Supports byte-exact resume: reg.example/team/app",
		resume.Boundary:   "Supports resume at the end of the last complete request: reg.example/team/app",
		resume.Fragile:    "Does not support resume: reg.example/team/app",
		resume.Monolithic: "Does not support resume: reg.example/team/app",
		resume.Unproved:   "Could not find out whether it supports resume: reg.example/team/app",
	} {
		got, _, _ := strings.Cut(probeWords(repo, &resume.Probe{Class: class}), "\n")
		if got != want {
			t.Errorf("%s: got %q, want %q", class, got, want)
		}
	}
}

// A probe of a server that never answers ends, and says so.
func TestProbeGivesUp(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	r := newRig(t, nil)
	r.probeFor = 50 * time.Millisecond
	code := r.main([]string{"probe", "--plain-http", "--cache-dir", t.TempDir(), srv.Listener.Addr().String() + "/team/app"})
	said := r.stderr.String()
	if code != exitInterrupted || !strings.Contains(said, "the probe took longer than a minute") ||
		!strings.Contains(said, "hint: "+slowProbeHint) || strings.Contains(said, againHint) || r.stdout.String() != "" {
		t.Errorf("exit code %d\n%s%s", code, said, r.stdout.String())
	}
}
