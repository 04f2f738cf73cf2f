// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/wire"
)

// Class is what a failure means for the loop that retries.
type Class int

const (
	// Final means that trying again changes nothing.
	Final Class = iota
	// Break means that the connection or the registry failed; trying again may help.
	Break
	// Unknown means that nobody can tell. Before a registry's first answer it is taken
	// for a wrong address, later for a break.
	Unknown
	// Unreachable means that there is nothing at the address. Before a registry's first
	// answer it is a wrong name, later a break.
	Unreachable
)

// Verdict is a failure and what it means.
type Verdict struct {
	Class Class
	// After is what the registry asked to wait, 0 if it did not.
	After time.Duration
	// Busy is set if the registry works and asks to come back later: 429, or a 403
	// that is a rate limit.
	Busy bool
	// Err is the failure, with its kind (ErrDenied, ...) in the chain if Class
	// is Final.
	Err error
}

// Classify says what err means. It is the one place that decides. The context
// is not looked at: a caller that was cancelled knows.
func Classify(err error) Verdict {
	// A source may be read from a registry, whose loop has ended for good then.
	if errors.Is(err, ErrInterrupted) {
		return Verdict{Class: Final, Err: err}
	}
	if IsTransient(err) {
		return Verdict{Class: Break, Err: err}
	}
	var status *StatusError
	if errors.As(err, &status) {
		return Verdict{Class: status.class(), After: status.After, Busy: status.busy(), Err: err}
	}
	// The kinds before their causes: whoever named a kind has decided.
	for _, kind := range []error{ErrDenied, ErrEndpoint, ErrSource, ErrRefused} {
		if errors.Is(err, kind) {
			return Verdict{Class: Final, Err: err}
		}
	}
	var short *wire.ShortError
	if errors.As(err, &short) {
		if short.Err != nil && isNetwork(short.Err) {
			return Verdict{Class: Break, Err: err} // a source that is remote itself
		}
		return Verdict{Class: Final, Err: Kind(ErrSource, err)}
	}
	// A token server's answer comes out of the authorising transport as an error.
	var te *transport.Error
	if errors.As(err, &te) {
		status := &StatusError{Status: te.StatusCode, Err: clean(te, nil), Token: true}
		status.limit(nil)
		return Verdict{Class: status.class(), After: status.After, Busy: status.busy(), Err: status}
	}
	var dns *net.DNSError
	var proxy *wire.ProxyError
	switch {
	case errors.As(err, &proxy) && classOf(proxy.Status) == Break:
		return Verdict{Class: Break, Err: err}
	case errors.As(err, &proxy):
		return Verdict{Class: Final, Err: Kind(ErrEndpoint, err)}
	case errors.As(err, &dns) && dns.IsNotFound:
		return Verdict{Class: Unreachable, Err: err}
	case isTrust(err), errors.Is(err, wire.ErrPrivate), errors.Is(err, ErrDowngrade), errors.Is(err, http.ErrSchemeMismatch):
		return Verdict{Class: Final, Err: Kind(ErrEndpoint, err)}
	case isBreak(err):
		return Verdict{Class: Break, Err: err}
	}
	return Verdict{Class: Unknown, Err: err}
}

// isTrust: TLS was spoken and the peer is not whom it should be.
func isTrust(err error) bool {
	var (
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	if errors.As(err, &alert) {
		// The peer's word on certificates and versions. An internal error or a
		// bad record is a fault of the moment.
		switch uint8(alert) {
		case 40, 42, 43, 44, 45, 46, 48, 49, 70, 71, 112, 116:
			return true
		}
		return false
	}
	return errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &hostname) ||
		errors.As(err, &invalid) || errors.As(err, &record)
}

// PlainHTTP reports whether err came from speaking TLS to a server that
// answered in plain HTTP. http.Client says it in one way, a transport in
// another.
func PlainHTTP(err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/"
}

// streamError has the shape of the HTTP/2 stream error of net/http and
// golang.org/x/net, which offer themselves by fields.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return fmt.Sprintf("http2: stream error %d", e.Code) }

// isBreak: the kinds of failure that a bad line, a restarting registry or a
// proxy between is known to cause. GOAWAY has no type one could match: it is
// Unknown, and a break once the registry has answered.
func isBreak(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrDeadlineExceeded, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	var h2 streamError
	return errors.As(err, &h2) || isNetwork(err)
}

// isNetwork: a socket failed, or the name service.
func isNetwork(err error) bool {
	var no syscall.Errno
	if errors.As(err, &no) && slices.Contains(breaks, no) {
		return true
	}
	var dns *net.DNSError
	var t interface{ Timeout() bool }
	return errors.As(err, &dns) || errors.As(err, &t) && t.Timeout()
}

// StatusError is an answer that was not hoped for. The transport.Error in it
// carries the registry's words; its request has no upload location.
type StatusError struct {
	Status    int
	After     time.Duration
	RequestID string
	Conn      wire.Info
	// Token is set for the answer of a token server.
	Token bool
	// Limited is set for a 403 that is a rate limit and no denial.
	Limited bool
	// PerMinute is how many requests a minute the registry allows, where a rate
	// limit says so. 0 is not known.
	PerMinute int
	// Cut is set if the text of the answer broke off. A 403 without its text may be
	// a rate limit.
	Cut bool
	// permanent is set if the same request got this answer too often for another
	// try.
	permanent bool
	Err       *transport.Error

	full bool // it speaks of ENOSPC; the detail that says so is not kept in Err
}

// Permanent returns a copy that Classify takes for final, whatever its status.
func (e *StatusError) Permanent() *StatusError {
	p := *e
	p.permanent = true
	return &p
}

func (e *StatusError) Error() string {
	who := "the registry"
	if e.Token {
		who = "the token server"
	}
	text := fmt.Sprintf(who+" answered %d %s", e.Status, http.StatusText(e.Status))
	for _, d := range e.Err.Errors {
		text += fmt.Sprintf(", %s: %s", d.Code, d.Message)
	}
	return text
}

// Unwrap gives the kind of failure, where the status is final, and the
// registry's own error.
func (e *StatusError) Unwrap() []error {
	if e.class() == Final {
		return []error{kindOfStatus(e.Status), e.Err}
	}
	return []error{e.Err}
}

func (e *StatusError) class() Class {
	if e.permanent {
		return Final
	}
	// distribution answers 500 for a manifest it will never take.
	for _, code := range finalCodes {
		if e.Has(code) {
			return Final
		}
	}
	if e.DiskFull() {
		return Final
	}
	if e.Limited || e.Cut && e.Status == http.StatusForbidden {
		return Break
	}
	return classOf(e.Status)
}

func (e *StatusError) busy() bool {
	return e.class() == Break && (e.Limited || e.Status == http.StatusTooManyRequests)
}

// limitWait is how long to wait after a 403 that is a rate limit and does not say
// how long. GHCR: "Please wait a few minutes before you try again."
const limitWait = time.Minute

// delayInWords is how GHCR says in the message of a 429 how long to wait:
// "retry-after: 10.48ms, allowed: 2000/minute".
var delayInWords = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)\bretry-after:\s*([0-9][0-9a-zµ.]{0,30})`)
})

// allowedInWords is how GHCR says in the same message how many requests it
// allows.
var allowedInWords = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)\ballowed:\s*([0-9]{1,7})/minute\b`)
})

// RateLimited reports whether the registry answered so because of too many
// requests.
func (e *StatusError) RateLimited() bool {
	return !e.Token && (e.Limited || e.Status == http.StatusTooManyRequests)
}

// limit finds out whether the answer is a rate limit, and how long to wait. h is
// nil if the headers are not known. GHCR answers 403 to many requests, in the
// words "You have exceeded a secondary rate limit". GitHub sends
// X-RateLimit-Remaining.
func (e *StatusError) limit(h http.Header, body ...byte) {
	text := string(body)
	for _, d := range e.Err.Errors {
		text += "\n" + d.Message
	}
	switch e.Status {
	case http.StatusForbidden:
		e.Limited = h.Get("Retry-After") != "" || strings.TrimSpace(h.Get("X-RateLimit-Remaining")) == "0" ||
			strings.Contains(strings.ToLower(text), "rate limit")
		if e.Limited && e.After == 0 {
			e.After = limitWait
		}
	case http.StatusTooManyRequests:
		if m := allowedInWords().FindStringSubmatch(text); m != nil {
			e.PerMinute, _ = strconv.Atoi(m[1])
		}
		if m := delayInWords().FindStringSubmatch(text); m != nil && e.After == 0 {
			if d, err := time.ParseDuration(m[1]); err == nil {
				e.After = min(max(d, 0), MaxWait)
			}
		}
	}
}

var finalCodes = []transport.ErrorCode{
	transport.ManifestBlobUnknownErrorCode, transport.ManifestInvalidErrorCode,
	transport.ManifestUnverifiedErrorCode, transport.NameInvalidErrorCode, transport.TagInvalidErrorCode,
}

// Has reports whether the registry named one of the error codes of the
// distribution spec. Codes are hints: registries differ in which they use.
func (e *StatusError) Has(code transport.ErrorCode) bool {
	for _, d := range e.Err.Errors {
		if d.Code == code {
			return true
		}
	}
	return false
}

// MissesBlob reports whether the answer refuses a manifest because a blob that it
// names is not there.
func (e *StatusError) MissesBlob() bool {
	return e.Has(transport.ManifestBlobUnknownErrorCode) || e.Has(transport.BlobUnknownErrorCode)
}

// Mentions reports whether the registry's words contain text.
func (e *StatusError) Mentions(text string) bool {
	return slices.ContainsFunc(e.Err.Errors, func(d transport.Diagnostic) bool { return strings.Contains(d.Message, text) })
}

// aboutSessions are the codes of a refused commit that can mean a lost session or
// a wrong offset.
var aboutSessions = []transport.ErrorCode{
	transport.DigestInvalidErrorCode, transport.BlobUploadInvalidErrorCode, transport.BlobUploadUnknownErrorCode,
	transport.BlobUnknownErrorCode, transport.SizeInvalidErrorCode, transport.UnsupportedErrorCode, transport.UnknownErrorCode, "",
}

// RefusesContent reports whether the answer to a commit is about what the blob
// contains. Nexus says so with the code BLOB_UPLOAD_INVALID and "Invalid docker
// content": https://github.com/cirruslabs/tart/issues/252.
func (e *StatusError) RefusesContent() bool {
	return e.Mentions("Invalid docker content") ||
		slices.ContainsFunc(e.Err.Errors, func(d transport.Diagnostic) bool { return !slices.Contains(aboutSessions, d.Code) })
}

// TooLarge reports whether the answer refuses a body for its size: 413, or 416
// in GHCR's words: "the request body is too large and exceeds the maximum
// permissible limit of 4.00MiB".
func (e *StatusError) TooLarge() bool {
	if e.Status == http.StatusRequestedRangeNotSatisfiable {
		for _, d := range e.Err.Errors {
			if strings.Contains(strings.ToLower(d.Message), "body is too large") {
				return true
			}
		}
	}
	return e.Status == http.StatusRequestEntityTooLarge
}

// DiskFull reports whether the registry has no room on its disk: 507, or a 500 with
// ENOSPC. distribution says it in the detail of the error, where the driver's error
// has the number of the errno: {"Op":"write","Path":"...","Err":28}. Waiting does not
// help before somebody makes room.
func (e *StatusError) DiskFull() bool {
	if e.Status == http.StatusInsufficientStorage {
		return true
	}
	return e.full && e.Status == http.StatusInternalServerError
}

// noSpace is how ENOSPC is said, in lower case, and noSpaceErrno its number on Linux.
const (
	noSpace      = "no space left on device"
	noSpaceErrno = 28
)

// hasNoSpace looks for ENOSPC in what JSON was decoded to, at most deep levels down.
func hasNoSpace(v any, deep int) bool {
	if deep == 0 {
		return false
	}
	switch v := v.(type) {
	case string:
		return strings.Contains(strings.ToLower(v), noSpace)
	case []any:
		return slices.ContainsFunc(v, func(v any) bool { return hasNoSpace(v, deep-1) })
	case map[string]any:
		if n, ok := v["Err"].(float64); ok && n == noSpaceErrno && v["Op"] != nil {
			return true
		}
		for _, v := range v {
			if hasNoSpace(v, deep-1) {
				return true
			}
		}
	}
	return false
}

// GaveUp reports whether the answer is that of something on the way that ended the
// request before the registry answered it: 408, 502, 504 and Cloudflare's 520 to
// 524, which it sends in the place of an origin that takes longer than 100 s.
func (e *StatusError) GaveUp() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	}
	return e.Status >= 520 && e.Status <= 524
}

// expectations are the words in which registries say at which byte they expect
// the next PATCH, where no header says it. ECR:
// https://github.com/aws/containers-roadmap/issues/2831.
var expectations = sync.OnceValue(func() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(`First byte of the layer part is [0-9]{1,18} instead of ([0-9]{1,18})\b`),
	}
})

// Expects reads out of a 416 the offset at which the registry expects the next
// PATCH.
func (e *StatusError) Expects() (offset int64, ok bool) {
	if e.Status != http.StatusRequestedRangeNotSatisfiable {
		return 0, false
	}
	for _, d := range e.Err.Errors {
		for _, x := range expectations() {
			if m := x.FindStringSubmatch(d.Message); m != nil {
				n, err := strconv.ParseInt(m[1], 10, 64)
				return n, err == nil
			}
		}
	}
	return 0, false
}

func classOf(status int) Class {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return Break
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return Final
	}
	if status >= 500 {
		return Break
	}
	return Final
}

func kindOfStatus(status int) error {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrDenied
	case status == http.StatusProxyAuthRequired, status < 400:
		return ErrEndpoint
	}
	return ErrRefused
}

// Transient marks err as worth another try, whatever is in its chain. Of that,
// only the registry's own error stays in reach: the kinds of failure say what
// to do next, and that has just been decided.
func Transient(err error) error { return &transient{Plain(err)} }

// Plain takes the kinds of failure out of an error's chain.
func Plain(err error) error {
	p := &plain{text: err.Error()}
	errors.As(err, &p.te)
	return p
}

type plain struct {
	text string
	te   *transport.Error
}

func (p *plain) Error() string { return p.text }

func (p *plain) As(target any) bool {
	t, ok := target.(**transport.Error)
	if !ok || p.te == nil {
		return false
	}
	*t = p.te
	return true
}

// IsTransient reports whether err was marked by Transient.
func IsTransient(err error) bool {
	var t *transient
	return errors.As(err, &t)
}

type transient struct{ err error }

func (t *transient) Error() string { return t.err.Error() }
func (t *transient) Unwrap() error { return t.err }

// Kind wraps err as a failure of the given kind without changing its words.
func Kind(kind, err error) error { return &kinded{kind, err} }

type kinded struct{ kind, err error }

func (k *kinded) Error() string   { return k.err.Error() }
func (k *kinded) Unwrap() []error { return []error{k.kind, k.err} }

// Unexpected makes the error for an answer that was not hoped for. now is for
// a Retry-After that is a date.
func Unexpected(a *wire.Answer, now time.Time) *StatusError {
	te := &transport.Error{StatusCode: a.Status, Request: a.Request}
	var doc struct {
		Errors []transport.Diagnostic `json:"errors"`
	}
	if len(a.Body) <= 64<<10 && json.Unmarshal(a.Body, &doc) == nil {
		te.Errors = doc.Errors
	}
	e := &StatusError{Status: a.Status, After: RetryAfter(a.Header, now), RequestID: printable(RequestID(a.Header)), Conn: a.Conn, Cut: a.IsCut, Err: clean(te, a.Request)}
	e.full = slices.ContainsFunc(doc.Errors, func(d transport.Diagnostic) bool {
		return strings.Contains(strings.ToLower(d.Message), noSpace) || hasNoSpace(d.Detail, 8)
	})
	e.limit(a.Header, a.Body[:min(len(a.Body), 64<<10)]...)
	return e
}
