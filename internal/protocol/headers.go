// SPDX-License-Identifier: Apache-2.0

// Package protocol reads what registries write: the headers of the upload
// protocol (distribution-spec v1.1, "Pushing blobs") with all their dialects,
// and the meaning of an answer or a failure.
//
// No other package parses these headers or decides what an error means.
package protocol

import (
	"errors"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Held is how much of a blob a Range header says is held.
type Held struct {
	// Bytes is a count, not an inclusive end.
	Bytes int64
	// Ambiguous is set for "0-0", which distribution and zot answer for an
	// empty upload as well as for one of one byte. Bytes is then 0.
	Ambiguous bool
}

// ParseRange reads the Range header of an answer to an upload request:
// "0-N" inclusive (distribution-spec), "0--1" for nothing (olareg), with or
// without the prefix "bytes=" (Quay). ok is false if there is none or it
// says something else.
func ParseRange(h http.Header) (held Held, ok bool) {
	v := strings.TrimSpace(h.Get("Range"))
	v = strings.TrimPrefix(v, "bytes=")
	v = strings.TrimPrefix(v, "bytes ")
	end, found := strings.CutPrefix(v, "0-")
	if !found {
		return Held{}, false
	}
	if end == "-1" {
		return Held{}, true
	}
	n, err := strconv.ParseUint(end, 10, 63)
	if err != nil || end[0] == '+' || n == 1<<63-1 {
		return Held{}, false
	}
	if n == 0 {
		return Held{Ambiguous: true}, true
	}
	return Held{Bytes: int64(n) + 1}, true
}

// ContentRange is the header of a PATCH for the bytes [offset, end): inclusive
// and without a unit, which distribution 3 answers with 500.
func ContentRange(offset, end int64) string {
	return strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(end-1, 10)
}

// Range is the header that says that the first n bytes are held.
func Range(n int64) string { return "0-" + strconv.FormatInt(max(n-1, 0), 10) }

// Part is what an answer to a request for a range of bytes holds.
type Part struct {
	// Start is the offset of its first byte, Total the size of the whole, -1
	// where that is not said.
	Start, Total int64
}

// ParsePart reads the Content-Range of an answer of status 206 (RFC 9110,
// 14.4): "bytes A-B/N" or "bytes A-B/*". ok is false for anything else.
func ParsePart(h http.Header) (p Part, ok bool) {
	v, found := strings.CutPrefix(strings.TrimSpace(h.Get("Content-Range")), "bytes ")
	span, total, slash := strings.Cut(v, "/")
	first, last, dash := strings.Cut(span, "-")
	if !found || !slash || !dash {
		return Part{}, false
	}
	a, errA := strconv.ParseUint(first, 10, 62)
	b, errB := strconv.ParseUint(last, 10, 62)
	if errA != nil || errB != nil || b < a {
		return Part{}, false
	}
	if total == "*" {
		return Part{Start: int64(a), Total: -1}, true
	}
	n, err := strconv.ParseUint(total, 10, 62)
	if err != nil || n <= b {
		return Part{}, false
	}
	return Part{Start: int64(a), Total: int64(n)}, true
}

// RangeFrom is the header of a request for the bytes from offset on.
func RangeFrom(offset int64) string { return "bytes=" + strconv.FormatInt(offset, 10) + "-" }

// NextPage reads the Link header of a page of a list (distribution-spec v1.1,
// "Listing Tags"): the query of the URL with rel="next". ok is false where
// there is none. All but the query is left out: it leads nowhere else.
func NextPage(h http.Header) (query string, ok bool) {
	for _, v := range h.Values("Link") {
		target, params, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(v), "<"), ">")
		if !found || !strings.Contains(strings.ReplaceAll(params, " ", ""), "rel=\"next\"") &&
			!strings.Contains(strings.ReplaceAll(params, " ", ""), "rel=next") {
			continue
		}
		if u, err := url.Parse(target); err == nil && u.RawQuery != "" {
			return u.RawQuery, true
		}
	}
	return "", false
}

// ChunkLengths are bounds in bytes on all chunks of an upload but the last, which
// has only the upper one. 0 is no bound, and Min is never above a Max.
type ChunkLengths struct {
	Min, Max int64
}

// ParseChunkLengths reads OCI-Chunk-Min-Length and OCI-Chunk-Max-Length. The
// latter is an open proposal (https://github.com/opencontainers/distribution-spec/issues/485)
// that Cloudflare's registry sends. A registry cannot make chunks larger than
// 1 GiB by Min, or smaller than 64 KiB by Max. If they contradict each other, Max
// counts: it is what a larger body is refused for.
func ParseChunkLengths(h http.Header) ChunkLengths {
	length := func(name string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(h.Get(name)), 10, 64)
		if err != nil {
			return 0
		}
		return max(n, 0)
	}
	l := ChunkLengths{Min: min(length("OCI-Chunk-Min-Length"), 1<<30), Max: length("OCI-Chunk-Max-Length")}
	if l.Max > 0 {
		l.Max = max(l.Max, 64<<10)
		l.Min = min(l.Min, l.Max)
	}
	return l
}

// MaxWait bounds what a Retry-After may ask for.
const MaxWait = 24 * time.Hour

// RetryAfter reads the header of the same name, in seconds or as a date
// (RFC 9110, 10.2.3). It is 0 if there is none or the time is past.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if s, err := strconv.ParseUint(v, 10, 63); err == nil {
		return time.Duration(min(s, uint64(MaxWait/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), MaxWait)
}

// IsBlob reports whether the headers of a 2xx answer can be those of the blob:
// not of another one, and not of a web page of something on the way.
func IsBlob(h http.Header, want digest.Digest) bool {
	got, err := digest.Parse(h.Get("Docker-Content-Digest"))
	if err == nil && got.Algorithm() == want.Algorithm() {
		return got == want
	}
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err != nil || t != "text/html"
}

// RequestID is what an answer gives an administrator to search a log for.
func RequestID(h http.Header) string {
	for _, k := range []string{"X-Request-Id", "Docker-Request-Id", "X-Amzn-Requestid", "X-Ms-Request-Id", "X-Correlation-Id", "Cf-Ray"} {
		if v := h.Get(k); v != "" {
			return v
		}
	}
	return ""
}

// Locations that are not followed.
var (
	ErrNoLocation = errors.New("the answer names no upload location")
	ErrDowngrade  = errors.New("the registry asks to continue a secure upload over plain HTTP")
)

// Location is an upload location that may be used.
type Location struct {
	URL *url.URL
	// Mended: the registry named its own host with http although it is spoken
	// to over https, as behind a TLS proxy that sends no X-Forwarded-Proto. The
	// scheme and port spoken to were kept.
	Mended bool
}

// ParseLocation reads the Location header of the answer to a request for asked.
// registry is a URL on the registry's own host. The error never contains the
// location, which may carry a credential. It is ErrNoLocation where there is
// none. A location on another host is allowed, as registries with object
// storage have it, but not over plain HTTP where anything before it was secure.
func ParseLocation(registry, asked *url.URL, h http.Header) (Location, error) {
	v := h.Get("Location")
	if v == "" {
		return Location{}, ErrNoLocation
	}
	ref, err := url.Parse(v)
	if err != nil {
		return Location{}, errors.New("the upload location is not a URL")
	}
	u := asked.ResolveReference(ref)
	u.Fragment, u.RawFragment, u.User = "", "", nil
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return Location{}, errors.New("the upload location is not an http or https URL")
	}
	if SameOrigin(registry, u) {
		return Location{URL: u}, nil
	}
	if u.Scheme == "http" && strings.EqualFold(registry.Hostname(), u.Hostname()) && registry.Scheme == "https" {
		u.Scheme, u.Host = registry.Scheme, registry.Host
		return Location{URL: u, Mended: true}, nil
	}
	if u.Scheme == "http" && (registry.Scheme == "https" || asked.Scheme == "https") {
		return Location{}, ErrDowngrade
	}
	return Location{URL: u}, nil
}

// IsUpload reports whether u has the form of an upload location: below /v2/,
// one segment after blobs/uploads/, or blobs/upload/ as on GHCR, or below
// /artifacts-uploads/ as on Artifact Registry. It is never the URL of a
// manifest or a blob, whatever a server makes of dots and escapes in it.
func IsUpload(u *url.URL) bool {
	if u.Opaque != "" || strings.ContainsAny(u.Path, `%\`) || strings.Contains(u.Path, "//") {
		return false
	}
	path, rooted := strings.CutPrefix(u.Path, "/")
	parts := strings.Split(path, "/")
	if !rooted || slices.Contains(parts, ".") || slices.Contains(parts, "..") {
		return false
	}
	n := len(parts)
	if parts[n-1] == "" {
		return false
	}
	if parts[0] == "artifacts-uploads" {
		return n > 1
	}
	// Proxies serve a registry below a prefix, such as /artifactory/api/docker/team.
	return n >= 5 && slices.Contains(parts[:n-4], "v2") &&
		parts[n-3] == "blobs" && (parts[n-2] == "uploads" || parts[n-2] == "upload")
}

// SameOrigin reports whether two URLs agree in scheme, host and port: whether
// credentials for one may be sent to the other.
func SameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(HostPort(a), HostPort(b))
}

// HostPort is the host and port of a URL, the port spelled out.
func HostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}
