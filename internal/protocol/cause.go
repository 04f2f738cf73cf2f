// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/wire"
)

// The causes of breaks, beside http_STATUS.
const (
	CauseReset       = "reset"       // the connection was reset, or aborted
	CauseClosed      = "closed"      // the other end closed the connection before its answer
	CauseStall       = "stall"       // no byte moved for the stall timeout
	CauseTimeout     = "timeout"     // an answer, or TCP itself, took too long
	CauseUnreachable = "unreachable" // no connection was made
	CauseDNS         = "dns"
	CauseProxy       = "proxy"
	CauseTLS         = "tls"
	CauseHTTP2       = "http2"
	CauseRateLimit   = "rate_limit"
	CauseOther       = "other"
)

// Cause names what broke a request, for metrics: one of a fixed set of words, or
// http_STATUS with a status of 400 to 599.
func Cause(err error) string {
	var status *StatusError
	var answer *transport.Error
	var dns *net.DNSError
	var proxy *wire.ProxyError
	var alert tls.AlertError
	var h2 streamError
	var no syscall.Errno
	var slow interface{ Timeout() bool }
	switch {
	case err == nil:
		return CauseOther
	case Classify(err).Busy:
		return CauseRateLimit
	case errors.As(err, &status):
		return causeOfStatus(status.Status)
	case errors.As(err, &answer):
		return causeOfStatus(answer.StatusCode)
	case errors.Is(err, wire.ErrStall):
		return CauseStall
	case errors.As(err, &proxy):
		return CauseProxy
	case errors.As(err, &dns):
		return CauseDNS
	case isTrust(err), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		return CauseTLS
	case errors.As(err, &h2):
		return CauseHTTP2
	case errors.As(err, &no) && slices.Contains(resets, no):
		return CauseReset
	case errors.As(err, &no) && slices.Contains(timeouts, no):
		return CauseTimeout
	case errors.As(err, &no) && slices.Contains(breaks, no):
		return CauseUnreachable
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed):
		return CauseClosed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return CauseTimeout
	}
	return CauseOther
}

// causeOfStatus bounds what a registry can make of a metric's label.
func causeOfStatus(status int) string {
	if status < 400 || status > 599 {
		return CauseOther
	}
	return fmt.Sprintf("http_%d", status)
}
