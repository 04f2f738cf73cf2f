// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// clean makes a registry's error fit to be shown: without the body that it may
// be, with details only where they are short texts, and without what it may
// quote of the location or of credentials.
func clean(te *transport.Error, r *http.Request) *transport.Error {
	c := &transport.Error{StatusCode: te.StatusCode, Request: scrub(te.Request)}
	for _, d := range te.Errors {
		show := func(s string) string { return printable(credential().ReplaceAllString(hide(r, s), "$1 ...")) }
		detail, _ := d.Detail.(string)
		n := transport.Diagnostic{Code: transport.ErrorCode(show(string(d.Code))), Message: show(d.Message)}
		if detail != "" {
			n.Message += " (" + show(detail) + ")"
		}
		c.Errors = append(c.Errors, n)
	}
	return c
}

// credential is what follows the name of an authentication scheme.
var credential = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)\b(basic|bearer)\s+\S+`) })

// printable keeps a stranger's text from steering a terminal or filling a log.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "..."
	}
	return s
}

// hide takes out of a registry's words what it may quote of the location.
func hide(r *http.Request, text string) string {
	if r == nil {
		return text
	}
	_, secret := shown(r.URL)
	secrets := []string{r.URL.RequestURI(), r.URL.RawQuery, secret}
	secrets = append(secrets, strings.Split(secret, "/")...)
	for k, vs := range r.URL.Query() {
		if k != "digest" && k != "mount" && k != "from" {
			secrets = append(secrets, vs...)
		}
	}
	for _, s := range secrets {
		if len(s) > 3 && s != r.URL.Path && !slices.Contains(plainSegments, s) {
			text = strings.ReplaceAll(text, s, "...")
		}
	}
	return text
}

// plainSegments are parts of the paths of upload locations that say nothing.
var plainSegments = []string{"blobs", "upload", "uploads", "artifacts-uploads", "namespaces", "repositories"}

// shown splits the path of a URL into what may be shown and what may be a
// capability. The paths of the distribution API may be shown, except for what
// names an upload session. Every other path is where a registry put something,
// and hidden: only the registry knows what such a path means.
func shown(u *url.URL) (show, secret string) {
	path, isAPI := strings.CutPrefix(u.Path, "/v2/")
	if !isAPI {
		return "/", strings.TrimPrefix(u.Path, "/")
	}
	parts := strings.Split(path, "/")
	n := len(parts)
	if path == "" || n >= 3 && (parts[n-2] == "manifests" || parts[n-2] == "referrers" || parts[n-2] == "tags" ||
		parts[n-2] == "blobs" && (strings.Contains(parts[n-1], ":") || parts[n-1] == "uploads") ||
		parts[n-3] == "blobs" && parts[n-2] == "uploads" && parts[n-1] == "") {
		return u.Path, ""
	}
	for _, opened := range []string{"/blobs/uploads/", "/blobs/upload/"} {
		if before, after, ok := strings.Cut(u.Path, opened); ok {
			return before + opened, after
		}
	}
	return "/v2/", path
}

// scrub leaves of a request what may be shown: the path of an upload location
// and every query can be a capability.
func scrub(r *http.Request) *http.Request {
	if r == nil {
		return nil
	}
	u := *r.URL
	if show, secret := shown(&u); secret != "" {
		u.Path, u.RawPath = show, ""
	}
	u.RawQuery, u.User, u.Fragment = "", nil, ""
	return &http.Request{Method: r.Method, URL: &u, Host: r.Host}
}

// Text is an error's text, fit for a log: without the URLs that net/http puts
// into it and without what could steer a terminal.
func Text(err error) string {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return printable(err.Error())
}
