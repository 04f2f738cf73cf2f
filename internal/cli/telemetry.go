// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rpush-go/rpush/internal/figures"
	"github.com/rpush-go/rpush/internal/metrics"
	"github.com/rpush-go/rpush/resume"
)

// telemetry is what a call tells systems that collect metrics. Nothing of it fails a
// push. The nil telemetry, of a call that is asked for none, does nothing.
type telemetry struct {
	out      *printer
	file     string // of --metrics-file
	registry *prometheus.Registry
	uploads  *metrics.Uploads
}

const (
	// telemetryFor is how long telemetry may take at the end of a call, and
	// telemetryStopped after a signal or --deadline, when stopWithin is running.
	telemetryFor     = 5 * time.Second
	telemetryStopped = 400 * time.Millisecond

	metricsNotWritten = "warning: --metrics-file: %w"
)

// telemetryOf is the telemetry that the flags ask for.
func (a *app) telemetryOf(o *options) *telemetry {
	if o.metricsFile == "" {
		return nil
	}
	t := &telemetry{out: a.out, file: o.metricsFile, registry: prometheus.NewRegistry()}
	t.uploads = metrics.NewUploads(t.registry)
	return t
}

// watching returns an OnEvent that tells the telemetry and another.
func (t *telemetry) watching(other func(resume.Event)) func(resume.Event) {
	if t == nil {
		return other
	}
	return func(e resume.Event) {
		other(e)
		t.uploads.Event(e)
	}
}

// ended hands over what was collected. doc is nil if the call was not a push.
func (t *telemetry) ended(ctx context.Context, doc *document) {
	if t == nil {
		return
	}
	within := telemetryFor
	if ctx.Err() != nil {
		within = telemetryStopped
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if doc != nil {
		pushes := metrics.NewPushes(t.registry)
		for _, p := range doc.Pushes {
			if p.Status != statusDryRun {
				pushes.Ended(metrics.Push{
					Registry: figures.Registry(p.Reference), Status: p.Status, Size: p.Size, Seconds: p.Seconds,
					End: float64(time.Now().UnixMilli()) / 1000,
				})
			}
		}
	}
	if err := metrics.Merge(ctx, t.file, t.registry); err != nil {
		t.out.note(fmt.Errorf(metricsNotWritten, err).Error())
	}
}
