// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// fileServer is a web server like any other.
type fileServer struct{}

func (fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, "<html>no "+r.URL.Path+"</html>")
}

// What a user gets wrong is named, with the right exit code, and nothing is
// half done.
func TestBadInput(t *testing.T) {
	plain := realreg.Start(t, realreg.Options{})
	secure := realreg.Start(t, realreg.Options{TLS: true, BasicAuth: true})
	good := binary.Layout(t, 30, 100_000, 200_000)
	dead := listen(t)
	deadAddr := dead.Addr().String()
	dead.Close()
	web := newServer(t, fileServer{})
	banner := listen(t)
	go func() {
		for {
			c, err := banner.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("220 mail.example ESMTP\r\n"))
			time.AfterFunc(2*time.Second, func() { c.Close() })
		}
	}()
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "config.json"),
		[]byte(`{"auths":{"`+secure.Addr+`":{"auth":"Y2k6d3Jvbmc="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	damage := func(f func(dir string, img ocilayout.Image)) string {
		img := binary.Layout(t, 30, 100_000, 200_000)
		f(img.Dir, img)
		return "oci:" + img.Dir
	}
	layer := func(img ocilayout.Image) string { return ocilayout.BlobPath(img.Dir, img.Layers[1].Digest) }

	for _, c := range []struct {
		name string
		args []string
		env  []string
		exit int
		says []string // on stderr
	}{
		{name: "no such path", args: []string{"oci:/no/such/dir", plain.Addr + "/a:1"}, exit: 1, says: []string{"/no/such/dir"}},
		{name: "not a layout", args: []string{t.TempDir(), plain.Addr + "/a:1"}, exit: 1, says: []string{"oci-layout"}},
		{name: "missing blob", args: []string{damage(func(_ string, i ocilayout.Image) { os.Remove(layer(i)) }), plain.Addr + "/missing:1"}, exit: 1, says: []string{good.Layers[1].Digest}},
		{name: "short blob", args: []string{damage(func(_ string, i ocilayout.Image) { os.Truncate(layer(i), 1000) }), plain.Addr + "/short:1"}, exit: 1, says: []string{good.Layers[1].Digest, "1000", "200000"}},
		{name: "corrupt blob", args: []string{damage(func(_ string, i ocilayout.Image) {
			f, err := os.OpenFile(layer(i), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteAt([]byte("damage"), 77777)
		}), plain.Addr + "/corrupt:1"}, exit: 1, says: []string{good.Layers[1].Digest[:len("sha256:")+12], "damaged"}},
		{name: "malformed reference", args: []string{"oci:" + good.Dir, "Not A Reference"}, exit: 2, says: []string{"Not A Reference"}},
		{name: "no reference", args: nil, exit: 2},
		{name: "unknown flag", args: []string{"--no-such-flag"}, exit: 2},
		{name: "no credential", args: []string{"--ca-file", secure.CAFile, "oci:" + good.Dir, secure.Addr + "/a:1"}, exit: 1, says: []string{"docker login " + secure.Addr, "no credentials"}},
		{name: "wrong credential", args: []string{"--ca-file", secure.CAFile, "oci:" + good.Dir, secure.Addr + "/a:1"}, env: []string{"DOCKER_CONFIG=" + config}, exit: 1, says: []string{filepath.Join(config, "config.json")}},
		{name: "unknown CA", args: []string{"oci:" + good.Dir, secure.Addr + "/a:1"}, exit: 1, says: []string{"--ca-file"}},
		{name: "no such host", args: []string{"oci:" + good.Dir, "no-such-host.invalid/a:1"}, exit: 1, says: []string{"no-such-host.invalid"}},
		{name: "no registry, but a web server", args: []string{"oci:" + good.Dir, web + "/a:1"}, exit: 1, says: []string{"registry", web}},
		{name: "no registry, but a mail server", args: []string{"--plain-http", "oci:" + good.Dir, banner.Addr().String() + "/a:1"}, exit: 1, says: []string{"check the host and port"}},
		{name: "tag and digest", args: []string{"oci:" + good.Dir, plain.Addr + "/a:1@" + good.Manifest.Digest}, exit: 2, says: []string{"a tag and a digest"}},
		{name: "a host alone", args: []string{"oci:" + good.Dir, plain.Addr}, exit: 2, says: []string{"no repository"}},
		{name: "nobody there", args: []string{"--retry-for", "1s", "oci:" + good.Dir, deadAddr + "/a:1"}, exit: 3, says: []string{"refused", "check the port"}},
		{name: "deadline", args: []string{"--deadline", "300ms", "oci:" + good.Dir, deadAddr + "/a:1"}, exit: 3, says: []string{"deadline"}},
		{name: "no CA file", args: []string{"--ca-file", "/no/such/ca.pem", "oci:" + good.Dir, secure.Addr + "/a:1"}, exit: 1, says: []string{"/no/such/ca.pem"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rpush.Run(t, binary.Environ(t, c.env...), c.args...)
			if r.Exit != c.exit {
				t.Errorf("exit %d, want %d", r.Exit, c.exit)
			}
			for _, s := range c.says {
				if !strings.Contains(r.Stderr, s) {
					t.Errorf("stderr does not say %q", s)
				}
			}
			lines := strings.Split(strings.TrimRight(r.Stderr, "\n"), "\n")
			for _, l := range lines {
				if at, rest, ok := strings.Cut(l, "Z "); ok && len(at) == len("15:04:05") {
					l = rest // what happens during a push has the time
				}
				if !strings.HasPrefix(l, "rpush: ") {
					t.Errorf("a line without its prefix: %q", l)
				}
			}
			if strings.Contains(r.Stderr, "goroutine ") {
				t.Error("a stack trace")
			}
			if t.Failed() || testing.Verbose() {
				t.Logf("exit %d\n%s", r.Exit, r.Stderr)
			}
		})
	}
	log, err := plain.AccessLog()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range log {
		if a.Method == http.MethodPut && strings.Contains(a.Path, "/manifests/") {
			t.Errorf("a manifest was written: %s", a.Path)
		}
		if a.Method == http.MethodPost && !strings.Contains(a.Path, "/corrupt/") {
			t.Errorf("something was sent before the source was checked: %s", a.Path)
		}
	}
}
