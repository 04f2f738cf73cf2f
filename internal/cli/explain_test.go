// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/engine"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// dialled is how net/http reports err.
func dialled(err error) error {
	return &url.Error{Op: "Head", URL: "https://reg.example/v2/", Err: &net.OpError{Op: "dial", Net: "tcp", Err: err}}
}

func TestExplain(t *testing.T) {
	const kept = "1 of 2 blobs (100.0 MiB of 300.0 MiB) are at the registry and are not sent again"
	endpoint := func(err error) error { return fmt.Errorf("%w: %w", resume.ErrEndpoint, dialled(err)) }
	denied := &transport.Error{StatusCode: http.StatusForbidden, Errors: []transport.Diagnostic{{Code: "DENIED", Message: "no push for you"}}}
	for _, tt := range []struct {
		name  string
		err   error
		at    scene
		kind  string
		exit  int
		first string   // the first line, unless it is the error
		last  []string // the lines after the first
	}{
		{
			name: "budget", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, syscall.ECONNRESET), at: scene{report: half()},
			kind: "interrupted", exit: 3,
			last: []string{kept, "hint: the same command again sends the rest"},
		}, {
			name: "budget, nothing there", err: resume.ErrInterrupted,
			at:   scene{report: &pusher.Report{Blobs: []pusher.BlobReport{{Size: 5, State: pusher.BlobPending}}}},
			kind: "interrupted", exit: 3,
			last: []string{"no blob is complete at the registry yet", "hint: the same command again sends the rest"},
		}, {
			name: "no such host, and the engine is on another", err: endpoint(&net.DNSError{Err: "no such host", Name: "reg.example", IsNotFound: true}),
			at:   scene{engine: "tcp://build.example:2376"},
			kind: "endpoint", exit: 1,
			last: []string{"hint: " + nameHint("reg.example"), "hint: " + elsewhereHint("tcp://build.example:2376")},
		}, {
			name: "the engine has another name", err: &engine.UnreachableError{Address: "tcp://none:2375", Err: dialled(&net.DNSError{Err: "no such host", Name: "none", IsNotFound: true})},
			kind: "source", exit: 1,
			last: []string{"nothing was published", "hint: start the engine, set DOCKER_HOST or --docker-host to where it is, or name a SOURCE, see rpush --help"},
		}, {
			name: "an engine that may not be used", err: &engine.UnreachableError{Address: "unix:///run/docker.sock", Err: dialled(syscall.EACCES)},
			kind: "source", exit: 1,
			last: []string{"nothing was published", "hint: add this user to the group of the socket, or set DOCKER_HOST to an engine that this user may use"},
		}, {
			name: "sessions lost for ever", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, &resume.LostError{Times: 8, Err: io.EOF}),
			kind: "interrupted", exit: 3,
			first: "the registry lost every upload (8 in a row), so nothing can be resumed: EOF",
			last:  []string{"hint: " + lostHint},
		}, {
			name: "a layer that is too large for the line", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, &resume.LostError{Times: 5, Between: 20 << 20, Size: 200 << 20, Err: io.EOF}),
			kind: "interrupted", exit: 3,
			last: []string{"hint: make layers smaller than 20.0 MiB, or " + lostHint},
		}, {
			name: "nothing listens", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, dialled(os.NewSyscallError("connect", syscall.ECONNREFUSED))),
			kind: "interrupted", exit: 3,
			last: []string{"hint: nothing listens at reg.example: check the port, and that the registry is up"},
		}, {
			name: "denied", err: fmt.Errorf("%w: %w", resume.ErrDenied, denied), at: scene{report: half()},
			kind: "denied", exit: 1,
			last: []string{"credentials: ~/.docker/config.json", kept, "hint: docker login reg.example stores credentials that may push"},
		}, {
			name: "denied, by status alone", err: denied,
			kind: "denied", exit: 1,
			last: []string{"credentials: ~/.docker/config.json", "hint: docker login reg.example stores credentials that may push"},
		}, {
			name: "unknown CA", err: endpoint(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: if reg.example has a certificate of your own CA, name that CA's file with --ca-file"},
		}, {
			name: "unknown CA of the registry read from", err: endpoint(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
			at:   scene{prefix: "src-"},
			kind: "endpoint", exit: 1,
			last: []string{"hint: if reg.example has a certificate of your own CA, name that CA's file with --src-ca-file"},
		}, {
			name: "no TLS where it is read from", err: endpoint(http.ErrSchemeMismatch), at: scene{prefix: "src-"},
			kind: "endpoint", exit: 1,
			last: []string{"hint: reg.example does not use TLS; if that is intended, add --src-plain-http"},
		}, {
			name: "denied to read", err: denied, at: scene{prefix: "src-"},
			kind: "denied", exit: 1,
			last: []string{"credentials: ~/.docker/config.json", "hint: docker login reg.example or --src-creds give credentials that may pull; those for the registry pushed to are not sent there"},
		}, {
			name: "other name", err: endpoint(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "reg.example"}}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: the certificate is not valid for reg.example: use a name that it is valid for, or have it reissued"},
		}, {
			name: "expired", err: endpoint(&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: " + expiredHint},
		}, {
			name: "no TLS", err: endpoint(tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: reg.example does not use TLS; if that is intended, add --plain-http"},
		}, {
			name: "no TLS, as http.Client has it", err: endpoint(http.ErrSchemeMismatch),
			kind: "endpoint", exit: 1,
			last: []string{"hint: reg.example does not use TLS; if that is intended, add --plain-http"},
		}, {
			name: "no such host", err: endpoint(&net.DNSError{Name: "reg.example", IsNotFound: true}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: there is no host reg.example: check the name in the reference"},
		}, {
			name: "no name server", err: endpoint(&net.DNSError{Name: "reg.example", IsTimeout: true}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: the name server did not answer for reg.example: check this machine's DNS"},
		}, {
			name: "no registry", err: fmt.Errorf("%w: %w", resume.ErrEndpoint, &pusher.NotRegistryError{Host: "reg.example", Status: 404}),
			kind: "endpoint", exit: 1,
			last: []string{"hint: the server at reg.example is not a registry: check the host and port in the reference"},
		}, {
			name: "no registry, by the kind alone", err: resume.ErrEndpoint,
			kind: "endpoint", exit: 1,
			last: []string{"hint: no registry answers at reg.example over this protocol: check the host and port, and whether it needs --plain-http"},
		}, {
			name: "proxy down", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, &net.OpError{Op: "proxyconnect", Err: syscall.ECONNREFUSED}),
			kind: "interrupted", exit: 3,
			first: "cannot connect to the proxy: " + syscall.ECONNREFUSED.Error(),
			last:  []string{"hint: " + proxyHint},
		}, {
			name: "two kinds", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, resume.ErrRefused),
			kind: "interrupted", exit: 3,
			last: []string{"hint: the same command again sends the rest"},
		}, {
			name: "source", err: fmt.Errorf("%w: short", resume.ErrSource), at: scene{report: half()},
			kind: "source", exit: 1,
			last: []string{"nothing was published", kept},
		}, {
			name: "refused", err: resume.ErrRefused,
			kind: "refused", exit: 1,
		}, {
			name: "credentials", err: fmt.Errorf("%w: %w", resume.ErrDenied, &credentials.Error{Place: "~/.docker/config.json", Err: errors.New("unexpected EOF")}),
			kind: "local", exit: 1,
			last: []string{"hint: repair ~/.docker/config.json, or remove the entry"},
		}, {
			name: "signal", err: fmt.Errorf("%w: %w", resume.ErrInterrupted, context.Canceled),
			at:   scene{report: half(), cause: &signalError{syscall.SIGTERM}},
			kind: "interrupted", exit: 143,
			last: []string{kept, "hint: the same command again sends the rest"},
		}, {
			name: "unknown", err: errors.New("?"), kind: "other", exit: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.at.host = "reg.example"
			tt.at.from = func() string { return "~/.docker/config.json" }
			if tt.at.report == nil {
				tt.at.report = &pusher.Report{}
			}
			f := explain(tt.err, tt.at)
			if f.Kind != tt.kind || f.Exit != tt.exit {
				t.Errorf("kind %q, exit %d; want %q, %d", f.Kind, f.Exit, tt.kind, tt.exit)
			}
			if f.lines[0] != cmp.Or(tt.first, tt.err.Error()) || !slices.Equal(f.lines[1:], tt.last) {
				t.Errorf("lines:\n%s\nwant the error and\n%s", strings.Join(f.lines, "\n"), strings.Join(tt.last, "\n"))
			}
		})
	}
}

func TestLoginHintOfDockerHub(t *testing.T) {
	if got, want := loginHint(name.DefaultRegistry, ""), "docker login stores credentials that may push"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
