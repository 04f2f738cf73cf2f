// SPDX-License-Identifier: Apache-2.0

package realreg

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
)

func image(t *testing.T) ocilayout.Image {
	t.Helper()
	im, err := ocilayout.Write(t.TempDir(), 1, 3<<20, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// tool runs a program to its end.
func tool(t *testing.T, env []string, path string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), args[0], err, out)
	}
}

func TestPushAndPull(t *testing.T) {
	for _, o := range []Options{
		{}, {TLS: true, BasicAuth: true, Secret: "s"}, {Redis: "start"},
		{Tool: "docker-registry"}, {Tool: "docker-registry", TLS: true, BasicAuth: true}, {Tool: "docker-registry", Redis: "start"},
		{S3: &S3{}}, {S3: &S3{NoRedirect: true, PartSize: 5 << 20}}, {Tool: "docker-registry", S3: &S3{}},
	} {
		t.Run(fmt.Sprintf("%s,tls=%t,redis=%t,s3=%t", o.Tool, o.TLS, o.Redis != "", o.S3 != nil), func(t *testing.T) {
			if o.S3 != nil {
				s := StartS3(t)
				s.PartSize, s.NoRedirect = o.S3.PartSize, o.S3.NoRedirect
				o.S3 = s
			}
			if o.Redis != "" {
				o.Redis = StartRedis(t)
			}
			r := Start(t, o)
			crane := Tool(t, "crane")
			env := []string{"DOCKER_CONFIG=" + t.TempDir()}
			if o.TLS {
				env = append(env, "SSL_CERT_FILE="+r.CAFile)
			}
			if o.BasicAuth {
				tool(t, env, crane, "auth", "login", r.Addr, "-u", User, "-p", Password)
			}
			im := image(t)
			ref, back := r.Addr+"/team/app:latest", t.TempDir()
			tool(t, env, crane, "push", im.Dir, ref)
			tool(t, env, crane, "pull", "--format=oci", ref, back)
			if err := ocilayout.Compare(im.Dir, back); err != nil {
				t.Error(err)
			}
			if o.Redis != "" && keys(t, o.Redis) == 0 {
				t.Error("nothing is in Redis")
			}
			if o.S3 != nil {
				if left, err := os.ReadDir(r.Root); err != nil || len(left) > 0 {
					t.Errorf("in its directory: got %v, %v, want nothing", left, err)
				}
			} else if st, err := os.Stat(r.BlobPath(im.Layers[0].Digest)); err != nil || st.Size() != im.Layers[0].Size {
				t.Errorf("blob: got %v, %v", st, err)
			}
			log, err := r.AccessLog()
			if err != nil {
				t.Fatal(err)
			}
			counts := map[string]int{}
			for _, a := range log {
				counts[fmt.Sprintf("%s %d", a.Method, a.Status)]++
				if !o.BasicAuth && !strings.HasPrefix(a.UserAgent, "crane/") {
					t.Errorf("a line of %q", a.UserAgent)
				}
			}
			if counts["PATCH 202"] != 3 || counts["PUT 201"] != 4 {
				t.Errorf("access log: got %v, want 3 PATCH and 4 PUT", counts)
			}
		})
	}
}

// keys counts what is in a Redis.
func keys(t *testing.T, addr string) (n int) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("DBSIZE\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanf(c, ":%d\r\n", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSkopeo(t *testing.T) {
	r := Start(t, Options{})
	skopeo := Tool(t, "skopeo")
	im := image(t)
	ref, back := "docker://"+r.Addr+"/team/app:latest", t.TempDir()
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, nil, skopeo, "--policy", policy, "copy", "--dest-tls-verify=false", "--preserve-digests", "oci:"+im.Dir+":latest", ref)
	tool(t, nil, skopeo, "--policy", policy, "copy", "--src-tls-verify=false", "--preserve-digests", ref, "oci:"+back+":latest")
	if err := ocilayout.Compare(im.Dir, back); err != nil {
		t.Error(err)
	}
}

// The scripted registry is good enough for a client that knows nothing of it.
func TestScriptedRegistryServesCrane(t *testing.T) {
	crane := Tool(t, "crane")
	for _, auth := range []scripted.Auth{{}, {Scheme: scripted.Bearer, User: User, Password: Password}} {
		g := scripted.New(scripted.Options{Auth: auth})
		s := httptest.NewServer(g)
		defer s.Close()
		addr := strings.TrimPrefix(s.URL, "http://")
		env := []string{"DOCKER_CONFIG=" + t.TempDir()}
		if auth.User != "" {
			tool(t, env, crane, "auth", "login", addr, "-u", User, "-p", Password)
		}
		im := image(t)
		ref, back := addr+"/team/app:latest", t.TempDir()
		tool(t, env, crane, "push", im.Dir, ref)
		tool(t, env, crane, "pull", "--format=oci", ref, back)
		if err := ocilayout.Compare(im.Dir, back); err != nil {
			t.Error(err)
		}
	}
}

func post(t *testing.T, r *Registry) (location string) {
	t.Helper()
	res, err := http.Post(r.URL()+"/v2/team/app/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 202 {
		t.Fatalf("POST: got %s", res.Status)
	}
	return res.Header.Get("Location")
}

func patch(t *testing.T, location string) int {
	t.Helper()
	req, err := http.NewRequest("PATCH", location, bytes.NewReader(make([]byte, 100)))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func TestRestart(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	for secret, want := range map[string]int{"fixed": 202, "": 404} {
		r := Start(t, Options{Secret: secret})
		location := post(t, r)
		addr := r.Addr
		if err := r.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		http.DefaultClient.CloseIdleConnections()
		if r.Addr != addr || !strings.Contains(location, addr) {
			t.Errorf("moved from %s to %s", addr, r.Addr)
		}
		if got := patch(t, location); got != want {
			t.Errorf("secret %q: PATCH on the old location: got %d, want %d", secret, got, want)
		}
		r.Stop()
		r.Stop()
	}
}

func TestRunReportsAFailure(t *testing.T) {
	begin := time.Now()
	_, err := Run(t.Context(), "/bin/false", t.TempDir(), Options{})
	if err == nil || time.Since(begin) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
	if _, err := Run(t.Context(), "/nonexistent", t.TempDir(), Options{}); err == nil {
		t.Error("a missing binary is no error")
	}
}

func TestToolLooksInOrder(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("RPUSH_TOOLS", dir)
	if p, ok := Find("rpush-test-tool"); ok {
		t.Fatalf("found %s", p)
	}
	want := filepath.Join(dir, "rpush-test-tool")
	if err := os.WriteFile(want, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := Tool(t, "rpush-test-tool"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if root, ok := moduleRoot(); !ok || !strings.HasSuffix(firstLine(filepath.Join(root, "go.mod")), "/rpush") {
		t.Errorf("module root: got %q", root)
	}
	if want, _ := exec.LookPath("sh"); want != "" {
		if got := Tool(t, "sh"); got != want {
			t.Errorf("PATH: got %s, want %s", got, want)
		}
	}
}
