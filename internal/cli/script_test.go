// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the program itself against go-containerregistry's registry.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   filepath.Join("testdata", "script"),
		Setup: setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"layout":  makeLayout,
			"large":   makeLarge,
			"archive": makeArchive,
			"pulled":  pulled,
			"exits":   exits,
			"stalled": waitForStall,
		},
	})
}

// stallKey is where a script finds out that the stalling registry stalls.
type stallKey struct{}

// setUp starts the registries of a script: REGISTRY, TLS_REGISTRY with the CA
// file CA, SAYS (see says), DOWN, which is unavailable, LOCKED, which takes the credentials in right.json and not those in
// wrong.json, and STALLING, which takes no bytes.
func setUp(env *testscript.Env) error {
	serve := func(h http.Handler, start func(*httptest.Server)) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		start(s)
		env.Defer(s.Close)
		return s
	}
	blobs := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	plain := serve(blobs, (*httptest.Server).Start)
	secure := serve(blobs, (*httptest.Server).StartTLS)
	locked := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you\u001b[2J"}]}`, http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, r)
	}), (*httptest.Server).Start)

	stalls := make(chan struct{}, 100)
	stalling := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch || r.Method == http.MethodPut {
			stalls <- struct{}{}
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return
		}
		blobs.ServeHTTP(w, r)
	}), (*httptest.Server).Start)
	env.Values[stallKey{}] = stalls

	ca := filepath.Join(env.WorkDir, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		return err
	}
	host := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	env.Setenv("REGISTRY", host(plain))
	env.Setenv("TLS_REGISTRY", host(secure))
	env.Setenv("LOCKED", host(locked))
	env.Setenv("STALLING", host(stalling))
	env.Setenv("CA", ca)
	env.Setenv("SAYS", host(serve(says(blobs), (*httptest.Server).Start)))
	env.Setenv("DOWN", host(serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no server is available to handle this request", http.StatusServiceUnavailable)
	}), (*httptest.Server).Start)))
	env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
	env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, "docker"))
	for _, password := range []string{"right", "wrong"} {
		auth := base64.StdEncoding.EncodeToString([]byte("me:" + password))
		config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host(locked), auth)
		if err := os.WriteFile(filepath.Join(env.WorkDir, password+".json"), []byte(config), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// layout DIR [TAG...] writes an OCI layout with one image for each tag, or one
// without a name, and one index named "index" where that is a tag.
func makeLayout(ts *testscript.TestScript, _ bool, args []string) {
	p, err := layout.Write(ts.MkAbs(args[0]), empty.Index)
	ts.Check(err)
	tags := args[1:]
	if len(tags) == 0 {
		tags = []string{""}
	}
	for _, tag := range tags {
		var opts []layout.Option
		if tag != "" {
			opts = append(opts, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}))
		}
		if tag == "index" {
			idx, err := random.Index(1000, 2, 2)
			ts.Check(err)
			ts.Check(p.AppendIndex(idx, opts...))
			continue
		}
		img, err := random.Image(100_000, 3)
		ts.Check(err)
		ts.Check(p.AppendImage(img, opts...))
	}
}

// large DIR writes an OCI layout with one image of layers that are worth keeping.
func makeLarge(ts *testscript.TestScript, _ bool, args []string) {
	p, err := layout.Write(ts.MkAbs(args[0]), empty.Index)
	ts.Check(err)
	img, err := random.Image(3<<19, 2)
	ts.Check(err)
	ts.Check(p.AppendImage(img))
}

// archive FILE TAG writes what docker save does.
func makeArchive(ts *testscript.TestScript, _ bool, args []string) {
	img, err := random.Image(100_000, 3)
	ts.Check(err)
	tag, err := name.NewTag(args[1])
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs(args[0]), tag, img))
}

// pulled REFERENCE [LAYOUT] pulls with another client, hashes all of it, and
// looks for its digest at the top of the layout.
func pulled(ts *testscript.TestScript, neg bool, args []string) {
	ref, err := name.ParseReference(args[0])
	ts.Check(err)
	desc, err := remote.Get(ref)
	if neg {
		if err == nil {
			ts.Fatalf("%s is there", ref)
		}
		return
	}
	ts.Check(err)
	if desc.MediaType.IsIndex() {
		idx, err := desc.ImageIndex()
		ts.Check(err)
		images, err := partial.FindImages(idx, func(v1.Descriptor) bool { return true })
		ts.Check(err)
		for _, img := range images {
			ts.Check(readAll(img))
		}
	} else {
		img, err := desc.Image()
		ts.Check(err)
		ts.Check(readAll(img))
	}
	if len(args) < 2 {
		return
	}
	top, err := layout.ImageIndexFromPath(ts.MkAbs(args[1]))
	ts.Check(err)
	found, err := partial.FindManifests(top, func(d v1.Descriptor) bool { return d.Digest == desc.Digest })
	ts.Check(err)
	if len(found) == 0 {
		ts.Fatalf("%s has the digest %s, which is not in %s", ref, desc.Digest, args[1])
	}
}

// readAll reads every blob of an image, which compares it with its digest.
func readAll(img v1.Image) error {
	if _, err := img.RawConfigFile(); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	return nil
}

// exits CODE PROGRAM ARGUMENT... wants an exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// stalled waits until an upload to STALLING has begun.
func waitForStall(ts *testscript.TestScript, _ bool, _ []string) {
	select {
	case <-ts.Value(stallKey{}).(chan struct{}):
	case <-time.After(30 * time.Second):
		ts.Fatalf("no upload has begun")
	}
}

// The words of the help must not name what does not work.
func TestHelpNamesWhatIsSupported(t *testing.T) {
	for _, verb := range []string{"docker-daemon"} {
		if slices.Contains(strings.Fields(pushHelp+helpTail), verb) {
			t.Errorf("the help names %s", verb)
		}
	}
}

// says is a registry whose repositories fail in one way each: the first part of the
// name says how. Users sign in with any name and the password "right", where one is
// asked for. The answers are as registries were reported to give them.
func says(blobs http.Handler) http.Handler {
	refuse := func(w http.ResponseWriter, status int, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.URL.Path, "/")
		if len(parts) < 3 || parts[2] == "" {
			blobs.ServeHTTP(w, r)
			return
		}
		opens := r.Method == http.MethodPost
		sends := r.Method == http.MethodPatch || r.Method == http.MethodPut && r.ContentLength > 0 && strings.Contains(r.URL.Path, "/uploads/")
		publishes := r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
		how := parts[2]
		if _, _, ok := r.BasicAuth(); !ok && strings.HasPrefix(how, "noscope") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			refuse(w, http.StatusUnauthorized, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		const denied = `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`
		switch {
		case r.Method == http.MethodHead && slices.Contains([]string{"full", "full507", "large"}, how):
			w.WriteHeader(http.StatusNotFound) // blobs are the same in all repositories
		case how == "noscope" && opens:
			refuse(w, http.StatusForbidden, denied)
		case how == "noscope401" && opens:
			refuse(w, http.StatusUnauthorized, denied)
		case how == "quota" && publishes:
			refuse(w, http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"quota of project exceeded"}]}`)
		case how == "full" && opens: // distribution 3.1.1 with its files on a full disk
			refuse(w, http.StatusInternalServerError, `{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"DriverName":"filesystem","Enclosed":{"Op":"mkdir","Path":"/var/lib/registry/docker","Err":28}}}]}`)
		case how == "full507" && opens:
			refuse(w, http.StatusInsufficientStorage, "")
		case how == "fault":
			refuse(w, http.StatusInternalServerError, "")
		case how == "large" && sends:
			refuse(w, http.StatusRequestEntityTooLarge, "<html>413 Request Entity Too Large</html>")
		case how == "immutable" && publishes:
			refuse(w, http.StatusConflict, `{"errors":[{"code":"TAG_IMMUTABLE","message":"tag is immutable"}]}`)
		default:
			blobs.ServeHTTP(w, r)
		}
	})
}
