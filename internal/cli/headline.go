// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// firstLine is the first line about a failure: its cause, and then what was being
// done, with no more of a digest than it takes to find it.
func firstLine(err error, kind string, s scene) string {
	var e *resume.Error
	if !errors.As(err, &e) {
		if cause := causeOf(err, "", kind, s); cause != "" {
			return cause
		}
		return err.Error()
	}
	_, repo, _ := strings.Cut(e.Repository, "/")
	cause := causeOf(err, repo, kind, s)
	if cause == "" {
		cause = e.Err.Error()
	}
	return cause + ", while " + whereWords(e)
}

// causeOf says in the user's terms what went wrong; empty where the error says it
// best.
func causeOf(err error, repo, kind string, s scene) string {
	var (
		budget *resume.BudgetError
		lost   *resume.LostError
		status *protocol.StatusError
	)
	isStatus := errors.As(err, &status)
	user := ""
	if s.user != nil {
		user = s.user()
	}
	switch {
	case isProxy(err):
		return proxyWords(err)
	case errors.As(err, &lost) && lost.Between == 0:
		return fmt.Sprintf("the registry lost every upload (%d in a row), so nothing can be resumed: %s", lost.Times, protocol.Text(lost.Err))
	case isStatus && status.DiskFull():
		return fmt.Sprintf("the registry's disk is full (%s)", fullWords(status))
	case isStatus && status.TooLarge():
		return fmt.Sprintf("request body too large (%d), even in small pieces", status.Status)
	case kind == "denied" && isStatus && protocol.ReasonOf(err) == protocol.NoReason && user != "" && s.prefix == "":
		if loginFailed(status) {
			return fmt.Sprintf("login failed for user %s at %s (%d)%s", user, s.host, status.Status, saidWords(status.Err))
		}
		if repo == "" {
			repo = s.host
		}
		return fmt.Sprintf("user %s is not allowed to push to %s (%d)%s", user, repo, status.Status, saidWords(status.Err))
	case errors.As(err, &budget) && isStatus && status.Status >= 500:
		answered := fmt.Sprintf("%d %s", status.Status, http.StatusText(status.Status))
		tries := fmt.Sprintf("%s in %s", timesWords(budget.Attempts), shortTime(budget.Since))
		if at := status.Err.Request; at != nil && at.URL.Path == "/v2/" {
			return fmt.Sprintf("registry %s is unavailable (%s from /v2/, %s)", s.host, answered, tries)
		}
		return fmt.Sprintf("the registry answered %s %s%s", answered, tries, saidWords(status.Err))
	}
	return ""
}

// loginFailed reports whether it is the login that was refused, and not what it was
// used for. A registry that answers 401 to a good token misses a scope.
func loginFailed(e *protocol.StatusError) bool {
	return e.Status == http.StatusUnauthorized && (e.Token || !e.Has(transport.DeniedErrorCode))
}

// fullWords is how the registry said that its disk is full.
func fullWords(e *protocol.StatusError) string {
	if e.Status == http.StatusInsufficientStorage {
		return "507 Insufficient Storage"
	}
	return fmt.Sprintf("%d, no space left on device", e.Status)
}

// saidWords are the registry's own words.
func saidWords(e *transport.Error) string {
	if e == nil {
		return ""
	}
	var parts []string
	for _, d := range e.Errors {
		if d.Message != "" {
			parts = append(parts, d.Message)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

func timesWords(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

// whereWords says what was being done.
func whereWords(e *resume.Error) string {
	doing, ok := map[string]string{
		"check": "checking", "open": "opening an upload", "send": "sending", "status": "asking for the offset of",
		"commit": "committing", "publish manifest": "publishing the manifest",
	}[e.Op]
	if !ok {
		doing = "doing: " + e.Op
	}
	s := doing
	if e.Digest != "" {
		if e.Op == "open" {
			s += " of"
		}
		s += " " + shortDigest(e.Digest)
	}
	s += " at " + e.Repository
	if e.Offset > 0 {
		s += fmt.Sprintf(" (%s are there)", ofWords(e.Offset, e.Size))
	}
	return s
}

// isProxy reports whether a proxy was not reached, or gave no tunnel.
func isProxy(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "proxyconnect"
}

// proxyWords says which proxy could not be used, and which variable names it.
func proxyWords(err error) string {
	var op *net.OpError
	errors.As(err, &op)
	proxy, cause := "the proxy", op.Err.Error()
	var dial *net.OpError
	if errors.As(op.Err, &dial) {
		var errno syscall.Errno
		if errors.As(dial.Err, &errno) {
			cause = errno.Error()
		}
		if dial.Addr != nil {
			proxy += " " + dial.Addr.String()
			for _, v := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
				if strings.Contains(os.Getenv(v), dial.Addr.String()) {
					proxy += " (" + v + ")"
					break
				}
			}
		}
	}
	return fmt.Sprintf("cannot connect to %s: %s", proxy, cause)
}

// isHopeless reports whether the same command again would most likely fail in the
// same way.
func isHopeless(err error, r *pusher.Report) bool {
	var (
		lost   *resume.LostError
		dns    *net.DNSError
		status *protocol.StatusError
	)
	gained := slices.ContainsFunc(r.Blobs, func(b pusher.BlobReport) bool { return b.Kept || b.State != pusher.BlobPending })
	switch {
	case errors.As(err, &lost), isProxy(err):
		return true
	case errors.As(err, &status) && status.Status >= 500 && !status.GaveUp() && status.Status != http.StatusServiceUnavailable:
		return true
	case errors.As(err, &dns), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, wsaRefused):
		return !gained
	}
	return false
}
