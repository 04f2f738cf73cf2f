// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/certificates"
	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/engine"
	"github.com/rpush-go/rpush/pusher"
)

// endpoint is the flags about one registry: that of REFERENCE, or that of
// SOURCE, whose flags begin with "src-". [connections] decides which registry
// gets which.
type endpoint struct {
	prefix string
	other  bool // neither of the two: see elsewhere
	ownCA  bool // a configuration file gives caFile for this registry alone

	plainHTTP, tlsVerify, insecure           bool
	caFile, certFile, keyFile, certDir       string
	creds, username, registryToken, authFile string
	passwordStdin, noCreds                   bool
	spelled                                  func(flag string) string
}

func (e *endpoint) tlsFlags(f *pflag.FlagSet) {
	n := func(s string) string { return e.prefix + s }
	e.trustFlags(f)
	f.BoolVar(&e.plainHTTP, n("plain-http"), false, "speak HTTP, never HTTPS")
	f.BoolVar(&e.insecure, n("insecure"), false, "do not verify the registry, and take HTTP")
}

// trustFlags are about certificates alone.
func (e *endpoint) trustFlags(f *pflag.FlagSet) {
	n := func(s string) string { return e.prefix + s }
	f.StringVar(&e.caFile, n("ca-file"), "", "trust the PEM certificates in `FILE` too")
	f.StringVar(&e.certFile, n("cert-file"), "", "show the certificate in `FILE`")
	f.StringVar(&e.keyFile, n("key-file"), "", "the key in `FILE` belongs to it")
	f.StringVar(&e.certDir, n("cert-dir"), "", "use `DIR` as docker uses certs.d/HOST")
	f.BoolVar(&e.tlsVerify, n("tls-verify"), true, "=false: do not verify the registry")
}

func (e *endpoint) signInFlags(f *pflag.FlagSet) {
	n := func(s string) string { return e.prefix + s }
	f.StringVar(&e.authFile, n("authfile"), "", "look for credentials in `FILE` only")
	f.StringVar(&e.creds, n("creds"), "", "sign in as `USER:PASSWORD`; other users of this host can see it, not so its variable")
	f.StringVar(&e.username, n("username"), "", "sign in as `USER`")
	f.BoolVar(&e.passwordStdin, n("password-stdin"), false, "read the password of that user from standard input")
	f.StringVar(&e.registryToken, n("registry-token"), "", "send `TOKEN` as bearer token")
	f.BoolVar(&e.noCreds, n("no-creds"), false, "do not sign in, whatever is stored")
}

// elsewhere is the endpoint of registries that e's flags are not about. They get
// no more of it than --ca-file, as a company's authority signs for all of its
// registries, and --authfile, which says for each registry what it may be sent.
func (e *endpoint) elsewhere() *endpoint {
	caFile := e.caFile
	if e.ownCA {
		caFile = ""
	}
	return &endpoint{
		prefix: e.prefix, other: true, tlsVerify: true, caFile: caFile, authFile: e.authFile,
		spelled: func(flag string) string {
			if flag == e.prefix+"ca-file" || flag == e.prefix+"authfile" {
				return e.spelled(flag)
			}
			return ""
		},
	}
}

// contradictions are those between flags of one endpoint.
func (e *endpoint) contradictions() []contradiction {
	n := func(s string) string { return e.prefix + s }
	verifyGiven := e.spelled(n("tls-verify")) != ""
	all := []contradiction{
		{e.plainHTTP && e.insecure, n("plain-http"), n("insecure")},
		{verifyGiven && e.tlsVerify && e.insecure, n("tls-verify"), n("insecure")},
		{e.certDir != "" && e.certFile != "", n("cert-dir"), n("cert-file")},
	}
	ways := []struct {
		flag string
		set  bool
	}{
		{"no-creds", e.noCreds},
		{"registry-token", e.registryToken != ""},
		{"creds", e.creds != ""},
		{"username", e.username != ""},
	}
	for i, a := range ways {
		for _, b := range ways[i+1:] {
			all = append(all, contradiction{a.set && b.set, n(a.flag), n(b.flag)})
		}
	}
	return all
}

// check finds what is missing.
func (e *endpoint) check() error {
	n := func(s string) string { return "--" + e.prefix + s }
	switch user, _, _ := strings.Cut(e.creds, ":"); {
	case (e.certFile == "") != (e.keyFile == ""):
		return fmt.Errorf(bothOrNone, n("cert-file"), n("key-file"))
	case (e.username == "") != !e.passwordStdin:
		return fmt.Errorf(bothOrNone, n("username"), n("password-stdin"))
	case e.creds != "" && (user == "" || !strings.Contains(e.creds, ":")):
		return fmt.Errorf(badCreds, e.spelled(e.prefix+"creds"))
	}
	return nil
}

// readPassword takes the first line of standard input, for keys to give.
func (e *endpoint) readPassword(in io.Reader, keys *credentials.Keychain) error {
	if !e.passwordStdin {
		return nil
	}
	line, err := bufio.NewReader(io.LimitReader(in, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return &localError{"--" + e.prefix + "password-stdin", err}
	}
	password := strings.TrimRight(line, "\r\n")
	if password == "" {
		return &localError{"--" + e.prefix + "password-stdin", errors.New("standard input has no password")}
	}
	keys.Given.Auth.Password = password
	return nil
}

// signsIn reports whether credentials are given for this endpoint alone.
func (e *endpoint) signsIn() bool {
	return e.noCreds || e.creds != "" || e.username != "" || e.registryToken != ""
}

// keychain finds the credentials for a registry.
func (e *endpoint) keychain(registry string) *credentials.Keychain {
	k := &credentials.Keychain{File: e.authFile}
	if !e.signsIn() {
		return k
	}
	flag, auth := "no-creds", (*authn.AuthConfig)(nil)
	switch {
	case e.creds != "":
		user, password, _ := strings.Cut(e.creds, ":")
		flag, auth = "creds", &authn.AuthConfig{Username: user, Password: password}
	case e.username != "":
		flag, auth = "username", &authn.AuthConfig{Username: e.username} // see readPassword
	case e.registryToken != "":
		flag, auth = "registry-token", &authn.AuthConfig{RegistryToken: e.registryToken}
	}
	k.Given = &credentials.Given{Registry: registry, From: e.spelled(e.prefix + flag), Auth: auth}
	return k
}

// decidesTrust reports whether a flag says how to connect, so that the engine's
// settings have no say.
func (e *endpoint) decidesTrust() bool {
	return slices.ContainsFunc([]string{"plain-http", "tls-verify", "insecure", "ca-file", "cert-dir"},
		func(flag string) bool { return e.spelled(e.prefix+flag) != "" })
}

// apply sets the library's options for connections to registry. It reads files.
// eng is the engine that the image comes from, or nil.
func (e *endpoint) apply(p *pusher.Options, registry string, eng *engine.Engine) error {
	set, err := certificates.For(registry)
	if e.certDir != "" {
		set, err = certificates.Dir(e.certDir)
	}
	if err != nil {
		return &localError{certificatesWords(registry), err}
	}
	if e.caFile != "" {
		pem, err := os.ReadFile(e.caFile)
		if err != nil {
			return &localError{fmt.Sprintf("%s=%s", e.spelled(e.prefix+"ca-file"), e.caFile), err}
		}
		set.CAs = append(set.CAs, pem)
	}
	if e.certFile != "" {
		pair, err := certificates.Pair(e.certFile, e.keyFile)
		if err != nil {
			return &localError{e.spelled(e.prefix + "cert-file"), err}
		}
		set.Client = []tls.Certificate{pair}
	}
	lax := e.insecure || !e.tlsVerify
	if eng != nil && !e.decidesTrust() && len(set.CAs) == 0 { // with a CA, the registry can be verified
		lax = eng.Insecure(registry)
	}
	switch {
	case e.plainHTTP:
		p.Scheme = pusher.SchemeHTTP
	case lax:
		p.Scheme = pusher.SchemeEither
	}
	if set.Empty() && !lax {
		return nil
	}
	pool, err := set.Pool()
	if err != nil {
		return &localError{fmt.Sprintf("%s=%s", e.spelled(e.prefix+"ca-file"), e.caFile), err}
	}
	p.TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: set.Client}
	if lax {
		p.TLSClientConfig.InsecureSkipVerify = true //nolint:gosec // asked for, and only for the registry
		p.TLSClientConfig.VerifyConnection = func(cs tls.ConnectionState) error { return verifyOthers(cs, registry, pool) }
	}
	return nil
}

// verifyOthers verifies the certificate of a host, unless it is the registry's
// own, on whatever port. Docker verifies none if the registry is insecure, but
// nobody asked for that: the token server on another host is sent the password,
// and storage the user's data. A token server at the registry's name, as GitLab,
// Harbor and Nexus have it by default, is the registry's host.
func verifyOthers(cs tls.ConnectionState, registry string, roots *x509.CertPool) error {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	host = strings.Trim(host, "[]")
	if net.ParseIP(host) != nil {
		host = "" // there is no server name for an address
	}
	if strings.EqualFold(cs.ServerName, host) {
		return nil
	}
	opts := x509.VerifyOptions{DNSName: cs.ServerName, Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	err = errors.New("it is addressed without a name")
	if cs.ServerName != "" {
		_, err = cs.PeerCertificates[0].Verify(opts)
	}
	if err != nil {
		err = fmt.Errorf("%s is not the registry's host, so its certificate is verified: %w", cs.ServerName, err)
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return nil
}
