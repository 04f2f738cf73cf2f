// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/rpush-go/rpush/resume"
)

// The page is well formed, needs nothing from elsewhere, escapes what registries
// say, and shows each blob and each break.
func TestReportPage(t *testing.T) {
	const evil = `<script>alert(1)</script>"' & </svg>`
	began := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	h, ta := &history{}, newTally(began)
	event := func(after time.Duration, k resume.EventKind, layer string, offset int64) {
		e := resume.Event{Time: began.Add(after), Kind: k, Reference: "reg.example/app:1", Repository: "reg.example/app", Digest: layerDigest(layer), Size: 100 * mib, Offset: offset}
		if k == resume.Broken {
			e.Err, e.Conn = fmt.Errorf("%s: %w", evil, syscall.ECONNRESET), &resume.Conn{Local: "10.0.0.2:40112", Remote: "10.0.0.9:443", RequestID: evil}
		}
		h.record(e)
		ta.record(e, e.Time)
	}
	for _, l := range []string{"a", "b"} {
		event(0, resume.Opened, l, 0)
		event(time.Second, resume.Sent, l, 40*mib)
		event(2*time.Second, resume.Broken, l, 30*mib)
		event(3*time.Second, resume.Resumed, l, 30*mib)
		event(4*time.Second, resume.Lost, l, 0)
		event(9*time.Second, resume.Committed, l, 0)
	}
	event(0, resume.Existed, "c", 0)
	doc := newDocument(statusFailed, 1, began)
	doc.Reference, doc.Breaks, doc.BreakCount = evil, ta.list, ta.breaks
	doc.Error = &failure{Message: evil}
	var page bytes.Buffer
	if err := reportTo(&page, doc, h, []counter{{"TCP resets (RST) sent", "7"}}); err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(&page)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	count := map[string]int{}
	for n := range root.Descendants() {
		if n.Type == html.TextNode {
			text.WriteString(n.Data + "\n")
		}
		if n.Type != html.ElementNode {
			continue
		}
		count[n.Data]++
		for _, a := range n.Attr {
			if a.Key == "src" || a.Key == "href" || strings.HasPrefix(a.Key, "on") || strings.Contains(a.Val, "url(") {
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
		}
	}
	for element, want := range map[string]int{"script": 0, "link": 0, "img": 0, "iframe": 0, "svg": 2, "polyline": 2, "circle": 4} {
		if count[element] != want {
			t.Errorf("%d <%s>, want %d", count[element], element, want)
		}
	}
	for _, want := range []string{evil, "10.0.0.2:40112", "10.0.0.9:443", "TCP resets (RST) sent", layerDigest("a").String(), "2026-01-02 15:04:07.000Z"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// However long a push takes, its page stays small.
func TestReportIsBounded(t *testing.T) {
	h, began := &history{}, time.Now()
	for i := range 100_000 {
		h.record(resume.Event{Time: began.Add(time.Duration(i) * 100 * time.Millisecond), Kind: resume.Sent, Digest: digestA, Size: 1 << 40, Offset: int64(i)})
	}
	if n := len(h.blobs[digestA].points); n > maxPoints+1 {
		t.Errorf("%d points", n)
	}
}
