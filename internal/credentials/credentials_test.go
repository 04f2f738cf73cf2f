// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// home gives the test a home directory of its own, with no credentials in it.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, env := range []string{"HOME", "USERPROFILE"} {
		t.Setenv(env, dir)
	}
	for _, env := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", envAuths} {
		t.Setenv(env, "")
	}
	return dir
}

func write(t *testing.T, content string, path ...string) string {
	t.Helper()
	file := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// auths is a config file with one entry; the password tells the entries apart.
func auths(key, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, base64.StdEncoding.EncodeToString([]byte("me:"+password)))
}

func target(t *testing.T, repo string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(repo)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func password(t *testing.T, k *Keychain, target authn.Resource) string {
	t.Helper()
	auth, err := k.Resolve(target)
	if err != nil {
		t.Fatalf("Resolve(%s): %v", target, err)
	}
	cfg, err := auth.Authorization()
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Password
}

func TestPlaces(t *testing.T) {
	const repo = "reg.example/team/app"
	tilde := func(parts ...string) string { return filepath.Join(append([]string{"~"}, parts...)...) }
	for _, tt := range []struct {
		name     string
		setup    func(t *testing.T, dir string)
		repo     string
		password string
		from     string
	}{
		{
			name:  "nothing anywhere",
			setup: func(*testing.T, string) {},
			from: "no credentials found (looked in " + tilde(".docker", "config.json") + ", " +
				tilde(".config", "containers", "auth.json") + ")",
		}, {
			name:     "docker's file",
			setup:    func(t *testing.T, dir string) { write(t, auths("reg.example", "p"), dir, ".docker", "config.json") },
			password: "p", from: tilde(".docker", "config.json"),
		}, {
			name: "docker's file without this registry",
			setup: func(t *testing.T, dir string) {
				write(t, auths("other.example", "p"), dir, ".docker", "config.json")
				write(t, auths("reg.example", "unread"), dir, ".config", "containers", "auth.json")
			},
			from: "no credentials found (looked in " + tilde(".docker", "config.json") + ")",
		}, {
			name: "DOCKER_CONFIG wins over home",
			setup: func(t *testing.T, dir string) {
				write(t, auths("reg.example", "home"), dir, ".docker", "config.json")
				write(t, auths("reg.example", "elsewhere"), dir, "ci", "config.json")
				t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "ci"))
			},
			password: "elsewhere", from: tilde("ci", "config.json"),
		}, {
			name: "DOCKER_AUTH_CONFIG wins over files",
			setup: func(t *testing.T, dir string) {
				write(t, auths("reg.example", "home"), dir, ".docker", "config.json")
				t.Setenv(envAuths, auths("reg.example", "env"))
			},
			password: "env", from: "$" + envAuths,
		}, {
			name: "DOCKER_AUTH_CONFIG without this registry",
			setup: func(t *testing.T, dir string) {
				write(t, auths("reg.example", "home"), dir, ".docker", "config.json")
				t.Setenv(envAuths, auths("other.example", "env"))
			},
			password: "home", from: tilde(".docker", "config.json"),
		}, {
			name: "REGISTRY_AUTH_FILE",
			setup: func(t *testing.T, dir string) {
				t.Setenv("REGISTRY_AUTH_FILE", write(t, auths("reg.example", "podman"), dir, "auth.json"))
			},
			password: "podman", from: tilde("auth.json"),
		}, {
			name: "podman's file, by namespace",
			setup: func(t *testing.T, dir string) {
				t.Setenv("XDG_RUNTIME_DIR", dir)
				write(t, auths("reg.example/team", "team"), dir, "containers", "auth.json")
			},
			password: "team", from: tilde("containers", "auth.json"),
		}, {
			name: "Docker Hub",
			setup: func(t *testing.T, dir string) {
				write(t, auths("https://index.docker.io/v1/", "hub"), dir, ".docker", "config.json")
			},
			repo: "alpine", password: "hub", from: tilde(".docker", "config.json"),
		}, {
			name: "Docker Hub, podman's key",
			setup: func(t *testing.T, dir string) {
				write(t, auths("docker.io", "hub"), dir, ".docker", "config.json")
			},
			repo: "alpine", password: "hub", from: tilde(".docker", "config.json"),
		}, {
			name: "home is no directory",
			setup: func(t *testing.T, dir string) {
				if runtime.GOOS == "windows" {
					t.Skip("no ENOTDIR on Windows")
				}
				file := write(t, "", dir, "file")
				t.Setenv("HOME", file)
				t.Setenv("XDG_CONFIG_HOME", dir)
			},
			from: "no credentials found (looked in " + filepath.Join("~", ".docker", "config.json"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.setup(t, home(t))
			var k Keychain
			if tt.repo == "" {
				tt.repo = repo
			}
			r := target(t, tt.repo)
			if got := password(t, &k, r); got != tt.password {
				t.Errorf("password %q, want %q", got, tt.password)
			}
			if got := k.From(r); !strings.HasPrefix(got, tt.from) {
				t.Errorf("From: %q, want %q", got, tt.from)
			}
		})
	}
}

func TestIdentityToken(t *testing.T) {
	write(t, `{"auths":{"reg.example":{"identitytoken":"tok"}}}`, home(t), ".docker", "config.json")
	auth, err := new(Keychain).Resolve(target(t, "reg.example/app"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg, _ := auth.Authorization(); cfg.IdentityToken != "tok" {
		t.Errorf("identity token %q, want %q", cfg.IdentityToken, "tok")
	}
}

// helper puts a credential helper into PATH. It appends the registry it is
// asked about to the file it returns.
func helper(t *testing.T, name, answer string, exit int) (asked string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the helper is a shell script")
	}
	dir := t.TempDir()
	asked = filepath.Join(dir, "asked")
	script := fmt.Sprintf("#!/bin/sh\ncat >>%s; echo >>%s\necho '%s'\nexit %d\n", asked, asked, answer, exit)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return asked
}

func TestHelperIsAskedOnce(t *testing.T) {
	asked := helper(t, "test", `{"Username":"me","Secret":"s"}`, 0)
	for _, tt := range []struct{ config, from string }{
		{`{"credsStore":"test"}`, "credential helper docker-credential-test (credsStore in ~/.docker/config.json)"},
		{`{"credsStore":"none","credHelpers":{"reg.example":"test"}}`, "credential helper docker-credential-test (credHelpers in ~/.docker/config.json)"},
	} {
		write(t, tt.config, home(t), ".docker", "config.json")
		if err := os.RemoveAll(asked); err != nil {
			t.Fatal(err)
		}
		var k Keychain
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got := password(t, &k, target(t, "reg.example/team/app")); got != "s" {
					t.Errorf("password %q, want %q", got, "s")
				}
			})
		}
		wg.Wait()
		if got := k.From(target(t, "reg.example/team/app")); got != tt.from {
			t.Errorf("From: %q, want %q", got, tt.from)
		}
		got, err := os.ReadFile(asked)
		if err != nil || string(got) != "reg.example\n" {
			t.Errorf("the helper was asked about %q (%v), want once about reg.example", got, err)
		}
	}
}

func TestHelperHasNone(t *testing.T) {
	helper(t, "test", "credentials not found in native keychain", 1)
	write(t, `{"credsStore":"test"}`, home(t), ".docker", "config.json")
	var k Keychain
	r := target(t, "reg.example/app")
	if auth, err := k.Resolve(r); err != nil || auth != authn.Anonymous {
		t.Errorf("Resolve: %v, %v; want Anonymous", auth, err)
	}
	want := "no credentials found (looked in ~/.docker/config.json, docker-credential-test, its credsStore)"
	if got := k.From(r); got != want {
		t.Errorf("From: %q, want %q", got, want)
	}
}

// What cannot be used is an error that names the place, never silence.
func TestErrorsNameThePlace(t *testing.T) {
	for _, tt := range []struct {
		name, place string
		setup       func(t *testing.T, dir string)
	}{
		{"malformed", "config.json", func(t *testing.T, dir string) {
			write(t, `{"auths":`, dir, ".docker", "config.json")
		}},
		{"malformed entry", "config.json", func(t *testing.T, dir string) {
			write(t, `{"auths":{"reg.example":{"auth":"!"}}}`, dir, ".docker", "config.json")
		}},
		{"a directory", "config.json", func(t *testing.T, dir string) {
			write(t, "", dir, ".docker", "config.json", "x")
		}},
		{"malformed environment", envAuths, func(t *testing.T, _ string) { t.Setenv(envAuths, "{") }},
		{"missing helper", "docker-credential-absent", func(t *testing.T, dir string) {
			write(t, `{"credsStore":"absent"}`, dir, ".docker", "config.json")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.setup(t, home(t))
			_, err := new(Keychain).Resolve(target(t, "reg.example/app"))
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(e.Place, tt.place) {
				t.Errorf("error %v, want one about %s", err, tt.place)
			}
		})
	}
}
