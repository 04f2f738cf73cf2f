// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// breaking is a push with one break, that ends with err.
func breaking(err error) pushFunc {
	return func(_ context.Context, o pusher.Options, ref name.Reference, _ remote.Taggable) (*pusher.Report, error) {
		e := resume.Event{Reference: ref.Name(), Repository: ref.Context().Name(), Digest: digestA, Size: 10}
		for _, e.Kind = range []resume.EventKind{resume.Opened, resume.Broken, resume.Resumed, resume.Committed} {
			e.Err = nil
			switch e.Kind {
			case resume.Broken:
				e.Err = io.EOF
			case resume.Resumed:
				e.Offset = 4
			case resume.Committed:
				e.Sent = 10
			}
			o.OnEvent(e)
		}
		return &pusher.Report{Reference: ref.Name(), Digest: digestA, Size: 20, Seconds: 1.5}, err
	}
}

// The metrics of several pushes add up, however they end.
func TestMetricsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rpush.prom")
	dir := newLayout(t)
	for _, err := range []error{nil, resume.ErrInterrupted, resume.ErrRefused, nil} {
		r := newRig(t, breaking(err))
		r.main([]string{"--metrics-file", file, dir, "reg.example/team/app:1"})
	}
	r := newRig(t, breaking(nil))
	if code := r.main([]string{"--metrics-file", file, "--dry-run", dir, "reg.example/team/app:1"}); code != exitOK {
		t.Errorf("exit %d", code)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`rpush_pushes_total{registry="reg.example",status="pushed"} 2`,
		`rpush_pushes_total{registry="reg.example",status="interrupted"} 1`,
		`rpush_pushes_total{registry="reg.example",status="failed"} 1`,
		`rpush_push_size_bytes_total{registry="reg.example"} 40`,
		`rpush_push_seconds_total{registry="reg.example"} 6`,
		`rpush_upload_sent_bytes_total{registry="reg.example"} 50`,
		`rpush_upload_saved_bytes_total{registry="reg.example"} 20`,
		`rpush_upload_breaks_total{cause="closed",registry="reg.example"} 5`,
	} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("no %s in\n%s", want, b)
		}
	}
}

// Metrics that cannot be written are a warning, also after a failure.
func TestMetricsFileNotWritten(t *testing.T) {
	for _, tc := range []struct {
		err  error
		exit int
	}{{nil, exitOK}, {resume.ErrInterrupted, exitInterrupted}} {
		r := newRig(t, breaking(tc.err))
		r.env["RPUSH_METRICS_FILE"] = filepath.Join(t.TempDir(), "missing", "rpush.prom")
		if code := r.main([]string{newLayout(t), "reg.example/team/app:1"}); code != tc.exit {
			t.Errorf("exit %d, want %d", code, tc.exit)
		}
		if got := r.stderr.String(); !strings.Contains(got, "warning: --metrics-file: ") {
			t.Errorf("no warning in %s", got)
		}
	}
}
