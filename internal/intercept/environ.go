// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// systemRoots are where distributions keep the certificates that crypto/x509
// trusts, one file each.
var systemRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",                  // RHEL 6
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/ssl/cert.pem",                                 // Alpine, BSD
	"/usr/local/share/certs/ca-root-nss.crt",            // FreeBSD
}

// Variables that name a file of certificates to trust in place of the system's.
var (
	// always are set: SSL_CERT_FILE is read by Go and OpenSSL, the others by
	// Python, curl and git.
	always = []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"}
	// ifSet are changed if they are set, because their file would be the only one.
	ifSet = []string{"AWS_CA_BUNDLE", "NIX_SSL_CERT_FILE", "PIP_CERT", "CARGO_HTTP_CAINFO"}
)

// nodeExtra names a file that Node.js trusts beside its own certificates.
const nodeExtra = "NODE_EXTRA_CA_CERTS"

// Environment returns env, as of os.Environ, changed so that a command sends its
// connections through the proxy and trusts its authority. extra are PEM
// certificates that the command has to trust as well. It writes files to dir,
// which must exist and be this user's alone.
func (p *Proxy) Environment(env []string, dir string, extra []byte) ([]string, error) {
	old := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		old[k] = v
	}
	own := joinPEM(extra, p.PEM())
	set := map[string]string{}
	for _, k := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		set[k] = p.URL()
	}
	// What would have gone around the proxies of the environment goes around
	// them still: this proxy asks Options.Forward.
	for _, k := range []string{"NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"} {
		set[k] = ""
	}
	bundle := func(name, file string, roots []byte) error {
		path := filepath.Join(dir, file)
		set[name] = path
		return os.WriteFile(path, joinPEM(roots, own), 0o600)
	}
	roots, err := trusted(old)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Concat(always, ifSet) {
		mine := roots
		if old[k] != "" {
			if mine, err = os.ReadFile(old[k]); errors.Is(err, fs.ErrNotExist) {
				mine = nil
			} else if err != nil { // a directory, as REQUESTS_CA_BUNDLE may be
				continue
			}
		} else if slices.Contains(ifSet, k) || len(roots) == 0 && k != "SSL_CERT_FILE" {
			continue
		}
		if err := bundle(k, strings.ToLower(k)+".pem", mine); err != nil {
			return nil, err
		}
	}
	var node []byte
	if old[nodeExtra] != "" {
		if node, err = os.ReadFile(old[nodeExtra]); err != nil {
			node = nil // Node.js warns and goes on
		}
	}
	if err := bundle(nodeExtra, "node.pem", node); err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		_, ok := set[k]
		return ok
	})
	for k, v := range set {
		if v != "" {
			out = append(out, k+"="+v)
		}
	}
	return out, nil
}

// trusted are the PEM certificates that a command without further settings
// trusts; none if the system has none. Go ignores SSL_CERT_FILE if there is no such
// file.
func trusted(env map[string]string) ([]byte, error) {
	if file := env["SSL_CERT_FILE"]; file != "" {
		if b, err := os.ReadFile(file); !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	for _, file := range systemRoots {
		b, err := os.ReadFile(file)
		if !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return nil, nil
}

// joinPEM puts PEM files together, each on lines of its own.
func joinPEM(files ...[]byte) []byte {
	var b bytes.Buffer
	for _, f := range files {
		b.Write(f)
		if len(f) > 0 && f[len(f)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}
