// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
)

// --insecure turns verification off for the registry's own host. Credentials go
// to a token server on another host only if its certificate is good.
func TestInsecureIsAboutTheRegistrysHost(t *testing.T) {
	for _, tt := range []struct {
		name     string
		registry string // as the user names it
		token    string // as the registry names it
		args     []string
		signs    bool
	}{
		{"another port", "localhost", "localhost", []string{"--insecure"}, true},
		{"another host", "127.0.0.1", "localhost", []string{"--insecure"}, false},
		{"another host, as skopeo says it", "127.0.0.1", "localhost", []string{"--tls-verify=false"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var signedIn atomic.Int64
			quiet := log.New(io.Discard, "", 0)
			serve := func(h http.HandlerFunc) (port string) {
				srv := httptest.NewUnstartedServer(h)
				srv.Config.ErrorLog = quiet
				srv.StartTLS()
				t.Cleanup(srv.Close)
				_, port, _ = net.SplitHostPort(srv.Listener.Addr().String())
				return port
			}
			tokens := serve(func(w http.ResponseWriter, r *http.Request) {
				if _, _, ok := r.BasicAuth(); ok {
					signedIn.Add(1)
				}
				json.NewEncoder(w).Encode(map[string]string{"token": "good"})
			})
			blobs := registry.New(registry.Logger(quiet))
			port := serve(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer good" {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s:%s/token",service="x"`, tt.token, tokens))
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				blobs.ServeHTTP(w, r)
			})
			r := newRig(t, push)
			dir := t.TempDir()
			if _, err := ocilayout.Write(dir, 1, 1000); err != nil {
				t.Fatal(err)
			}
			args := slices.Concat(tt.args, []string{"--creds=me:secret", "--no-state", "--retry-for=1s", "oci:" + dir, tt.registry + ":" + port + "/team/app:1"})
			exit := r.main(args)
			if (signedIn.Load() > 0) != tt.signs || (exit == exitOK) != tt.signs {
				t.Errorf("exit code %d, %d times signed in: %s", exit, signedIn.Load(), r.stderr.String())
			}
			if !tt.signs && !strings.Contains(r.stderr.String(), "certificate") {
				t.Errorf("the message says nothing about the certificate: %s", r.stderr.String())
			}
		})
	}
}
