// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// failure is what a failed push is to a human and to a program.
type failure struct {
	// Kind is interrupted, denied, endpoint, source, refused, local (a file or
	// helper on this machine) or other.
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do
	Exit    int    `json:"exit"`

	lines []string
}

// scene is what is known where a push failed.
type scene struct {
	host   string // of the registry
	prefix string // of the flags that are about it
	other  bool   // no flags but --ca-file are about it
	report *pusher.Report
	cause  error         // of the context
	from   func() string // where the credentials came from
	user   func() string // whose they are; nil is not known
	engine string        // the one read from, if it is on another host
	probe  bool          // nothing was pushed
}

// explain maps an error to what is said about it and to the exit code. It looks
// at kinds and types; the words of registries are read in package protocol alone.
func explain(err error, s scene) *failure {
	f := &failure{Kind: kindOf(err), Exit: exitPermanent}
	line := firstLine(err, f.Kind, s)
	f.Message = clean(line)
	var deadline *deadlineError
	switch {
	case errors.As(s.cause, &deadline):
		f.Message = deadline.Error()
		f.lines = append(f.lines, f.Message)
		if _, before, ok := strings.Cut(line, "(before that: "); ok {
			f.lines = append(f.lines, "before that: "+strings.TrimSuffix(before, ")"))
		}
	case errors.Is(s.cause, errProbeLimit) && !errors.Is(err, errProbeLimit):
		f.lines = append(f.lines, line, errProbeLimit.Error())
	default:
		f.lines = append(f.lines, line)
	}
	if f.Kind == "denied" {
		f.lines = append(f.lines, credentialWords(s.from()))
	}
	f.lines = append(f.lines, keptWords(f.Kind, s.report)...)

	var stopped *signalError
	if errors.As(s.cause, &stopped) {
		f.Exit = stopped.exit()
	} else if text := cure(err, f.Kind, s); text != "" {
		f.Hint = clean(text)
		f.lines = append(f.lines, hint(text))
	}
	if s.engine != "" && (f.Kind == "endpoint" || isAddress(err)) {
		f.lines = append(f.lines, hint(elsewhereHint(s.engine)))
	}
	if f.Kind == "interrupted" {
		switch {
		case s.probe:
			f.lines = append(f.lines, hint(slowProbeHint))
		case !isHopeless(err, s.report):
			f.lines = append(f.lines, hint(againHint))
		}
		f.Exit = max(f.Exit, exitInterrupted)
	}
	return f
}

func kindOf(err error) string {
	var local *localError
	var unusable *credentials.Error
	if errors.As(err, &local) || errors.As(err, &unusable) {
		return "local"
	}
	for _, k := range []struct {
		is   error
		name string
	}{
		{resume.ErrInterrupted, "interrupted"},
		{resume.ErrDenied, "denied"},
		{resume.ErrEndpoint, "endpoint"},
		{resume.ErrSource, "source"},
		{resume.ErrRefused, "refused"},
	} {
		if errors.Is(err, k.is) {
			return k.name
		}
	}
	var answer *transport.Error
	var stopped *signalError
	switch {
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return "denied"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &stopped):
		return "interrupted"
	}
	return "other"
}

// wsaRefused is what Windows has for ECONNREFUSED; no other system has an
// errno of this value.
const wsaRefused = syscall.Errno(10061)

// cure says what to do about err, chosen from its cause; empty where nothing is
// known to help.
func cure(err error, kind string, s scene) string {
	host, prefix := s.host, s.prefix
	var (
		unusable   *credentials.Error
		otherName  x509.HostnameError
		invalid    x509.CertificateInvalidError
		unknown    x509.UnknownAuthorityError
		unverified *tls.CertificateVerificationError
		noTLS      tls.RecordHeaderError
		dns        *net.DNSError
		noRegistry *pusher.NotRegistryError
		lost       *resume.LostError
		exists     *pusher.ExistsError
	)
	var op *net.OpError
	var answer *transport.Error
	var status *protocol.StatusError
	var budget *resume.BudgetError
	isStatus := errors.As(err, &status)
	switch {
	case engineCure(err) != "": // its address, not the registry's, is at fault
		return engineCure(err)
	case errors.As(err, &op) && op.Op == "proxyconnect",
		errors.As(err, &answer) && answer.StatusCode == http.StatusProxyAuthRequired:
		return proxyHint
	case errors.As(err, &unusable):
		return mendHint(unusable.Place)
	case errors.As(err, &otherName):
		return otherNameHint(host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return expiredHint
	case errors.As(err, &unknown), errors.As(err, &unverified):
		return caHint(host, prefix)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &noTLS):
		if s.other {
			return plainElsewhereHint(host)
		}
		return plainHint(host, prefix)
	case errors.As(err, &dns) && dns.IsNotFound:
		return nameHint(host)
	case errors.As(err, &dns):
		return dnsHint(host)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, wsaRefused):
		return refusedHint(host)
	case errors.As(err, &exists):
		return clobberHint(exists.Reference)
	case reasonHint(err, s) != "":
		return reasonHint(err, s)
	case kind == "denied" && prefix == "":
		return deniedHint(status, s)
	case kind == "denied":
		return loginHint(host, prefix)
	case errors.As(err, &lost) && lost.Between > 0:
		return smallerHint(lost.Between) + ", or " + lostHint
	case errors.As(err, &lost):
		return lostHint
	case isStatus && status.TooLarge():
		return tooLargeHint
	case errors.As(err, &budget) && isStatus && status.Status >= 500:
		return serverHint(host)
	case errors.As(err, &noRegistry):
		return noRegistryHint(host)
	case kind == "endpoint":
		if s.other {
			return noRegistryHint(host)
		}
		return addressHint(host, prefix)
	}
	return ""
}

// isAddress holds for what depends on where rpush runs: names, certificates and
// ports.
func isAddress(err error) bool {
	var dns *net.DNSError
	var unverified *tls.CertificateVerificationError
	return errors.As(err, &dns) || errors.As(err, &unverified) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, wsaRefused)
}
