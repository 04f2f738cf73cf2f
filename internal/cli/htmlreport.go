// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"html/template"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/resume"
)

// maxPoints bounds what is drawn of one blob. When there are more, every other one
// is dropped.
const maxPoints = 2000

// history is how the offsets of the blobs grew. Not safe for concurrent use.
type history struct {
	order []digest.Digest
	blobs map[digest.Digest]*blobHistory
}

type blobHistory struct {
	size   int64
	points []point
	every  time.Duration // the least time between two points that are not special
}

// point is the offset of a blob at one time.
type point struct {
	at     time.Time
	offset int64
	what   resume.EventKind
}

// record takes note of e.
func (h *history) record(e resume.Event) {
	switch e.Kind {
	case resume.Opened, resume.Sent, resume.Settled, resume.Broken, resume.Resumed, resume.Lost, resume.Committed, resume.Existed, resume.Mounted:
	default:
		return
	}
	if e.Digest == "" {
		return
	}
	b := h.blobs[e.Digest]
	if b == nil {
		if e.Kind == resume.Broken {
			return // of a check
		}
		if h.blobs == nil {
			h.blobs = map[digest.Digest]*blobHistory{}
		}
		b = &blobHistory{size: e.Size}
		h.blobs[e.Digest], h.order = b, append(h.order, e.Digest)
	}
	n := len(b.points)
	if e.Kind == resume.Sent && n > 0 && e.Time.Sub(b.points[n-1].at) < b.every {
		return
	}
	b.points = append(b.points, point{e.Time, e.Offset, e.Kind})
	if len(b.points) <= maxPoints {
		return
	}
	first, last := b.points[0].at, b.points[len(b.points)-1].at
	b.every = 2 * last.Sub(first) / maxPoints
	i := 0
	b.points = slices.DeleteFunc(b.points, func(point) bool { i++; return i%2 == 0 && i < maxPoints })
}

// The size of a chart, in the units of its view box.
const chartWidth, chartHeight = 900, 160

type reportPage struct {
	Doc      *document
	Charts   []chart
	Counters []counter
	Breaks   []brokenRequest
	More     int
}

type chart struct {
	Name, Size, Line string
	Marks            []mark
	Seconds          float64
}

type mark struct {
	X, Y  float64
	Kind  string
	Title string
}

type counter struct{ Name, Value string }

// charts draws each blob's offset over time, all on the same scale of time.
func (h *history) charts() []chart {
	var first, last time.Time
	for _, b := range h.blobs {
		if from := b.points[0].at; first.IsZero() || from.Before(first) {
			first = from
		}
		if to := b.points[len(b.points)-1].at; to.After(last) {
			last = to
		}
	}
	span := max(last.Sub(first), time.Millisecond)
	var all []chart
	for _, d := range h.order {
		b := h.blobs[d]
		if len(b.points) < 2 {
			continue // it was there
		}
		c := chart{Name: clean(string(d)), Size: bytesWords(b.size), Seconds: roundSeconds(span)}
		var line strings.Builder
		settled := int64(0)
		for _, p := range b.points {
			switch p.what {
			case resume.Settled, resume.Resumed, resume.Opened, resume.Lost:
				settled = p.offset
			case resume.Committed:
				p.offset = b.size
			case resume.Broken:
				p.offset = max(p.offset, settled)
			}
			x := float64(p.at.Sub(first)) / float64(span) * chartWidth
			y := chartHeight - float64(p.offset)/float64(max(b.size, 1))*chartHeight
			fmt.Fprintf(&line, "%.1f,%.1f ", x, y)
			switch p.what {
			case resume.Broken, resume.Lost:
				c.Marks = append(c.Marks, mark{x, y, string(p.what), fmt.Sprintf("%s at %s, %s", p.what, bytesWords(p.offset), p.at.UTC().Format(time.RFC3339Nano))})
			}
		}
		c.Line = strings.TrimSpace(line.String())
		all = append(all, c)
	}
	return all
}

// counters are those of this host that tell of resets, as they moved during the push.
func counters(before conntrack.Sample) []counter {
	after, err := conntrack.Now()
	if err != nil || before.At.IsZero() {
		return nil
	}
	w := conntrack.Between(before, after)
	d := after.Counters.Since(before.Counters)
	return []counter{
		{"TCP resets (RST) sent", fmt.Sprint(d.OutRsts)},
		{"established connections reset", fmt.Sprint(d.EstabResets)},
		{"TCP segments sent again", fmt.Sprint(d.RetransSegs)},
		{"packets that conntrack found invalid", fmt.Sprint(d.Invalid)},
		{"packets without room in conntrack's table", fmt.Sprint(d.Drop + d.EarlyDrop)},
		{"does this host reset connections as rpush doctor looks for", string(w.Moved)},
	}
}

// writeReport writes the page of --report.
func writeReport(file string, doc *document, h *history, counters []counter) error {
	f, err := os.Create(file) //nolint:gosec // the user names it
	if err != nil {
		return &localError{"--report", err}
	}
	err = reportTo(f, doc, h, counters)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return &localError{"--report", err}
	}
	return nil
}

func reportTo(w io.Writer, doc *document, h *history, counters []counter) error {
	p := reportPage{Doc: doc, Charts: h.charts(), Counters: counters, Breaks: doc.Breaks, More: doc.BreakCount - len(doc.Breaks)}
	t, err := template.New("report").Funcs(template.FuncMap{
		"bytes": bytesWords,
		"short": shortDigest,
		"utc":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000Z") },
	}).Parse(reportTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, p)
}

// reportTemplate is a page that needs nothing else: no script, no picture, no font.
const reportTemplate = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>rpush report: {{.Doc.Reference}}</title>
<style>
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em } h3 { font: 0.85em monospace; margin: 1.2em 0 0.2em }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; vertical-align: top }
td.n { text-align: right } svg { width: 100%; border: 1px solid #ccc; background: #fafafa }
polyline { fill: none; stroke: #1761b0; stroke-width: 1.5 } circle.broken { fill: #c40 } circle.lost { fill: #000 }
</style>
</head>
<body>
<h1>rpush report: {{.Doc.Reference}}</h1>
<table>
<tr><th>status</th><td>{{.Doc.Status}}</td></tr>
{{with .Doc.Digest}}<tr><th>digest</th><td>{{.}}</td></tr>{{end}}
{{with .Doc.Error}}<tr><th>error</th><td>{{.Message}}</td></tr>{{end}}
<tr><th>started</th><td>{{utc .Doc.Started}}, took {{.Doc.Seconds}} s</td></tr>
<tr><th>size</th><td>{{bytes .Doc.Size}}, sent {{bytes .Doc.Sent}}</td></tr>
<tr><th>broken requests</th><td>{{.Doc.BreakCount}}; resumed {{.Doc.Resumes}}, started again {{.Doc.Restarts}}</td></tr>
<tr><th>rpush</th><td>{{.Doc.Rpush}}</td></tr>
</table>
{{if .Counters}}<h2>Counters of the host that pushed</h2>
<table>{{range .Counters}}<tr><th>{{.Name}}</th><td>{{.Value}}</td></tr>{{end}}</table>{{end}}
{{if .Charts}}<h2>Offset of each blob over time</h2>
<p>From left to right: {{(index .Charts 0).Seconds}} s. From bottom to top: the bytes of the blob. A red dot is a request that broke, a black dot an upload that the registry lost.</p>
{{range .Charts}}<h3>{{.Name}}, {{.Size}}</h3>
<svg viewBox="0 0 900 160" role="img"><polyline points="{{.Line}}"/>{{range .Marks}}<circle class="{{.Kind}}" cx="{{.X}}" cy="{{.Y}}" r="3"><title>{{.Title}}</title></circle>{{end}}</svg>
{{end}}{{end}}
<h2>Broken requests</h2>
{{if .Breaks}}<table>
<tr><th>time</th><th>blob</th><th>offset</th><th>from</th><th>to</th><th>age</th><th>bytes sent, received</th><th>request id</th><th>cause</th></tr>
{{range .Breaks}}<tr><td>{{utc .Time}}</td><td>{{short .Digest}}</td><td class="n">{{.Offset}}</td><td>{{.Local}}</td><td>{{.Peer}}</td><td class="n">{{.Age}} s</td><td class="n">{{.Sent}}, {{.Received}}</td><td>{{.RequestID}}</td><td>{{.Cause}}</td></tr>
{{end}}</table>{{if gt .More 0}}<p>and {{.More}} more</p>{{end}}{{else}}<p>None.</p>{{end}}
</body>
</html>
`
