// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/intercept"
)

func TestRegistryNamedBy(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "images.d", "app.tar")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for arg, want := range map[string]string{
		"registry.example/team/app:1":               "registry.example",
		"docker://registry.example:5000/app":        "registry.example:5000",
		"oci://registry.example/charts":             "registry.example",
		"--destination=registry.example/team/app":   "registry.example",
		"localhost:5000/app":                        "localhost:5000",
		"localhost/app":                             "localhost",
		"192.0.2.1:5000/app":                        "192.0.2.1:5000",
		"[2001:db8::1]:5000/app":                    "[2001:db8::1]:5000",
		"team/app:1":                                "",
		"app":                                       "",
		"images.d/app.tar":                          "",
		"./app.tar":                                 "",
		"../registry.example/app":                   "",
		"/registry.example/app":                     "",
		"oci:registry.example/app":                  "",
		"-o":                                        "",
		"user@registry.example/app":                 "",
		"https://user:password@registry.example/v2": "",
		"https://files.example/app.tar":             "",
		"http://files.example:8080/app.tar":         "",
		"--url=https://files.example/app.tar":       "",
	} {
		if got := registryNamedBy(arg); got != want {
			t.Errorf("%s: got %q, want %q", arg, got, want)
		}
	}
}

// Flags are for the registries that the call is about, not for those that
// docker login has credentials for.
func TestInterceptedRegistries(t *testing.T) {
	dir := t.TempDir()
	config := `{"auths": {"https://index.docker.io/v1/": {}, "other.example": {}}, "credHelpers": {"helped.example": "x"}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"} {
		t.Setenv(k, "")
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	args := []string{"skopeo", "copy", "oci:x", "docker://registry.example/app"}

	in, err := interceptedRegistries(nil, args)
	if err != nil || !slices.Equal(in.asked, []string{"registry.example"}) ||
		!slices.Equal(in.all, []string{"registry.example", "index.docker.io", "helped.example", "other.example"}) {
		t.Errorf("got %+v, %v", in, err)
	}
	if !slices.Contains(in.hosts(), "registry-1.docker.io") {
		t.Errorf("hosts: %v", in.hosts())
	}
	if r := in.registry(&url.URL{Scheme: "https", Host: "registry-1.docker.io"}); r != "index.docker.io" {
		t.Errorf("got %s", r)
	}
	in, err = interceptedRegistries([]string{"registry.example:5000"}, args)
	if err != nil || !slices.Equal(in.all, []string{"registry.example:5000"}) || !slices.Equal(in.asked, in.all) {
		t.Errorf("got %+v, %v", in, err)
	}
	for _, bad := range []string{"registry.example/team", "https://registry.example", "user@registry.example"} {
		if _, err := interceptedRegistries([]string{bad}, args); err == nil {
			t.Errorf("--registry %s is taken", bad)
		}
	}
}

// Flags about one registry must not make connections to others unverified.
func TestRunFlagsReachOneRegistry(t *testing.T) {
	newRig(t, nil)
	for _, tt := range []struct {
		name  string
		flags []string
		env   map[string]string
		asked []string
		fails bool
		lax   bool
	}{
		{"one", []string{"--insecure"}, nil, []string{"reg.example"}, false, true},
		{"none", []string{"--insecure"}, nil, nil, true, false},
		{"two", []string{"--insecure"}, nil, []string{"reg.example", "other.example"}, true, false},
		{"two, not verified", []string{"--tls-verify=false"}, nil, []string{"reg.example", "other.example"}, true, false},
		{"two over plain HTTP", []string{"--plain-http"}, nil, []string{"reg.example", "other.example"}, true, false},
		{"two with a client certificate", []string{"--cert-file=c", "--key-file=k"}, nil, []string{"reg.example", "other.example"}, true, false},
		{"two with a directory", []string{"--cert-dir=d"}, nil, []string{"reg.example", "other.example"}, true, false},
		{"one, by a variable", nil, map[string]string{"RPUSH_INSECURE": "true"}, []string{"reg.example"}, false, true},
		{"two, by a variable", nil, map[string]string{"RPUSH_INSECURE": "true"}, []string{"reg.example", "other.example"}, false, false},
		{"two with an authority", []string{"--ca-file=f"}, nil, []string{"reg.example", "other.example"}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := runOptions(t, tt.flags, tt.env)
			in := intercepted{asked: tt.asked, all: append([]string{"login.example"}, tt.asked...)}
			if err := in.check(o); (err != nil) != tt.fails || err != nil && !strings.Contains(err.Error(), "--registry") {
				t.Fatalf("check: %v, want an error that names --registry: %t", err, tt.fails)
			}
			if lax := in.flagsFor(o, "reg.example").insecure; !tt.fails && lax != tt.lax {
				t.Errorf("insecure: %t", lax)
			}
			if in.flagsFor(o, "login.example").insecure {
				t.Error("a registry of docker login is insecure")
			}
		})
	}
}

// runOptions are what flags and variables of gateway run say.
func runOptions(t *testing.T, flags []string, env map[string]string) *options {
	t.Helper()
	var o options
	var registries []string
	all := newGroup("all")
	for _, g := range o.runFlags(&registries) {
		all.AddFlagSet(g.FlagSet)
	}
	if err := all.Parse(flags); err != nil {
		t.Fatal(err)
	}
	if err := o.load(all.FlagSet, env); err != nil {
		t.Fatal(err)
	}
	return &o
}

// The command loses ALL_PROXY, so it has to count for what is passed on.
func TestForwardProxies(t *testing.T) {
	for _, k := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(k, "")
	}
	for _, tt := range []struct {
		env         map[string]string
		https, http string
	}{
		{nil, "", ""},
		{map[string]string{"ALL_PROXY": "socks5://all.example:1080"}, "socks5://all.example:1080", "socks5://all.example:1080"},
		{map[string]string{"all_proxy": "http://all.example:3128", "HTTPS_PROXY": "http://one.example:3128"}, "http://one.example:3128", "http://all.example:3128"},
		{map[string]string{"ALL_PROXY": "http://all.example:3128", "NO_PROXY": "other.example"}, "", ""},
	} {
		t.Run(fmt.Sprint(tt.env), func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			forward := forwardProxies()
			for scheme, want := range map[string]string{"https": tt.https, "http": tt.http} {
				u, err := forward(&url.URL{Scheme: scheme, Host: "other.example"})
				got := ""
				if u != nil {
					got = u.String()
				}
				if err != nil || got != want {
					t.Errorf("%s: got %q, %v, want %q", scheme, got, err, want)
				}
			}
		})
	}
}

// A registry may be named with the default port, which URLs leave out.
func TestRegistryWithDefaultPort(t *testing.T) {
	in := intercepted{all: []string{"reg.example:443", "old.example:80", "other.example:5000", "[2001:db8::1]:443", "plain.example"}}
	for at, want := range map[string]string{
		"https://reg.example":        "reg.example:443",
		"https://REG.example":        "reg.example:443",
		"http://reg.example":         "reg.example",
		"http://old.example":         "old.example:80",
		"https://old.example":        "old.example",
		"https://other.example":      "other.example",
		"https://other.example:5000": "other.example:5000",
		"https://[2001:db8::1]":      "[2001:db8::1]:443",
		"https://plain.example":      "plain.example",
		"http://plain.example":       "plain.example",
		"https://plain.example:5000": "plain.example:5000",
	} {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		if got := in.registry(u); got != want {
			t.Errorf("%s: got %s, want %s", at, got, want)
		}
	}
}

// --insecure and --plain-http reach a registry that does not speak TLS, though the
// command asks for https. Without them the command sees that it does not.
func TestRunReachesAPlainRegistry(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, tt := range []struct {
		flags []string
		plain bool
	}{
		{nil, true},
		{[]string{"--insecure"}, false},
		{[]string{"--tls-verify=false"}, false},
		{[]string{"--plain-http"}, false},
	} {
		t.Run(fmt.Sprint(tt.flags), func(t *testing.T) {
			r := newRig(t, nil)
			o := runOptions(t, append(tt.flags, "--no-state", "--cache-dir="+t.TempDir()), nil)
			g, err := gateway.New(r.gatewayOptions(o, 0, logrus.ErrorLevel))
			if err != nil {
				t.Fatal(err)
			}
			in := intercepted{asked: []string{host}, all: []string{host}}
			h, err := r.runHandler(t.Context(), g, o, in, &url.URL{Scheme: "https", Host: host})
			if tt.plain {
				if !errors.Is(err, intercept.ErrPlain) {
					t.Errorf("got %v, want ErrPlain", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/v2/", nil))
			if w.Code != http.StatusTeapot {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
}

// --plain-http is plain HTTP, whatever the registry turns out to speak.
func TestRunPlainHTTPIsPlain(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	r := newRig(t, nil)
	o := runOptions(t, []string{"--plain-http", "--no-state", "--cache-dir=" + t.TempDir()}, nil)
	g, err := gateway.New(r.gatewayOptions(o, 0, logrus.ErrorLevel))
	if err != nil {
		t.Fatal(err)
	}
	in := intercepted{asked: []string{host}, all: []string{host}}
	h, err := r.runHandler(t.Context(), g, o, in, &url.URL{Scheme: "https", Host: host})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/v2/", nil))
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "HTTP request to an HTTPS server") {
		t.Errorf("got %d %s, want what a TLS server says to plain HTTP", w.Code, w.Body)
	}
}
