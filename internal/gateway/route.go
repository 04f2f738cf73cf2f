// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// kind is what a request is about.
type kind int

const (
	aboutRegistry kind = iota // GET /v2/
	aboutCatalog
	aboutBlob
	aboutUploads // POST opens a session
	aboutUpload
	aboutManifest
	aboutTags
	aboutReferrers
	aboutElse
)

// String says it for logs.
func (k kind) String() string {
	return [...]string{"registry", "catalog", "blob", "session", "upload", "manifest", "tags", "referrers", "other"}[k]
}

// route is a request of the distribution specification, taken apart.
type route struct {
	kind kind
	// registry is the host that the client named, empty if it named none.
	registry string
	// prefix says that the registry was the first element of the path.
	prefix bool
	// repository is its name at the registry.
	repository string
	// rest is the path behind the repository: a digest, a tag, an upload.
	rest string
}

// methods are those of the specification (distribution-spec v1.1, "Endpoints").
var methods = map[kind][]string{
	aboutRegistry:  {http.MethodGet, http.MethodHead},
	aboutCatalog:   {http.MethodGet, http.MethodHead},
	aboutBlob:      {http.MethodGet, http.MethodHead, http.MethodDelete},
	aboutUploads:   {http.MethodPost},
	aboutUpload:    {http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPut, http.MethodDelete},
	aboutManifest:  {http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete},
	aboutTags:      {http.MethodGet, http.MethodHead},
	aboutReferrers: {http.MethodGet, http.MethodHead},
}

var (
	repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagName        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	// uploadID is one element of a path. What registries make is a UUID, or base64.
	uploadID = regexp.MustCompile(`^[a-zA-Z0-9._~=+:@-]+$`)
)

const (
	maxName    = 512 // bytes of a repository with its registry
	nsQuery    = "ns"
	apiVersion = "/v2/"
)

// parseRoute takes a URL apart. It accepts the paths of the specification and no
// others, in their one plain spelling: no server that decodes, cleans or splits
// a path in another way can take it for another path. prefixed says that the
// first element of a name is its registry, unless the query has a registry.
func parseRoute(u *url.URL, prefixed bool) (route, bool) {
	var r route
	path, ok := strings.CutPrefix(u.Path, apiVersion)
	if !ok || u.Opaque != "" || u.RawPath != "" && u.RawPath != u.Path || strings.ContainsAny(u.Path, "%\\;?#") {
		return r, false
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query[nsQuery]) > 1 {
		return r, false
	}
	r.registry = query.Get(nsQuery)
	if r.registry == "" && query.Has(nsQuery) {
		return r, false
	}
	if r.registry != "" {
		if r.registry, ok = registryHost(r.registry); !ok {
			return r, false
		}
	}
	switch path {
	case "":
		return r, true
	case "_catalog":
		r.kind = aboutCatalog
		return r, true
	}
	if !r.split(path) || len(r.repository) > maxName {
		return r, false
	}
	if prefixed && r.registry == "" {
		host, rest, _ := strings.Cut(r.repository, "/")
		if !strings.ContainsAny(host, ".:") && host != "localhost" {
			return r, false
		}
		if r.registry, ok = registryHost(host); !ok {
			return r, false
		}
		r.repository, r.prefix = rest, true
	}
	return r, repositoryName.MatchString(r.repository)
}

// split finds where the repository ends. Its name may hold the words of the
// specification too, so the end of the path decides.
func (r *route) split(path string) bool {
	parts := strings.Split(path, "/")
	n := len(parts)
	last, before := parts[n-1], ""
	if n >= 2 {
		before = parts[n-2]
	}
	join := func(k int) string { return strings.Join(parts[:k], "/") }
	switch {
	case n >= 4 && parts[n-3] == "blobs" && before == "uploads" && last == "":
		r.kind, r.repository, r.rest = aboutUploads, join(n-3), "blobs/uploads/"
	case n >= 3 && before == "blobs" && last == "uploads":
		r.kind, r.repository, r.rest = aboutUploads, join(n-2), "blobs/uploads/"
	case n >= 4 && parts[n-3] == "blobs" && (before == "uploads" || before == "upload"):
		r.kind, r.repository, r.rest = aboutUpload, join(n-3), strings.Join(parts[n-3:], "/")
		return uploadID.MatchString(last) && last != "." && last != ".."
	case n >= 3 && before == "blobs":
		r.kind, r.repository, r.rest = aboutBlob, join(n-2), "blobs/"+last
		return digest.Digest(last).Validate() == nil
	case n >= 3 && before == "manifests":
		r.kind, r.repository, r.rest = aboutManifest, join(n-2), "manifests/"+last
		return tagName.MatchString(last) || digest.Digest(last).Validate() == nil
	case n >= 3 && before == "tags" && last == "list":
		r.kind, r.repository, r.rest = aboutTags, join(n-2), "tags/list"
	case n >= 3 && before == "referrers":
		r.kind, r.repository, r.rest = aboutReferrers, join(n-2), "referrers/"+last
		return digest.Digest(last).Validate() == nil
	default:
		return false
	}
	return true
}

// about says what a request to a registry is about.
func about(u *url.URL) kind {
	var r route
	if path, ok := strings.CutPrefix(u.Path, apiVersion); ok && r.split(path) {
		return r.kind
	}
	return aboutElse
}

// registryHost is the host of a registry's API, for a name as in references.
func registryHost(s string) (string, bool) {
	if strings.ContainsAny(s, "/@ \t\\?#%") || len(s) > 255 {
		return "", false
	}
	reg, err := name.NewRegistry(s, name.WeakValidation)
	if err != nil {
		return "", false
	}
	return reg.RegistryStr(), true
}

// repositoryAt returns a repository of the registry at host. name.NewRepository
// takes HOST/REPOSITORY for a path on Docker Hub if the host has neither a dot
// nor a port.
func repositoryAt(host, repository string) (name.Repository, error) {
	reg, err := name.NewRegistry(host, name.WeakValidation)
	if err != nil {
		return name.Repository{}, err
	}
	if !repositoryName.MatchString(repository) {
		return name.Repository{}, fmt.Errorf("%q is not a repository", repository)
	}
	return reg.Repo(repository), nil
}

// withoutNS is a raw query without containerd's parameter. The rest stays as
// the registry wrote it.
func withoutNS(raw string) string {
	if !strings.Contains(raw, nsQuery+"=") {
		return raw
	}
	parts := strings.Split(raw, "&")
	kept := parts[:0]
	for _, p := range parts {
		if k, _, _ := strings.Cut(p, "="); k != nsQuery {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "&")
}
