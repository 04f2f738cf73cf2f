// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/rpush-go/rpush/resume"
)

// push is a gatherer with the figures of a push with one break.
func push(t *testing.T, registry string) prometheus.Gatherer {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	u, p := NewUploads(r), NewPushes(r)
	e := resume.Event{Time: time.Unix(1000, 0), Kind: resume.Opened, Repository: registry + "/team/app", Digest: digest.FromString("a"), Size: 100}
	for _, k := range []resume.EventKind{resume.Opened, resume.Broken, resume.Resumed, resume.Committed} {
		e.Kind, e.Time = k, e.Time.Add(time.Second)
		switch k {
		case resume.Broken:
			e.Err = io.EOF
		case resume.Resumed:
			e.Offset, e.Sent = 40, 50
		case resume.Committed:
			e.Sent = 110
		}
		u.Event(e)
	}
	p.Ended(Push{Registry: registry, Status: "pushed", Size: 100, Seconds: 4, End: 1004})
	return r
}

// parse reads a file with Prometheus' own parser.
func parse(t *testing.T, path string) map[string]*dto.MetricFamily {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return families
}

// value is that of the metric with these labels, -1 if there is none.
func value(families map[string]*dto.MetricFamily, name, labelText string) float64 {
	for _, m := range families[name].GetMetric() {
		if labels(m) == labelText {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return -1
}

func TestCountersAddUpAndGaugesDoNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpush.prom")
	for _, registry := range []string{"a.example", "b.example:5000", "a.example"} {
		if err := Merge(t.Context(), path, push(t, registry)); err != nil {
			t.Fatal(err)
		}
	}
	families := parse(t, path)
	for _, want := range []struct {
		name, labels string
		value        float64
	}{
		{"rpush_upload_events_total", `"event"="resumed","registry"="a.example"`, 2},
		{"rpush_upload_breaks_total", `"cause"="closed","registry"="a.example"`, 2},
		{"rpush_upload_breaks_total", `"cause"="closed","registry"="b.example:5000"`, 1},
		{"rpush_upload_sent_bytes_total", `"registry"="a.example"`, 220},
		{"rpush_upload_saved_bytes_total", `"registry"="a.example"`, 80},
		{"rpush_upload_lost_seconds_total", `"registry"="a.example"`, 2},
		{"rpush_upload_rate_limits_total", `"registry"="a.example"`, 0},
		{"rpush_upload_rate_limit_seconds_total", `"registry"="b.example:5000"`, 0},
		{"rpush_pushes_total", `"registry"="a.example","status"="pushed"`, 2},
		{"rpush_pushes_total", `"registry"="a.example","status"="failed"`, 0},
		{"rpush_push_size_bytes_total", `"registry"="a.example"`, 200},
		{"rpush_push_seconds_total", `"registry"="a.example"`, 8},
		{"rpush_push_last_seconds", `"registry"="a.example"`, 4},
		{"rpush_push_last_timestamp_seconds", `"registry"="b.example:5000","status"="pushed"`, 1004},
	} {
		if got := value(families, want.name, want.labels); got != want.value {
			t.Errorf("%s{%s} is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	fi, err := os.Stat(path)
	if err != nil || runtime.GOOS != "windows" && fi.Mode() != 0o644 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 2 { // the file and its lock
		t.Errorf("left behind: %v", left)
	}
}

func TestPushesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpush.prom")
	const n = 16
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			if err := Merge(t.Context(), path, push(t, "a.example")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := value(parse(t, path), "rpush_pushes_total", `"registry"="a.example","status"="pushed"`); got != n {
		t.Errorf("%v pushes, want %d", got, n)
	}
}

func TestFilesOfOthersAreLeftAlone(t *testing.T) {
	for name, text := range map[string]string{
		"another program's metrics": "# TYPE node_load1 gauge\nnode_load1 0.5\n",
		"both":                      "rpush_pushes_total 1\nnode_load1 0.5\n",
		"no metrics":                "root:x:0:0:root:/root:/bin/bash\n",
		"cut off":                   "# TYPE rpush_pushes_total counter\nrpush_pushes_total{registry=\"a.exa",
		"too large":                 "# " + strings.Repeat("x", maxFile),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "other")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := Merge(t.Context(), path, push(t, "a.example"))
			if err == nil || !strings.Contains(err.Error(), "left alone") {
				t.Errorf("got %v", err)
			}
			if b, _ := os.ReadFile(path); string(b) != text {
				t.Errorf("it was changed to %.100q", b)
			}
		})
	}
}

// Somebody who holds the lock cannot hold up a push for long.
func TestLockIsNotWaitedForForever(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rpush.prom")
	lock := flock.New(path + ".lock")
	if ok, err := lock.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer lock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Merge(ctx, path, push(t, "a.example")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written without the lock")
	}
}

// Clients of a gateway cannot make as many time series as they like.
func TestRegistriesAreBounded(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	u := NewUploads(r)
	for i := range 2 * maxRegistries {
		u.Event(resume.Event{Kind: resume.Opened, Repository: fmt.Sprintf("r%d.example/a", i), Digest: digest.FromString("a")})
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "rpush_upload_events_total" && len(f.GetMetric()) != maxRegistries+1 {
			t.Errorf("%d registries, want %d and the others", len(f.GetMetric()), maxRegistries)
		}
	}
}
