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
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/wire"
)

// chain wraps an errno the way net/http does in real life.
func chain(op string, no syscall.Errno) error {
	return &wire.Error{Err: &url.Error{Op: "Patch", URL: "http://reg.example/", Err: fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w",
		&net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, no)})}}
}

func TestClassify(t *testing.T) {
	status := func(code int) error {
		return Unexpected(&wire.Answer{Status: code, Header: http.Header{}}, time.Now())
	}
	for _, c := range []struct {
		name  string
		err   error
		class Class
		kind  error
	}{
		{"reset", chain("write", syscall.ECONNRESET), Break, nil},
		{"broken pipe", chain("write", syscall.EPIPE), Break, nil},
		{"aborted", chain("read", syscall.ECONNABORTED), Break, nil},
		{"timed out by the kernel", chain("write", syscall.ETIMEDOUT), Break, nil},
		{"refused", chain("connect", syscall.ECONNREFUSED), Break, nil},
		{"EOF", &wire.Error{Err: io.EOF}, Break, nil},
		{"unexpected EOF", &wire.Error{Err: io.ErrUnexpectedEOF}, Break, nil},
		{"use of closed connection", &wire.Error{Err: &net.OpError{Op: "write", Err: net.ErrClosed}}, Break, nil},
		{"stall", &wire.Error{Err: wire.ErrStall}, Break, nil},
		{"no answer", &wire.Error{Err: wire.ErrNoAnswer}, Break, nil},
		{"deadline of a socket", &wire.Error{Err: os.ErrDeadlineExceeded}, Break, nil},
		{"timeout of a dial", &net.OpError{Op: "dial", Err: context.DeadlineExceeded}, Break, nil},
		{"HTTP/2 stream error", h2Stream(t), Break, nil},
		{"name server does not answer", &net.DNSError{Err: "i/o timeout", IsTimeout: true}, Break, nil},
		{"TLS record damaged", &net.OpError{Op: "remote error", Err: tls.AlertError(20)}, Unknown, nil},
		{"GOAWAY", errors.New("http2: server sent GOAWAY"), Unknown, nil},
		{"no such host", &net.DNSError{Err: "no such host", IsNotFound: true}, Unreachable, nil},
		{"408", status(408), Break, nil},
		{"429", status(429), Break, nil},
		{"500", status(500), Break, nil},
		{"502", status(502), Break, nil},
		{"503", status(503), Break, nil},
		{"504", status(504), Break, nil},
		{"522", status(522), Break, nil},
		{"501", status(501), Final, ErrRefused},
		{"400", status(400), Final, ErrRefused},
		{"404", status(404), Final, ErrRefused},
		{"302", status(302), Final, ErrEndpoint},
		{"401", status(401), Final, ErrDenied},
		{"403", status(403), Final, ErrDenied},
		{"407", status(407), Final, ErrEndpoint},
		{"401 of a token server", &wire.Error{Err: &url.Error{Err: &transport.Error{StatusCode: 401}}}, Final, ErrDenied},
		{"503 of a token server", &wire.Error{Err: &transport.Error{StatusCode: 503}}, Break, nil},
		{"unknown CA", &wire.Error{Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, Final, ErrEndpoint},
		{"another host's certificate", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, Final, ErrEndpoint},
		{"our certificate is refused", &net.OpError{Op: "remote error", Err: tls.AlertError(42)}, Final, ErrEndpoint},
		{"no TLS there", tls.RecordHeaderError{Msg: "x"}, Final, ErrEndpoint},
		{"plain HTTP there", http.ErrSchemeMismatch, Final, ErrEndpoint},
		{"a proxy that wants a password", &url.Error{Err: &wire.ProxyError{Status: 407}}, Final, ErrEndpoint},
		{"a proxy that lets nobody there", &wire.ProxyError{Status: 403}, Final, ErrEndpoint},
		{"a proxy that cannot get there", &wire.ProxyError{Status: 503}, Break, nil},
		{"private address", fmt.Errorf("dial: %w", wire.ErrPrivate), Final, ErrEndpoint},
		{"downgrade", ErrDowngrade, Final, ErrEndpoint},
		{"source too short", &wire.ShortError{}, Final, ErrSource},
		{"source unreadable", &wire.ShortError{Err: syscall.EIO}, Final, ErrSource},
		{"source gone, whatever its errno", Kind(ErrSource, syscall.ETIMEDOUT), Final, ErrSource},
		{"lost session with a 404 inside", Transient(fmt.Errorf("lost: %w", &transport.Error{StatusCode: 404})), Break, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Classify(c.err)
			if v.Class != c.class {
				t.Errorf("class = %d, want %d", v.Class, c.class)
			}
			kinds := 0
			for _, k := range []error{ErrInterrupted, ErrDenied, ErrEndpoint, ErrSource, ErrRefused} {
				if errors.Is(v.Err, k) {
					kinds++
					if k != c.kind {
						t.Errorf("kind = %v, want %v", k, c.kind)
					}
				}
			}
			if want := map[bool]int{true: 1}[c.class == Final]; kinds != want {
				t.Errorf("error is of %d kinds, want %d", kinds, want)
			}
			var te *transport.Error
			if !errors.Is(v.Err, c.err) && v.Err.Error() != c.err.Error() && !errors.As(v.Err, &te) {
				t.Errorf("the cause was lost: %v", v.Err)
			}
		})
	}
}

// h2Stream meets a real HTTP/2 stream error: its type is not exported.
func h2Stream(t *testing.T) error {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	req, err := http.NewRequest(http.MethodPatch, srv.URL, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Transport.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		t.Fatalf("got status %d over %s, want a stream error", resp.StatusCode, resp.Proto)
	}
	return &wire.Error{Err: err}
}

func TestUnexpectedShowsNoLocation(t *testing.T) {
	u, _ := url.Parse("https://me:pass@reg.example/v2/a/b/blobs/uploads/0123-uuid?_state=TOPSECRET#frag")
	storage, _ := url.Parse("https://s3.example/bucket/TOPSECRET?sig=TOPSECRET")
	body := []byte(`{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"no\u001b[31m way","detail":{"Location":"TOPSECRET"}}]}`)
	for _, u := range []*url.URL{u, storage} {
		e := Unexpected(&wire.Answer{Status: 404, Header: http.Header{}, Body: body, Request: &http.Request{Method: "PATCH", URL: u}}, time.Now())
		text := fmt.Sprintf("%v %+v %v %v", e, e, e.Err.Request.URL, Text(e))
		for _, secret := range []string{"TOPSECRET", "0123-uuid", "pass", "frag", "\x1b"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q shows %q", text, secret)
			}
		}
		if !e.Has(transport.BlobUploadInvalidErrorCode) || e.Has(transport.DigestInvalidErrorCode) {
			t.Errorf("codes of %v were not read", e)
		}
	}
}

// A token server may quote what it was sent, or answer with a web page.
func TestTokenServersWordsAreScrubbed(t *testing.T) {
	te := &transport.Error{StatusCode: 401, Errors: []transport.Diagnostic{{Code: "DENIED", Message: "bad Basic Y2k6UFdTRUNSRVQ= for bearer eyJhbGciOi", Detail: "see\x1b[31m"}}}
	v := Classify(&wire.Error{Err: &url.Error{Op: "Get", URL: "https://auth.example/token?account=x", Err: te}})
	for _, secret := range []string{"Y2k6", "eyJ", "account", "\x1b"} {
		if text := v.Err.Error() + Text(v.Err); strings.Contains(text, secret) {
			t.Errorf("%q shows %q", text, secret)
		}
	}
	if !strings.Contains(v.Err.Error(), "DENIED: bad") {
		t.Errorf("%q does not say what the server said", v.Err)
	}
}

// distribution answers 500 for a manifest that it will never take.
func TestFinalCodeInA500(t *testing.T) {
	a := &wire.Answer{Status: 500, Header: http.Header{}, Body: []byte(`{"errors":[{"code":"UNKNOWN"},{"code":"MANIFEST_BLOB_UNKNOWN","detail":"invalid URL on layer"}]}`)}
	v := Classify(Unexpected(a, time.Now()))
	if v.Class != Final || !errors.Is(v.Err, ErrRefused) || !strings.Contains(v.Err.Error(), "invalid URL on layer") {
		t.Errorf("got %+v", v)
	}
}

func TestUnexpectedKeepsRetryAfter(t *testing.T) {
	e := Unexpected(&wire.Answer{Status: 429, Header: http.Header{"Retry-After": {"9"}, "X-Request-Id": {"abc"}}}, time.Now())
	if v := Classify(fmt.Errorf("x: %w", e)); v.After != 9*time.Second || v.Class != Break {
		t.Errorf("got %+v", v)
	}
	if e.RequestID != "abc" {
		t.Errorf("request id %q", e.RequestID)
	}
}

func FuzzUnexpected(f *testing.F) {
	f.Add(400, []byte(`{"errors":[{"code":"X","message":"y"}]}`))
	f.Add(502, []byte("<html>"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := Unexpected(&wire.Answer{Status: status, Header: http.Header{}, Body: body}, time.Now())
		if strings.ContainsAny(Text(e), "\x1b\r\n\x00") {
			t.Fatalf("%q would steer a terminal", Text(e))
		}
		Classify(e)
	})
}

func refusal(status int, message string) *StatusError {
	body, _ := json.Marshal(map[string]any{"errors": []map[string]string{{"code": "X", "message": message}}})
	return Unexpected(&wire.Answer{Status: status, Header: http.Header{}, Body: body}, time.Now())
}

func TestExpects(t *testing.T) {
	for _, c := range []struct {
		status  int
		message string
		want    int64
		ok      bool
	}{
		{416, "First byte of the layer part is 0 instead of 11304960", 11304960, true},
		{416, "Invalid: 'First byte of the layer part is 5 instead of 0'.", 0, true},
		{400, "First byte of the layer part is 0 instead of 11304960", 0, false},
		{416, "First byte of the layer part is 0 instead of -1", 0, false},
		{416, "First byte of the layer part is 0 instead of 99999999999999999999", 0, false},
		{416, "First byte of the layer part is 0 instead of", 0, false},
		{416, "", 0, false},
	} {
		if got, ok := refusal(c.status, c.message).Expects(); got != c.want || ok != c.ok {
			t.Errorf("%d %q: got %d, %v, want %d, %v", c.status, c.message, got, ok, c.want, c.ok)
		}
	}
}

func FuzzExpects(f *testing.F) {
	for _, s := range []string{"First byte of the layer part is 0 instead of 11304960", "instead of 5", "First byte of the layer part is 1 instead of 999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := refusal(416, s).Expects(); n < 0 || !ok && n != 0 {
			t.Fatalf("Expects of %q is %d, %v", s, n, ok)
		}
	})
}

func TestRateLimits(t *testing.T) {
	const github = `{"errors":[{"code":"DENIED","message":"permission_denied: Error from intermediary with HTTP status code 403 \\"Forbidden\\" - with-body: {\\"message\\":\\"You have exceeded a secondary rate limit. Please wait a few minutes before you try again.\\"}"}]}`
	const ghcr = `{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: %s, allowed: 2000/minute"}]}`
	for name, c := range map[string]struct {
		status int
		header http.Header
		body   string
		class  Class
		after  time.Duration
	}{
		"403":                       {403, nil, `{"errors":[{"code":"DENIED","message":"no"}]}`, Final, 0},
		"403, text":                 {403, nil, github, Break, time.Minute},
		"403, text that is no JSON": {403, nil, "You have exceeded a Rate Limit", Break, time.Minute},
		"403, Retry-After":          {403, http.Header{"Retry-After": {"7"}}, "", Break, 7 * time.Second},
		"403, Retry-After of 0":     {403, http.Header{"Retry-After": {"0"}}, "", Break, time.Minute},
		"403, nothing remains":      {403, http.Header{"X-Ratelimit-Remaining": {"0"}}, "", Break, time.Minute},
		"403, some remain":          {403, http.Header{"X-Ratelimit-Remaining": {"10"}}, "", Final, 0},
		"401, text":                 {401, nil, "rate limit", Final, 0},
		"429, milliseconds":         {429, nil, fmt.Sprintf(ghcr, "10.48ms"), Break, 10480 * time.Microsecond},
		"429, longer":               {429, nil, fmt.Sprintf(ghcr, "1m30s"), Break, 90 * time.Second},
		"429, for ever":             {429, nil, fmt.Sprintf(ghcr, "1000000h"), Break, MaxWait},
		"429, no duration":          {429, nil, fmt.Sprintf(ghcr, "5 apples"), Break, 0},
		"429, header first":         {429, http.Header{"Retry-After": {"3"}}, fmt.Sprintf(ghcr, "1m"), Break, 3 * time.Second},
	} {
		h := c.header
		if h == nil {
			h = http.Header{}
		}
		e := Unexpected(&wire.Answer{Status: c.status, Header: h, Body: []byte(c.body)}, time.Now())
		if v := Classify(e); v.Class != c.class || v.After != c.after || errors.Is(e, ErrDenied) != (c.class == Final) {
			t.Errorf("%s: got %+v, want class %d after %s", name, v, c.class, c.after)
		}
	}
	// A token server's answer has no headers left.
	limited := &transport.Error{StatusCode: 403, Errors: []transport.Diagnostic{{Code: "DENIED", Message: "secondary rate limit"}}}
	if v := Classify(limited); v.Class != Break || v.After != time.Minute {
		t.Errorf("token server: got %+v", v)
	}
}

func TestAllowedPerMinute(t *testing.T) {
	for text, want := range map[string]int{
		"retry-after: 10.48ms, allowed: 2000/minute": 2000,
		"allowed: 2000/hour":                         0,
		"slow down":                                  0,
	} {
		if e := refusal(http.StatusTooManyRequests, text); e.PerMinute != want || !e.RateLimited() {
			t.Errorf("%q: %d a minute, rate limited %v; want %d", text, e.PerMinute, e.RateLimited(), want)
		}
	}
	if refusal(http.StatusForbidden, "requested access to the resource is denied").RateLimited() {
		t.Error("a denial is taken for a rate limit")
	}
}

func FuzzRateLimit(f *testing.F) {
	f.Add("retry-after: 10.48ms, allowed: 2000/minute")
	f.Add("retry-after: -5s")
	f.Fuzz(func(t *testing.T, s string) {
		for _, status := range []int{403, 429} {
			if e := refusal(status, s); e.After < 0 || e.After > MaxWait || e.PerMinute < 0 {
				t.Fatalf("%d %q: wait %s, %d a minute", status, s, e.After, e.PerMinute)
			}
		}
	})
}

// A full disk is final: 507, and ENOSPC as distribution 3 says it.
func TestDiskFull(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   bool
	}{
		{507, "", true},
		{500, `{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"DriverName":"filesystem","Enclosed":{"Op":"write","Path":"/var/lib/registry/x","Err":28}}}]}`, true},
		{500, `{"errors":[{"code":"UNKNOWN","message":"write /data/x: no space left on device"}]}`, true},
		{500, `{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"Op":"write","Err":5}}]}`, false},
		{500, "", false},
		{404, `{"errors":[{"code":"UNKNOWN","message":"no space left on device"}]}`, false},
	} {
		a := &wire.Answer{Status: tt.status, Header: http.Header{}, Body: []byte(tt.body)}
		e := Unexpected(a, time.Now())
		if got := e.DiskFull(); got != tt.want {
			t.Errorf("%d %s: full is %v, want %v", tt.status, tt.body, got, tt.want)
		}
		if final := Classify(e).Class == Final; tt.want && (!final || ReasonOf(e) != DiskFull) {
			t.Errorf("%d %s: final is %v, the reason %d", tt.status, tt.body, final, ReasonOf(e))
		}
	}
}
