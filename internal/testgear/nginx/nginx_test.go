// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

func crane(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), realreg.Tool(t, "crane"), args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("crane %s: %v\n%s", args[0], err, out)
	}
}

func TestPushAndPull(t *testing.T) {
	for _, o := range []Options{{}, {Unbuffered: true}, {TLS: true, BasicAuth: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			n := Start(t, realreg.Start(t, realreg.Options{}).Addr, o)
			env := []string{"DOCKER_CONFIG=" + t.TempDir()}
			if o.TLS {
				env = append(env, "SSL_CERT_FILE="+n.CAFile)
			}
			if o.BasicAuth {
				crane(t, env, "auth", "login", n.Addr, "-u", realreg.User, "-p", realreg.Password)
			}
			im, err := ocilayout.Write(t.TempDir(), 1, 3<<20, 1000)
			if err != nil {
				t.Fatal(err)
			}
			ref, back := n.Addr+"/team/app:latest", t.TempDir()
			crane(t, env, "push", im.Dir, ref)
			crane(t, env, "pull", "--format=oci", ref, back)
			if err := ocilayout.Compare(im.Dir, back); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whom nginx turns away, what it makes of the headers, and when a body
// arrives.
func TestRules(t *testing.T) {
	arrived := make(chan string, 1)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			arrived <- r.Header.Get("X-Forwarded-Proto") + "://" + r.Host
			io.Copy(io.Discard, r.Body)
		}
	}))
	defer registry.Close()
	target := strings.TrimPrefix(registry.URL, "http://")

	do := func(n *Nginx, method, agent string, auth bool, body io.Reader, size int64) int {
		t.Helper()
		tr := &http.Transport{DisableKeepAlives: true}
		scheme := "http://"
		if n.CAFile != "" {
			scheme = "https://"
			pem, err := os.ReadFile(n.CAFile)
			if err != nil {
				t.Fatal(err)
			}
			tr.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
			tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, scheme+n.Addr+"/v2/", body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		req.Header.Set("User-Agent", agent)
		if auth {
			req.SetBasicAuth(realreg.User, realreg.Password)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}

	plain := Start(t, target, Options{MaxBody: 1000})
	for agent, want := range map[string]int{"rpush/1": 200, "Go 1.1 package http": 404, "docker/1.4.1": 404} {
		if got := do(plain, "GET", agent, false, nil, 0); got != want {
			t.Errorf("%s: got %d, want %d", agent, got, want)
		}
	}
	if got := do(plain, "PUT", "rpush/1", false, bytes.NewReader(make([]byte, 1001)), 1001); got != http.StatusRequestEntityTooLarge {
		t.Errorf("1001 bytes: got %d", got)
	}

	secure := Start(t, target, Options{TLS: true, BasicAuth: true})
	if got := do(secure, "GET", "rpush/1", false, nil, 0); got != http.StatusUnauthorized {
		t.Errorf("no password: got %d", got)
	}
	if got := do(secure, "PATCH", "rpush/1", true, strings.NewReader("x"), 1); got != http.StatusOK {
		t.Errorf("password: got %d", got)
	}
	if got, want := <-arrived, "https://"+secure.Addr; got != want {
		t.Errorf("the registry was asked as %s, want %s", got, want)
	}

	for _, unbuffered := range []bool{false, true} {
		n := Start(t, target, Options{Unbuffered: unbuffered})
		r, w := io.Pipe()
		go func() {
			w.Write([]byte("first"))
			select {
			case <-arrived:
				if !unbuffered {
					t.Error("half a request was passed on")
				}
			case <-time.After(300 * time.Millisecond):
				if unbuffered {
					t.Error("half a request was held back")
				}
			}
			w.Write([]byte(" last"))
			w.Close()
		}()
		do(n, "PATCH", "rpush/1", false, r, 10)
		if !unbuffered {
			<-arrived
		}
	}
}

func TestStop(t *testing.T) {
	n := Start(t, "127.0.0.1:1", Options{})
	n.Stop()
	n.Stop()
	if _, err := http.Get("http://" + n.Addr); err == nil {
		t.Error("it still answers")
	}
}
