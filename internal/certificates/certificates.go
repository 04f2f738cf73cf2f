// SPDX-License-Identifier: Apache-2.0

// Package certificates reads the directories in which docker, podman and skopeo
// keep certificates for a registry (certs.d).
package certificates

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Set is what there is for one registry. The zero value is nothing.
type Set struct {
	// CAs are PEM files, to be trusted besides the system's.
	CAs [][]byte
	// Client are shown to a registry that asks for one.
	Client []tls.Certificate
}

// Empty reports whether there is nothing.
func (s Set) Empty() bool { return len(s.CAs)+len(s.Client) == 0 }

// Pool is the system's authorities and CAs; nil where there are none of the
// latter.
func (s Set) Pool() (*x509.CertPool, error) {
	if len(s.CAs) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, pem := range s.CAs {
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("no PEM certificate in it")
		}
	}
	return pool, nil
}

// For reads the first directory that there is for a registry, a host with its
// port if it has one, in docker's and podman's order. A directory that cannot
// be read is passed over as they do; what is wrong in one that can is an error
// that names the file.
func For(registry string) (Set, error) {
	for _, dir := range places() {
		dir = filepath.Join(dir, strings.ReplaceAll(registry, ":", portMark))
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			return Dir(dir)
		}
	}
	return Set{}, nil
}

// portMark stands for the colon in a directory's name, which Windows cannot
// have: docker leaves it out there.
var portMark = map[bool]string{true: "", false: ":"}[runtime.GOOS == "windows"]

func places() []string {
	var all []string
	if home, err := os.UserHomeDir(); err == nil {
		all = append(all,
			filepath.Join(home, ".config", "containers", "certs.d"),
			filepath.Join(home, ".config", "docker", "certs.d"), // rootless docker
			filepath.Join(home, ".docker", "certs.d"))           // Docker Desktop
	}
	return append(all, "/etc/containers/certs.d", "/etc/docker/certs.d")
}

// Dir reads one directory: *.crt are authorities, *.cert and *.key of the same
// name are a client's.
func Dir(dir string) (s Set, err error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrPermission) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	for _, f := range files {
		file := filepath.Join(dir, f.Name())
		switch base, ext := strings.TrimSuffix(file, filepath.Ext(file)), filepath.Ext(file); ext {
		case ".crt":
			pem, err := os.ReadFile(file)
			if err != nil {
				return s, err
			}
			if !x509.NewCertPool().AppendCertsFromPEM(pem) {
				return s, fmt.Errorf("%s: no PEM certificate in it", file)
			}
			s.CAs = append(s.CAs, pem)
		case ".cert":
			c, err := Pair(file, base+".key")
			if err != nil {
				return s, err
			}
			s.Client = append(s.Client, c)
		case ".key":
			if _, err := os.Stat(base + ".cert"); err != nil {
				return s, fmt.Errorf("%s: its certificate %s.cert is missing", file, filepath.Base(base))
			}
		}
	}
	return s, nil
}

// Pair reads a client's certificate and its key.
func Pair(cert, key string) (tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return c, fmt.Errorf("%s and %s: %w", cert, key, err)
	}
	return c, nil
}
