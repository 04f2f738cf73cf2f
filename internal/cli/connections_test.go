// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/pusher"
)

// resolveToLoopback has every name that is not in the hosts file resolve to
// 127.0.0.1, for the time of a test.
func resolveToLoopback(t *testing.T) {
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go answerWithLoopback(server)
		return client, nil
	}}
}

// answerWithLoopback answers DNS queries as over TCP, each after its length.
func answerWithLoopback(c net.Conn) {
	defer c.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		raw := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, raw); err != nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(raw); err != nil {
			return
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			}}
		}
		answer, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// seen is what a registry has seen of its clients.
type seen struct {
	mu           sync.Mutex
	requests     int
	certificates int
	signedIn     []string
}

func (s *seen) get() (requests, certificates int, signedIn []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.certificates, s.signedIn
}

// observed is a registry that notes what it sees.
type observed struct {
	*httptest.Server
	seen
	port string
}

type kind int

const (
	plainHTTP kind = iota
	selfSigned
	trusted // by whoever has the authority of certificatesFor
)

// newObserved starts a registry. A locked one wants credentials, and takes any.
func newObserved(t *testing.T, k kind, locked bool, trustDir string) *observed {
	t.Helper()
	blobs := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	o := &observed{}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		o.mu.Lock()
		o.requests++
		if r.TLS != nil {
			o.certificates += len(r.TLS.PeerCertificates)
		}
		if auth != "" {
			o.signedIn = append(o.signedIn, auth)
		}
		o.mu.Unlock()
		if locked && auth == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, r)
	}))
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(o.Close)
	switch k {
	case plainHTTP:
		o.Start()
	case trusted:
		pair, err := tls.LoadX509KeyPair(filepath.Join(trustDir, "server.pem"), filepath.Join(trustDir, "server.key"))
		if err != nil {
			t.Fatal(err)
		}
		o.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
		o.StartTLS()
	default:
		o.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
		o.StartTLS()
	}
	_, o.port, _ = net.SplitHostPort(o.Listener.Addr().String())
	return o
}

func (o *observed) at(host string) string { return net.JoinHostPort(host, o.port) }

// certificatesFor makes an authority that signed for target.test, other.test
// and 127.0.0.1.
func certificatesFor(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if _, err := realreg.MakeCertificates(dir, "target.test", "other.test"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Flags about the registry of REFERENCE do nothing for another registry, by
// whichever flag that is named.
func TestFlagsOfTheTargetStayThere(t *testing.T) {
	for _, tt := range []struct {
		name          string
		target, other kind
		locked        bool // the registries want credentials
		flags         []string
		reached       bool // the other registry gets requests
	}{
		{name: "insecure", target: selfSigned, other: selfSigned, flags: []string{"--insecure"}},
		{name: "no verification", target: selfSigned, other: selfSigned, flags: []string{"--tls-verify=false"}},
		{name: "insecure and plain HTTP", target: selfSigned, other: plainHTTP, flags: []string{"--insecure"}},
		{name: "plain HTTP", target: plainHTTP, other: plainHTTP, flags: []string{"--plain-http"}},
		{
			name: "client certificate", target: trusted, other: trusted, reached: true,
			flags: []string{"--ca-file", "CERTS/ca.pem", "--cert-file", "CERTS/cert.pem", "--key-file", "CERTS/key.pem"},
		},
		{name: "directory of certificates", target: trusted, other: trusted, flags: []string{"--cert-dir", "CERTS/dir"}},
		{name: "creds", target: trusted, other: trusted, locked: true, reached: true, flags: []string{"--ca-file", "CERTS/ca.pem", "--creds", "me:secret"}},
		{
			name: "username", target: trusted, other: trusted, locked: true, reached: true,
			flags: []string{"--ca-file", "CERTS/ca.pem", "--username", "me", "--password-stdin"},
		},
		{
			name: "registry token", target: trusted, other: trusted, locked: true, reached: true,
			flags: []string{"--ca-file", "CERTS/ca.pem", "--registry-token", "secret"},
		},
	} {
		for _, by := range []string{"--tag", "--cache-from"} {
			t.Run(tt.name+" "+by, func(t *testing.T) {
				resolveToLoopback(t)
				certs := certificatesFor(t)
				if err := os.Mkdir(filepath.Join(certs, "dir"), 0o700); err != nil {
					t.Fatal(err)
				}
				for from, to := range map[string]string{"ca.pem": "ca.crt", "cert.pem": "me.cert", "key.pem": "me.key"} {
					if err := os.Link(filepath.Join(certs, from), filepath.Join(certs, "dir", to)); err != nil {
						t.Fatal(err)
					}
				}
				target, other := newObserved(t, tt.target, tt.locked, certs), newObserved(t, tt.other, tt.locked, certs)
				r := newRig(t, push)
				r.stdin = strings.NewReader("secret\n")
				address, id := fakeEngine(t, nil) // --cache-from is about layers that it does not compress
				args := []string{"--retry-for=0", "--no-state", "--no-engine-update", "--cache-dir", t.TempDir(), "--docker-host", address, by, other.at("other.test") + "/team/app:1"}
				for _, f := range tt.flags {
					args = append(args, strings.ReplaceAll(f, "CERTS", certs))
				}
				code := r.main(append(args, "docker-daemon:"+id, target.at("target.test")+"/team/app:1"))
				if want := map[bool]int{true: exitPermanent, false: exitOK}[by == "--tag" && (!tt.reached || tt.locked)]; code != want {
					t.Errorf("exit code %d, want %d\n%s", code, want, r.stderr.String())
				}
				if n, _, _ := target.get(); n == 0 {
					t.Errorf("the target has seen no request\n%s", r.stderr.String())
				}
				requests, certificates, signedIn := other.get()
				// Layers are not taken from there, see TestNobodyElseSaysWhatALayerIs.
				reached := tt.reached && by != "--cache-from"
				if (requests > 0) != reached || certificates > 0 || len(signedIn) > 0 {
					t.Errorf("the other registry has seen %d requests, %d certificates and %v\n%s", requests, certificates, signedIn, r.stderr.String())
				}
			})
		}
	}
}

// One host can be the registry of SOURCE and of REFERENCE. Each role has its
// flags.
func TestFlagsBelongToARole(t *testing.T) {
	const ref, other, src = "reg.example", "other.example", "src.example"
	certs := certificatesFor(t)
	for _, tt := range []struct {
		name     string
		args     []string
		source   string
		registry string
		as       role
		check    func(o pusher.Options) bool
	}{
		{"target", []string{"--insecure"}, src, ref, asTarget, isLax},
		{"target on the source's host", []string{"--src-insecure"}, ref, ref, asTarget, isStrict},
		{"source on the target's host", []string{"--insecure"}, ref, ref, asSource, isStrict},
		{"source", []string{"--src-insecure"}, src, src, asSource, isLax},
		{"another target on the source's host", []string{"--src-insecure"}, src, src, asTarget, isStrict},
		{"plain HTTP elsewhere", []string{"--plain-http"}, src, other, asTarget, isStrict},
		{"plain HTTP at the source", []string{"--src-plain-http"}, src, src, asSource, func(o pusher.Options) bool { return o.Scheme == pusher.SchemeHTTP }},
		{"an authority elsewhere", []string{"--ca-file", filepath.Join(certs, "ca.pem")}, src, other, asTarget, trusts},
		{"an authority of the target's at the source", []string{"--ca-file", filepath.Join(certs, "ca.pem")}, src, src, asSource, isStrict},
		{"credentials of the target", []string{"--creds", "me:secret"}, src, ref, asTarget, signsInAs(ref, "me")},
		{"credentials elsewhere", []string{"--creds", "me:secret"}, src, other, asTarget, signsInAs(other, "")},
		{"credentials of the target at the source", []string{"--creds", "me:secret"}, ref, ref, asSource, signsInAs(ref, "")},
		{"credentials of the source at the target", []string{"--src-creds", "me:secret"}, ref, ref, asTarget, signsInAs(ref, "")},
		{"credentials of the source", []string{"--src-creds", "me:secret"}, src, src, asSource, signsInAs(src, "me")},
		{"credentials of the source elsewhere", []string{"--src-creds", "me:secret"}, src, src, asTarget, signsInAs(src, "")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			var o options
			cmd := newGroup("all")
			for _, g := range o.pushFlags() {
				cmd.AddFlagSet(g.FlagSet)
			}
			if err := cmd.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			if err := o.load(cmd.FlagSet, nil); err != nil {
				t.Fatal(err)
			}
			repo := func(host string) name.Repository {
				repo, err := name.NewRepository(host + "/team/app")
				if err != nil {
					t.Fatal(err)
				}
				return repo
			}
			po, err := r.connect(&o, ref, repo(tt.source)).options(repo(tt.registry), tt.as)
			if err != nil || !tt.check(po) {
				t.Errorf("%v: options %+v, %v", tt.args, po, err)
			}
		})
	}
}

func isLax(o pusher.Options) bool {
	return o.Scheme == pusher.SchemeEither && o.TLSClientConfig.InsecureSkipVerify
}

func isStrict(o pusher.Options) bool {
	return o.Scheme == pusher.SchemeAuto && o.TLSClientConfig == nil
}

func trusts(o pusher.Options) bool {
	return o.Scheme == pusher.SchemeAuto && o.TLSClientConfig.RootCAs != nil && !o.TLSClientConfig.InsecureSkipVerify
}

func signsInAs(host, user string) func(pusher.Options) bool {
	return func(o pusher.Options) bool {
		repo, err := name.NewRepository(host + "/team/app")
		if err != nil {
			return false
		}
		auth, err := o.Keychain.Resolve(repo)
		if err != nil {
			return false
		}
		conf, err := auth.Authorization()
		return err == nil && conf.Username == user
	}
}

// portMark is what certs.d has for the colon of a host and port.
var portMark = map[bool]string{true: "", false: ":"}[runtime.GOOS == "windows"]

// fakeEngine has one image, and settings about registries as of GET /info. It
// returns the address and the image's ID.
func fakeEngine(t *testing.T, registryConfig map[string]any) (address, id string) {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("some/app:1")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		switch path := r.URL.Path; {
		case strings.HasSuffix(path, "/_ping"):
		case strings.HasSuffix(path, "/info"):
			answer(w, map[string]any{"RegistryConfig": registryConfig})
		case strings.HasSuffix(path, "/images/get"):
			if err := tarball.Write(tag, img, w); err != nil {
				t.Error(err)
			}
		case strings.HasSuffix(path, "/images/json"):
			answer(w, []any{})
		case strings.HasSuffix(path, "/json"):
			answer(w, map[string]any{"Id": hash.String(), "Os": "linux", "Architecture": "amd64", "RootFS": map[string]any{"Layers": config.RootFS.DiffIDs}})
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return "tcp://" + s.Listener.Addr().String(), hash.String()
}

// The engine's networks turn verification off for addresses, never for what a
// name resolves to, nor if certs.d has a CA for the registry.
func TestEngineTurnsVerificationOff(t *testing.T) {
	network := func(string) map[string]any {
		return map[string]any{"InsecureRegistryCIDRs": []string{"::1/128", "127.0.0.0/8"}}
	}
	named := func(host string) map[string]any {
		return map[string]any{"IndexConfigs": map[string]any{host: map[string]any{"Name": host, "Secure": false}}}
	}
	for _, tt := range []struct {
		name    string
		host    string // the registry's, without a port
		engine  func(host string) map[string]any
		certsD  bool // certs.d has a CA, of others
		flags   []string
		another bool // it is the registry of --tag; that of REFERENCE is trusted
		pushed  bool
	}{
		{name: "an address in a network", host: "127.0.0.1", engine: network, pushed: true},
		{name: "localhost", host: "localhost", engine: network, pushed: true},
		{name: "a name that resolves into a network", host: "target.test", engine: network},
		{name: "a name", host: "target.test", engine: named, pushed: true},
		{name: "an address and a CA", host: "127.0.0.1", engine: network, certsD: true},
		{name: "a name and a CA", host: "target.test", engine: named, certsD: true},
		{name: "another target", host: "other.test", engine: named, another: true, pushed: true},
		{name: "another target that resolves into a network", host: "other.test", engine: network, another: true},
		{name: "another target and a flag of the first", host: "other.test", engine: network, another: true, flags: []string{"--insecure"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resolveToLoopback(t)
			certs := certificatesFor(t)
			reg := newObserved(t, selfSigned, false, "")
			host := reg.at(tt.host)
			r := newRig(t, push)
			home, err := os.UserHomeDir()
			if err != nil {
				t.Fatal(err)
			}
			trust := func(host string) {
				dir := filepath.Join(home, ".docker", "certs.d", strings.ReplaceAll(host, ":", portMark))
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Link(filepath.Join(certs, "ca.pem"), filepath.Join(dir, "ca.crt")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.certsD {
				trust(host)
			}
			address, id := fakeEngine(t, tt.engine(host))
			args := slices.Concat(tt.flags, []string{
				"--retry-for=0", "--no-state", "--no-engine-update", "--cache-dir", t.TempDir(), "--docker-host", address,
			})
			ref := host + "/team/app:1"
			if tt.another {
				first := newObserved(t, trusted, false, certs)
				args = append(args, "--tag", ref)
				ref = first.at("target.test") + "/team/app:1"
				trust(first.at("target.test"))
			}
			code := r.main(append(args, "docker-daemon:"+id, ref))
			requests, _, _ := reg.get()
			if pushed := code == exitOK && requests > 0; pushed != tt.pushed || !pushed && requests > 0 {
				t.Errorf("exit code %d, %d requests, want pushed: %t\n%s", code, requests, tt.pushed, r.stderr.String())
			}
			if !tt.pushed && !strings.Contains(r.stderr.String(), "certificate") {
				t.Errorf("stderr %q; want a word about the certificate", r.stderr.String())
			}
		})
	}
}
