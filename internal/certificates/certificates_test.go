// SPDX-License-Identifier: Apache-2.0

package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func pair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func TestDir(t *testing.T) {
	cert, key := pair(t)
	for _, c := range []struct {
		name        string
		files       map[string][]byte
		cas, client int
		word        string // of the error
	}{
		{"nothing", map[string][]byte{"README": nil}, 0, 0, ""},
		{"an authority", map[string][]byte{"ca.crt": cert, "b.crt": cert}, 2, 0, ""},
		{"a client", map[string][]byte{"client.cert": cert, "client.key": key}, 0, 1, ""},
		{"no key", map[string][]byte{"client.cert": cert}, 0, 0, "client.key"},
		{"no certificate", map[string][]byte{"client.key": key}, 0, 0, "client.cert"},
		{"no PEM", map[string][]byte{"ca.crt": []byte("x")}, 0, 0, "ca.crt: no PEM"},
		{"a key that is none", map[string][]byte{"client.cert": cert, "client.key": cert}, 0, 0, "client.key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Dir(dir)
			if c.word != "" {
				if err == nil || !strings.Contains(err.Error(), c.word) {
					t.Errorf("%v, want %q", err, c.word)
				}
				return
			}
			if err != nil || len(s.CAs) != c.cas || len(s.Client) != c.client || s.Empty() != (c.cas+c.client == 0) {
				t.Errorf("%d authorities and %d of a client, %v", len(s.CAs), len(s.Client), err)
			}
			if pool, err := s.Pool(); err != nil || (pool == nil) != (c.cas == 0) {
				t.Errorf("pool %v, %v", pool, err)
			}
		})
	}
	if _, err := Dir(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that is not there was taken")
	}
}

// The registry's port is part of the directory's name, and the user's own comes
// first.
func TestFor(t *testing.T) {
	cert, _ := pair(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	for _, sub := range []string{".config/containers/certs.d/reg.example:5000", ".docker/certs.d/reg.example:5000"} {
		dir := filepath.Join(home, filepath.FromSlash(strings.ReplaceAll(sub, ":", portMark)))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), cert, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := For("reg.example:5000"); err != nil || len(s.CAs) != 1 {
		t.Errorf("%d authorities, %v", len(s.CAs), err)
	}
	if s, err := For("reg.example"); err != nil || !s.Empty() {
		t.Errorf("another port: %+v, %v", s, err)
	}
}
