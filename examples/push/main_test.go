package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

func TestPushThroughResets(t *testing.T) {
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
	for _, want := range []string{"broken", "resumed", "committed", "app:1@" + img.Manifest.Digest} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not say %q:\n%s", want, out.String())
		}
	}
}
