// SPDX-License-Identifier: Apache-2.0

// Package tokens is an authorisation server that hands out bearer tokens for a
// registry (distribution's "token" authorisation), with a life as short as a
// test wants it. See https://distribution.github.io/distribution/spec/auth/jwt/.
package tokens

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const (
	service = "registry of the test"
	issuer  = "tokens of the test"

	// leeway is how long distribution 2 and 3 go on taking a token after its
	// exp (registry/auth/token/token.go), so exp lies that much earlier.
	leeway = 60 * time.Second
)

// Server is an authorisation server on loopback. It knows realreg.User, who
// may do everything.
type Server struct {
	// Life is how long a registry takes a token. JWTs count whole seconds, so
	// it may be up to one longer.
	Life time.Duration

	url, caFile string
	key         *ecdsa.PrivateKey
	certificate []byte
	issued      atomic.Int64
	refused     atomic.Int64
}

// Start runs a server until the end of the test. The registry is told of it by
// realreg.Options.Token.
func Start(t realreg.TB, life time.Duration) *Server {
	t.Helper()
	s := &Server{Life: life}
	dir := t.TempDir()
	var err error
	if s.caFile, err = realreg.MakeCertificates(dir); err == nil {
		err = s.load(dir)
	}
	if err != nil {
		t.Fatalf("tokens: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("tokens: %v", err)
	}
	// By name: go-containerregistry follows no realm at a private address.
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	s.url = "http://localhost:" + port + "/token"
	srv := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return s
}

func (s *Server) load(dir string) error {
	var der [2][]byte
	for i, name := range []string{"server.pem", "server.key"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return fmt.Errorf("no PEM in %s", name)
		}
		der[i] = block.Bytes
	}
	s.certificate = der[0]
	key, err := x509.ParsePKCS8PrivateKey(der[1])
	if err != nil {
		return err
	}
	var ok bool
	if s.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return errors.New("not an ECDSA key")
	}
	return nil
}

// Auth is what a registry has to know of the server.
func (s *Server) Auth() *realreg.TokenAuth {
	return &realreg.TokenAuth{Realm: s.url, Service: service, Issuer: issuer, CAFile: s.caFile}
}

// Issued is the number of tokens handed out.
func (s *Server) Issued() int { return int(s.issued.Load()) }

// Refused is the number of requests without the right password.
func (s *Server) Refused() int { return int(s.refused.Load()) }

type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP answers a request for a token.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/token" || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	user, password, _ := r.BasicAuth()
	q := r.URL.Query()
	if user != realreg.User || password != realreg.Password || q.Get("service") != service {
		s.refused.Add(1)
		w.Header().Set("WWW-Authenticate", `Basic realm="tokens"`)
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	granted := []access{}
	for _, scope := range q["scope"] {
		for one := range strings.FieldsSeq(scope) {
			kind, rest, _ := strings.Cut(one, ":")
			at := strings.LastIndexByte(rest, ':')
			if at < 0 {
				continue
			}
			granted = append(granted, access{kind, rest[:at], strings.Split(rest[at+1:], ",")})
		}
	}
	token, err := s.sign(granted, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.issued.Add(1)
	w.Header().Set("Content-Type", "application/json")
	// No expires_in: most servers are silent too, and the client has to find out.
	json.NewEncoder(w).Encode(map[string]string{"token": token})
}

// sign makes a JWT whose key is vouched for by the certificate in its x5c
// header, a form that distribution 2 and 3 both read.
func (s *Server) sign(granted []access, now time.Time) (string, error) {
	header := map[string]any{
		"typ": "JWT", "alg": "ES256",
		"x5c": []string{base64.StdEncoding.EncodeToString(s.certificate)},
	}
	expires := now.Add(s.Life-leeway).Unix() + 1
	claims := map[string]any{
		"iss": issuer, "sub": realreg.User, "aud": service,
		// Both stay behind exp: a token must not have ended before it begins.
		"nbf": expires - 60, "iat": expires - 60, "exp": expires,
		"jti": rand.Text(), "access": granted,
	}
	var text string
	for _, part := range []any{header, claims} {
		b, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		text += base64.RawURLEncoding.EncodeToString(b) + "."
	}
	text = strings.TrimSuffix(text, ".")
	sum := sha256.Sum256([]byte(text))
	r, q, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64) // RFC 7518, section 3.4
	r.FillBytes(signature[:32])
	q.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
