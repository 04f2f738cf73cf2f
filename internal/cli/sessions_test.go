// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpush-go/rpush/resume"
)

// A record of a push over plain HTTP is asked about over plain HTTP only if
// the user says so again, and only below the registry's uploads.
func TestPlantedRecordGetsNoCredentials(t *testing.T) {
	var requests, signedIn, deleted atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		signedIn.Add(1)
		if r.Method == http.MethodDelete {
			deleted.Add(1)
		}
	}))
	defer srv.Close()
	// An address of this machine that docker does not call insecure.
	host := strings.Replace(strings.TrimPrefix(srv.URL, "http://"), "127.0.0.1", "0.0.0.0", 1)
	plant := func(dir, path string) {
		k := resume.Key{Registry: "http://" + host, Repository: "team/app", Digest: digestA}
		lease, err := resume.NewFileStore(dir).Reserve(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		r := resume.Record{Key: k, Location: "http://" + host + path, Size: 10, Opened: time.Now(), Updated: time.Now()}
		if err := errors.Join(lease.Save(context.Background(), r), lease.Release(context.Background())); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, path string
		args       []string
		signedIn   bool
	}{
		{"check", "/v2/team/app/blobs/uploads/1", []string{"sessions", "--check"}, false},
		{"forget", "/v2/team/app/blobs/uploads/1", []string{"sessions", "forget", "--all"}, false},
		{"check over plain HTTP", "/v2/team/app/blobs/uploads/1", []string{"sessions", "--check", "--plain-http"}, true},
		{"check a manifest", "/v2/team/app/manifests/latest", []string{"sessions", "--check", "--plain-http"}, false},
		{"forget a manifest", "/v2/team/app/manifests/latest", []string{"sessions", "forget", "--all", "--plain-http"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			requests.Store(0)
			signedIn.Store(0)
			deleted.Store(0)
			r := newRig(t, nil)
			auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
			conf := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
			if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			plant(dir, c.path)
			code := r.main(append(c.args, "--state-dir", dir))
			if code != 0 {
				t.Errorf("exit code %d: %s", code, r.stderr.String())
			}
			if (signedIn.Load() > 0) != c.signedIn || !c.signedIn && requests.Load() > 0 || deleted.Load() > 0 {
				t.Errorf("%d requests, %d with credentials, %d DELETE:\n%s%s", requests.Load(), signedIn.Load(), deleted.Load(), r.stdout.String(), r.stderr.String())
			}
		})
	}
}

// Flags about TLS are for one registry. With records of several, nothing says
// for which, and none gets them.
func TestSessionsFlagsReachOneRegistry(t *testing.T) {
	newRig(t, nil)
	one, two := newObserved(t, selfSigned, false, ""), newObserved(t, selfSigned, false, "")
	certs := certificatesFor(t)
	pair := []string{"--cert-file", filepath.Join(certs, "server.pem"), "--key-file", filepath.Join(certs, "server.key"), "--tls-verify=false"}
	at := one.at("127.0.0.1")
	for _, c := range []struct {
		name   string
		args   []string
		env    string
		exit   int
		first  bool // the first registry is reached
		second bool
	}{
		{"check", []string{"--check"}, "", exitUsage, false, false},
		{"list", []string{"list"}, "", exitOK, false, false},
		{"check, by a variable", []string{"--check"}, "RPUSH_TLS_VERIFY=false", exitOK, false, false},
		{"check one", []string{"--check", "--registry", at}, "", exitOK, true, false},
		{"check one, by a variable", []string{"--check", "--registry", at}, "RPUSH_TLS_VERIFY=false", exitOK, true, false},
		{"check another", []string{"--check", "--registry", "other.test"}, "", exitOK, false, false},
		{"no registry", []string{"--check", "--registry", "a/b/c"}, "", exitUsage, false, false},
		{"forget all", []string{"forget", "--all"}, "", exitUsage, false, false},
		{"forget a blob", []string{"forget", string(digestA)}, "", exitUsage, false, false},
		{"forget a blob at one", []string{"forget", string(digestA), "--registry", at}, "", exitOK, true, false},
		{"forget a repository", []string{"forget", at + "/team/app"}, "", exitOK, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			dir := t.TempDir()
			for _, host := range []string{at, two.at("127.0.0.1")} {
				k := resume.Key{Registry: "https://" + host, Repository: "team/app", Digest: digestA}
				lease, err := resume.NewFileStore(dir).Reserve(context.Background(), k)
				if err != nil {
					t.Fatal(err)
				}
				rec := resume.Record{Key: k, Location: "https://" + host + "/v2/team/app/blobs/uploads/1", Size: 10, Opened: time.Now(), Updated: time.Now()}
				if err := errors.Join(lease.Save(context.Background(), rec), lease.Release(context.Background())); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"sessions"}, append(c.args, "--state-dir", dir)...)
			if name, value, ok := strings.Cut(c.env, "="); ok {
				r.env[name] = value
			} else {
				args = append(args, pair...)
			}
			before1, certs1, _ := one.get()
			before2, certs2, _ := two.get()
			if exit := r.main(args); exit != c.exit {
				t.Errorf("exit code %d, want %d: %s", exit, c.exit, r.stderr.String())
			}
			after1, shown1, _ := one.get()
			after2, shown2, _ := two.get()
			if (after1 > before1) != c.first || (after2 > before2) != c.second {
				t.Errorf("%d and %d requests", after1-before1, after2-before2)
			}
			if c.env == "" && (shown1 > certs1) != c.first || shown2 > certs2 {
				t.Errorf("%d and %d certificates were shown", shown1-certs1, shown2-certs2)
			}
		})
	}
}
