// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/pusher"
)

// dockerEnv keeps variables that the test's subject sets from other tests.
func dockerEnv(t *testing.T) {
	t.Helper()
	for _, k := range []string{"DOCKER_CONFIG", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "RPUSH_DOCKER_HOST", "RPUSH_DOCKER_CONTEXT", dockerTried, dockerPath} {
		t.Setenv(k, "")
	}
}

func TestDockerPush(t *testing.T) {
	for _, c := range []struct {
		given string
		want  string // empty: for the real docker
		env   string
	}{
		{"push app:1", "push --output docker app:1", ""},
		{"image push -q app:1", "push --output docker -q app:1", ""},
		{"push --platform linux/arm64 app:1 --retry-for 1h", "push --output docker --platform linux/arm64 app:1 --retry-for 1h", ""},
		{"--debug -l warn --config /cfg push -a app", "push --output docker -a app", "DOCKER_CONFIG=/cfg"},
		{"-c build push app", "push --output docker --docker-context build app", ""},
		{"--context=build image push app", "push --output docker --docker-context build app", ""},
		{"-H tcp://h:2376 --tlsverify --tlscacert /c/ca.pem --tlscert /c/cert.pem --tlskey /c/key.pem push app", "push --output docker --docker-host tcp://h:2376 app", "DOCKER_CERT_PATH=/c"},
		{"-H tcp://h:2376 --tlscacert /c/other.pem push app", "", ""},
		{"-H a -H b push app", "", ""},
		{"-H a -c b push app", "", ""},
		{"", "", ""},
		{"build -t push .", "", ""},
		{"image ls", "", ""},
		{"compose push", "", ""},
		{"--version push", "", ""},
		{"--no-such-flag push app", "", ""},
		{"buildx build --push .", "", ""},
	} {
		t.Run(c.given, func(t *testing.T) {
			dockerEnv(t)
			got, ok := dockerPush(strings.Fields(c.given))
			if want := strings.Fields(c.want); ok != (c.want != "") || ok && !slices.Equal(got, want) {
				t.Errorf("got %q, %v, want %q", got, ok, want)
			}
			if k, v, ok := strings.Cut(c.env, "="); ok && os.Getenv(k) != v {
				t.Errorf("%s is %q, want %q", k, os.Getenv(k), v)
			}
		})
	}
}

func TestPluginArguments(t *testing.T) {
	for _, c := range []struct{ given, want, env string }{
		{"rpush app:1", "app:1", ""},
		{"rpush push app:1 -q", "push app:1 -q", ""},
		{"--context build rpush app:1", "app:1", "RPUSH_DOCKER_CONTEXT=build"},
		{"-H tcp://h:1 rpush sessions", "sessions", "RPUSH_DOCKER_HOST=tcp://h:1"},
		{"--config /cfg rpush app:1", "app:1", "DOCKER_CONFIG=/cfg"},
		{"__complete rpush --retry", "__complete --retry", ""},
		{"help rpush", "--help", ""},
		{"help rpush probe", "probe --help", ""},
		{"version", "version", ""},
	} {
		t.Run(c.given, func(t *testing.T) {
			dockerEnv(t)
			if got := pluginArgs(strings.Fields(c.given)); strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if k, v, ok := strings.Cut(c.env, "="); ok && os.Getenv(k) != v {
				t.Errorf("%s is %q, want %q", k, os.Getenv(k), v)
			}
		})
	}
}

func TestPluginMetadata(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := Run([]string{"/usr/libexec/docker/cli-plugins/docker-rpush", pluginMetadata}, strings.NewReader(""), &stdout, &stderr, nil); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got["SchemaVersion"] != "0.1.0" || got["Vendor"] == "" || got["Version"] == "" || got["ShortDescription"] == "" {
		t.Errorf("got %v", got)
	}
}

// The real docker is never rpush itself, nor a copy of it that has called this
// one.
func TestRealDocker(t *testing.T) {
	dockerEnv(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link, copied, directory, plain, real := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	at := func(dir string) string { return filepath.Join(dir, dockerProgram) }
	if err := os.Symlink(self, at(link)); err != nil {
		t.Skip(err)
	}
	for dir, mode := range map[string]os.FileMode{copied: 0o755, plain: 0o644, real: 0o755} {
		if err := os.WriteFile(at(dir), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at(directory), 0o755); err != nil {
		t.Fatal(err)
	}
	path := func(dirs ...string) { t.Setenv("PATH", strings.Join(dirs, string(filepath.ListSeparator))) }
	t.Setenv(dockerTried, at(copied))
	path(link, ".", copied, directory, real)
	if got, err := realDocker(); err != nil || got != at(real) {
		t.Errorf("got %s, %v, want %s", got, err, at(real))
	}
	if got := os.Getenv(dockerTried); !strings.HasSuffix(got, string(filepath.ListSeparator)+self) {
		t.Errorf("%s is %q", dockerTried, got)
	}
	path(link, copied)
	if got, err := realDocker(); err == nil {
		t.Errorf("got %s", got)
	}
	t.Setenv(dockerPath, at(real))
	if got, err := realDocker(); err != nil || got != at(real) {
		t.Errorf("got %s, %v, want %s", got, err, at(real))
	}
}

func TestDockerOutput(t *testing.T) {
	ref := func(s string) name.Reference {
		r, err := name.ParseReference(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	h := digest.FromString("manifest")
	done := func(s string, tags ...string) delivered {
		return delivered{ref(s), &pusher.Report{Digest: h, Tags: tags, Manifests: []pusher.ManifestReport{{Digest: h, Size: 7}}}, nil}
	}
	hub, own := done("team/app:1"), done("registry.example/team/app:1", "2")
	var quiet, all options
	quiet.quiet = true
	all.quiet, all.image.allTags = true, true
	digestLine := "digest: " + h.String() + " size: 7\n"
	for _, c := range []struct {
		o    *options
		d    []delivered
		want string
	}{
		{&options{}, []delivered{hub}, "The push refers to repository [docker.io/team/app]\n1: " + digestLine},
		{&options{}, []delivered{own}, "The push refers to repository [registry.example/team/app]\n1: " + digestLine + "2: " + digestLine},
		{&options{}, []delivered{own, own}, "The push refers to repository [registry.example/team/app]\n" + strings.Repeat("1: "+digestLine+"2: "+digestLine, 2)},
		{&quiet, []delivered{hub}, "docker.io/team/app:1\n"},
		{&all, []delivered{own, own}, "registry.example/team/app\n"},
	} {
		var b bytes.Buffer
		if err := c.o.dockerResult(&b, c.d); err != nil || b.String() != c.want {
			t.Errorf("%v, got\n%swant\n%s", err, b.String(), c.want)
		}
	}
}
