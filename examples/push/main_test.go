// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

func TestPushThroughResets(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	reg := realreg.Start(t, realreg.Options{})
	img, err := ocilayout.Write(filepath.Join(t.TempDir(), "image"), 1, 20<<20, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.Start(reg.Addr, proxy.Options{Plan: proxy.Every(4<<20, proxy.Fault{Kind: proxy.ResetClient})})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out bytes.Buffer
	if err := run(t.Context(), img.Dir, p.Addr()+"/example/app:1", &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"broken", "100% committed", "app:1@" + img.Manifest.Digest} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not say %q:\n%s", want, out.String())
		}
	}
}

// On a terminal the bars are drawn in place.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	d := &display{out: &out, tty: true}
	for _, e := range []resume.Event{
		{Kind: resume.Sent, Offset: 50}, {Kind: resume.Settled, Offset: 25}, {Kind: resume.Sent, Offset: 75},
		{Kind: resume.Broken, Offset: 25}, {Kind: resume.Committed, Offset: 100},
	} {
		e.Digest, e.Size = "sha256:0123456789abcdef", 100
		d.on(e)
	}
	var got []string
	for _, l := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		_, l, _ = strings.Cut(l, "[2K")
		got = append(got, l)
	}
	full := strings.Repeat("#", 40)
	want := []string{
		"sha256:0123456789ab [" + strings.Repeat("+", 20) + strings.Repeat(" ", 20) + "]   0% ",
		"sha256:0123456789ab [" + full[:10] + strings.Repeat(" ", 30) + "]  25% ",
		"sha256:0123456789ab [" + full[:10] + strings.Repeat("+", 20) + strings.Repeat(" ", 10) + "]  25% ",
		"sha256:0123456789ab [" + full[:10] + strings.Repeat(" ", 30) + "]  25% broken",
		"sha256:0123456789ab [" + full + "] 100% committed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
