// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/wire"
)

// Each error has the form in which net/http returns it.
func TestCause(t *testing.T) {
	broken := func(op string, no syscall.Errno) error {
		return &wire.Error{Err: &url.Error{Op: "Patch", URL: "http://reg.example/v2/secret", Err: &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, no)}}}
	}
	answer := func(status int, h http.Header) error {
		return Unexpected(&wire.Answer{Status: status, Header: h}, time.Now())
	}
	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, "other"},
		{errors.New("anything"), "other"},
		{broken("read", syscall.ECONNRESET), "reset"},
		{broken("write", syscall.EPIPE), "reset"},
		{broken("read", syscall.ETIMEDOUT), "timeout"},
		{broken("dial", syscall.ECONNREFUSED), "unreachable"},
		{&wire.Error{Err: io.EOF}, "closed"},
		{&wire.Error{Err: fmt.Errorf("reading the answer: %w", io.ErrUnexpectedEOF)}, "closed"},
		{&wire.Error{Err: wire.ErrStall}, "stall"},
		{&wire.Error{Err: context.DeadlineExceeded}, "timeout"},
		{&wire.Error{Err: &net.DNSError{Err: "no such host", Name: "reg.example", IsNotFound: true}}, "dns"},
		{&net.OpError{Op: "proxyconnect", Net: "tcp", Err: &wire.ProxyError{Proxy: "proxy.example:3128", Status: 502}}, "proxy"},
		{&wire.Error{Err: streamError{Code: 2}}, "http2"},
		{answer(502, nil), "http_502"},
		{answer(429, nil), "rate_limit"},
		{answer(403, http.Header{"Retry-After": {"9"}}), "rate_limit"},
		{answer(777, nil), "other"},
		{&wire.Error{Err: &transport.Error{StatusCode: 503}}, "http_503"}, // of a token server
	} {
		if got := Cause(tc.err); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.err, got, tc.want)
		}
	}
}
