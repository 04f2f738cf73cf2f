// SPDX-License-Identifier: Apache-2.0

// Package metrics has what rpush tells Prometheus: the same figures of uploads from
// a gateway's /metrics and from the file of --metrics-file. docs/metrics.md explains
// each.
package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rpush-go/rpush/internal/figures"
	"github.com/rpush-go/rpush/resume"
)

// maxRegistries bounds the values of the label registry: clients of a gateway choose
// them.
const maxRegistries = 64

// otherRegistries is the label of all registries beyond those.
const otherRegistries = "other"

// Uploads are the metrics of uploads. They are safe for concurrent use.
type Uploads struct {
	tracker figures.Tracker

	events, breaks                                         *prometheus.CounterVec
	sent, saved, lostSeconds, rateLimits, rateLimitSeconds *prometheus.CounterVec

	mu         sync.Mutex
	registries map[string]bool
}

// NewUploads registers the metrics of uploads with r.
func NewUploads(r prometheus.Registerer) *Uploads {
	u := &Uploads{
		events: counter("rpush_upload_events_total", "What happened to uploads: broken, resumed, lost, committed and so on.", "event", "registry"),
		breaks: counter("rpush_upload_breaks_total", "Requests that broke, by what broke them.", "cause", "registry"),

		sent:             counter("rpush_upload_sent_bytes_total", "Bytes of blobs that went out, those sent again included.", "registry"),
		saved:            counter("rpush_upload_saved_bytes_total", "Bytes of blobs that were not sent again because an upload was resumed.", "registry"),
		lostSeconds:      counter("rpush_upload_lost_seconds_total", "Time from breaks until the uploads went on or ended, over all uploads.", "registry"),
		rateLimits:       counter("rpush_upload_rate_limits_total", "Requests that waited because the registry limits their rate.", "registry"),
		rateLimitSeconds: counter("rpush_upload_rate_limit_seconds_total", "Time that requests waited because of rate limits.", "registry"),

		registries: map[string]bool{},
	}
	r.MustRegister(u.events, u.breaks, u.sent, u.saved, u.lostSeconds, u.rateLimits, u.rateLimitSeconds)
	return u
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// Event counts an event of an upload.
func (u *Uploads) Event(e resume.Event) {
	c := u.tracker.Record(e)
	registry := u.known(c.Registry)
	if e.Kind != resume.Sent && e.Kind != resume.Settled { // which come as often as bytes move
		u.events.WithLabelValues(string(e.Kind), registry).Inc()
	}
	if c.Cause != "" {
		u.breaks.WithLabelValues(c.Cause, registry).Inc()
	}
	if e.Kind == resume.Sent {
		return
	}
	// Each has a value from the first event on, so that Prometheus sees it go up.
	u.sent.WithLabelValues(registry).Add(float64(c.Sent))
	u.saved.WithLabelValues(registry).Add(float64(c.Saved))
	u.lostSeconds.WithLabelValues(registry).Add(c.Lost.Seconds())
	u.rateLimitSeconds.WithLabelValues(registry).Add(c.Wait.Seconds())
	limits := u.rateLimits.WithLabelValues(registry)
	if c.RateLimited {
		limits.Inc()
	}
}

// known bounds the values of the label registry.
func (u *Uploads) known(registry string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.registries[registry] && len(u.registries) >= maxRegistries {
		return otherRegistries
	}
	u.registries[registry] = true
	return registry
}

// Pushes are the metrics of whole pushes. They are safe for concurrent use.
type Pushes struct {
	pushes, size, seconds *prometheus.CounterVec
	last, lastSeconds     *prometheus.GaugeVec
}

// NewPushes registers the metrics of pushes with r.
func NewPushes(r prometheus.Registerer) *Pushes {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	p := &Pushes{
		pushes:      counter("rpush_pushes_total", "Pushes that ended, by how: pushed, failed or interrupted.", "registry", "status"),
		size:        counter("rpush_push_size_bytes_total", "Sizes of the images that were pushed.", "registry"),
		seconds:     counter("rpush_push_seconds_total", "Time that pushes took.", "registry"),
		last:        gauge("rpush_push_last_timestamp_seconds", "When a push last ended so.", "registry", "status"),
		lastSeconds: gauge("rpush_push_last_seconds", "Time that the last push took.", "registry"),
	}
	r.MustRegister(p.pushes, p.size, p.seconds, p.last, p.lastSeconds)
	return p
}

// Statuses are the values of the label status.
var Statuses = []string{"pushed", "failed", "interrupted"}

// Push is a push that has ended.
type Push struct {
	Registry, Status string
	Size             int64 // in bytes
	Seconds          float64
	End              float64 // in seconds since 1970
}

// Ended counts a push.
func (p *Pushes) Ended(one Push) {
	for _, status := range Statuses { // each has a value from the first push on
		p.pushes.WithLabelValues(one.Registry, status)
	}
	p.pushes.WithLabelValues(one.Registry, one.Status).Inc()
	size := p.size.WithLabelValues(one.Registry)
	if one.Status == Statuses[0] {
		size.Add(float64(one.Size))
	}
	p.seconds.WithLabelValues(one.Registry).Add(one.Seconds)
	p.last.WithLabelValues(one.Registry, one.Status).Set(one.End)
	p.lastSeconds.WithLabelValues(one.Registry).Set(one.Seconds)
}
