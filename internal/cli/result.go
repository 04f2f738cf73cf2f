// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/stream"
	"github.com/rpush-go/rpush/pusher"
)

// The values of document.Status.
const (
	statusPushed      = "pushed"
	statusDryRun      = "dry-run"
	statusFailed      = "failed"
	statusInterrupted = "interrupted"
	statusUsage       = "usage"
)

// document is what --output json prints of a push, however it ends. docs/json.md
// has its schema.
type document struct {
	Schema  int       `json:"schema"`
	Rpush   string    `json:"rpush"` // the version
	Status  string    `json:"status"`
	Exit    int       `json:"exit"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	// Reference and Digest are those of the first push; Digest only if it is pushed.
	Reference string        `json:"reference,omitempty"`
	Digest    digest.Digest `json:"digest,omitempty"`
	// The sums over Pushes, and all requests that broke.
	Size       int64 `json:"size"`
	Sent       int64 `json:"sent"`
	Resumes    int   `json:"resumes"`
	Restarts   int   `json:"restarts"`
	Continued  int64 `json:"continued"`
	BreakCount int   `json:"breakCount"`
	// Breaks are the first 1000 of them.
	Breaks []brokenRequest `json:"breaks"`
	Pushes []pushDocument  `json:"pushes"`
	Error  *failure        `json:"error,omitempty"`
	// HostResets is how many RSTs this very host sent during a push that broke,
	// where they have the marks of what rpush doctor looks for.
	HostResets uint64 `json:"hostResets,omitempty"`
}

// pushDocument is one push of a document.
type pushDocument struct {
	Reference  string        `json:"reference"`
	Status     string        `json:"status"`
	Digest     digest.Digest `json:"digest,omitempty"` // only if pushed
	MediaType  string        `json:"mediaType,omitempty"`
	Tags       []string      `json:"tags,omitempty"`
	Size       int64         `json:"size"`
	Sent       int64         `json:"sent"`
	BreakCount int           `json:"breakCount"`
	Resumes    int           `json:"resumes"`
	Restarts   int           `json:"restarts"`
	Continued  int64         `json:"continued"`
	Seconds    float64       `json:"seconds"`

	Blobs     []pusher.BlobReport     `json:"blobs"`
	Manifests []pusher.ManifestReport `json:"manifests"`
	Layers    *stream.Stats           `json:"layers,omitempty"` // what making them took
}

// newDocument begins a document.
func newDocument(status string, exit int, began time.Time) *document {
	return &document{
		Schema: schemaVersion, Rpush: version(), Status: status, Exit: exit,
		Started: began.UTC(), Seconds: roundSeconds(time.Since(began)),
		Breaks: []brokenRequest{}, Pushes: []pushDocument{},
	}
}

// outcome is how the pushes of a call ended.
type outcome struct {
	began  time.Time
	done   []delivered
	failed *delivered // nil after success
	f      *failure
	exit   int
	counts tally
	resets uint64 // of this host
}

// document is what is said of an outcome.
func (o *options) document(x *outcome) *document {
	ok := statusPushed
	if o.image.dryRun {
		ok = statusDryRun
	}
	doc := newDocument(ok, x.exit, x.began)
	for _, one := range x.done {
		doc.add(one, ok)
	}
	if x.f != nil {
		doc.Error, doc.Status = x.f, statusFailed
		if x.f.Kind == "interrupted" {
			doc.Status = statusInterrupted
		}
		doc.add(*x.failed, doc.Status)
	}
	doc.Reference = doc.Pushes[0].Reference
	if doc.Pushes[0].Status == statusPushed {
		doc.Digest = doc.Pushes[0].Digest
	}
	doc.BreakCount = max(doc.BreakCount, x.counts.breaks) // also those of checks and manifests
	doc.Breaks = append(doc.Breaks, x.counts.list...)
	doc.HostResets = x.resets
	return doc
}

func (d *document) add(one delivered, status string) {
	r := one.report
	p := pushDocument{
		Reference: r.Reference, Status: status, MediaType: r.MediaType, Tags: r.Tags,
		Size: r.Size, Sent: r.Sent, BreakCount: r.Breaks, Resumes: r.Resumes, Restarts: r.Restarts,
		Continued: r.Continued, Seconds: r.Seconds,
		Blobs: append([]pusher.BlobReport{}, r.Blobs...), Manifests: append([]pusher.ManifestReport{}, r.Manifests...),
		Layers: one.layers,
	}
	if status == statusPushed || status == statusDryRun {
		p.Digest = r.Digest
	}
	d.Pushes = append(d.Pushes, p)
	d.Size, d.Sent, d.Continued = d.Size+p.Size, d.Sent+p.Sent, d.Continued+p.Continued
	d.BreakCount, d.Resumes, d.Restarts = d.BreakCount+p.BreakCount, d.Resumes+p.Resumes, d.Restarts+p.Restarts
}

func writeDocument(w io.Writer, doc *document) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// result prints what stdout is for: one line for each reference, or one document.
func (a *app) result(o *options, x *outcome, doc *document) error {
	if o.output == "json" {
		return writeDocument(a.stdout, doc)
	}
	if o.output == "docker" && !o.image.dryRun {
		return o.dockerResult(a.stdout, x.done)
	}
	for _, one := range x.done {
		if err := o.resultText(a.stdout, one); err != nil {
			return err
		}
	}
	return nil
}

// usageDocument says in a document that the call is wrong.
func usageDocument(err error, began time.Time) *document {
	doc := newDocument(statusUsage, exitUsage, began)
	doc.Error = &failure{Kind: "usage", Message: clean(err.Error()), Exit: exitUsage}
	return doc
}

// inCI tells the CI system how it went.
func (a *app) inCI(ctx context.Context, o *options, doc *document) {
	system := ciOf(a.env)
	if system == noCI || o.quiet || doc.BreakCount == 0 && doc.Error == nil && system != github {
		return
	}
	failed := doc.Error != nil
	style := "warning"
	switch {
	case failed:
		style = "error"
		a.annotate(o, system.annotation(true, doc.Error.Message))
	case doc.BreakCount > 0:
		a.annotate(o, system.annotation(false, fmt.Sprintf("%s survived by the push of %s; %s started again. The line is unreliable: run rpush doctor on the registry's host",
			plural(doc.BreakCount, "break"), doc.Reference, plural(doc.Restarts, "layer"))))
	}
	if err := system.summarize(ctx, a.env, style, summaryMarkdown(doc)); err != nil {
		a.out.note("warning: " + fmt.Errorf("%s did not take the summary: %w", system, err).Error())
	}
}

func (a *app) annotate(o *options, text string) {
	if text != "" && !o.jsonLog() {
		a.out.raw(text)
	}
}

// resultText prints the line, or lines, about one push.
func (o *options) resultText(w io.Writer, d delivered) error {
	if o.image.dryRun {
		text := dryRunWords(d.report)
		if o.severalPushes() {
			text = d.ref.Name() + "\n" + text
		}
		_, err := io.WriteString(w, text)
		return err
	}
	for _, ref := range d.references() {
		line := ref.Name()
		if _, ok := ref.(name.Digest); !ok {
			line += "@" + d.report.Digest.String()
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
