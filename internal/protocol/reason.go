// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Reason is why a registry refused something, as far as its answer tells.
type Reason int

// The reasons.
const (
	NoReason Reason = iota
	// NoRepository: the repository or project does not exist, and is not created by
	// a push.
	NoRepository
	// MaybeNoRepository: the repository does not exist or may not be written to.
	MaybeNoRepository
	// TagImmutable: the tag exists and may not be overwritten.
	TagImmutable
	// Quota: there is no room left for the account or project.
	Quota
	// DiskFull: there is no room left on the registry's disk.
	DiskFull
	// PlanLimit: the plan of the account allows no more.
	PlanLimit
	// TokenExpired: the credentials were good and have expired.
	TokenExpired
	// SSO: the token is not authorised for the single sign-on of the organisation.
	SSO
	// ReadOnly: the registry takes no pushes at the moment.
	ReadOnly
	// ManifestBlocked: the registry does not take manifests of this type, such as
	// indexes or attestations.
	ManifestBlocked
)

// rule is one way in which a registry says a reason. A field that is not set
// matches everything.
type rule struct {
	reason   Reason
	statuses []int
	codes    []transport.ErrorCode
	words    string // a regular expression for the message, without regard to case
	manifest bool   // of a manifest only
}

// rules are tried in order. Codes alone are used where they say enough; words only
// where the code, such as DENIED, is that of many reasons.
var rules = []rule{
	// Harbor: precondition of the immutable tag rule, status 412.
	{reason: TagImmutable, statuses: []int{http.StatusPreconditionFailed}, manifest: true},
	// Quay.
	{reason: TagImmutable, codes: []transport.ErrorCode{"TAG_IMMUTABLE"}},
	// ECR, https://github.com/moby/buildkit/issues/3776.
	{reason: TagImmutable, codes: []transport.ErrorCode{transport.TagInvalidErrorCode}, words: `\bimmutable\b`},
	{reason: TagImmutable, words: `\bimmutable\b`, manifest: true},
	// ECR, https://github.com/aws/aws-cli/issues/6580.
	{reason: TokenExpired, statuses: []int{http.StatusUnauthorized, http.StatusForbidden}, words: `\btoken has expired\b`},
	// GitHub, and Docker Hub: https://github.com/docker/hub-feedback/issues/2181.
	{reason: SSO, statuses: []int{http.StatusUnauthorized, http.StatusForbidden}, words: `\bSAML\b|\bSSO is enforced\b`},
	// DigitalOcean, https://github.com/docker/build-push-action/issues/586.
	{reason: PlanLimit, words: `\bregistry contains [0-9]+ repositories, limit is [0-9]+`},
	// Harbor, https://github.com/goharbor/harbor/issues/17390.
	{reason: Quota, words: `\bwill exceed the configured upper limit\b|\bquota\b.{0,40}\bexceeded\b|\bexceeded\b.{0,40}\bquota\b`},
	// Harbor, https://github.com/ovh/public-cloud-roadmap/issues/242.
	{reason: ReadOnly, words: `\bread[ -]only mode\b`},
	// Artifact Registry, https://github.com/GoogleCloudPlatform/cymbal-superstore/pull/4.
	{reason: MaybeNoRepository, words: `\(or it may not exist\)`},
	// ECR, https://github.com/docker/cli/issues/5275.
	{reason: NoRepository, codes: []transport.ErrorCode{transport.NameUnknownErrorCode}},
	// Harbor, https://github.com/goharbor/harbor/issues/17097.
	{reason: NoRepository, words: `\bproject \S+ not found\b`},
	// Huawei SWR, https://github.com/regclient/regclient/issues/720.
	{reason: ManifestBlocked, words: `fail to parse 'manifest\.json'`},
	{reason: ManifestBlocked, statuses: []int{http.StatusUnsupportedMediaType}, manifest: true},
	// Gitea takes indexes of images only; old ECR no OCI manifest without a mediaType.
	{reason: ManifestBlocked, codes: []transport.ErrorCode{transport.ManifestInvalidErrorCode, transport.UnsupportedErrorCode}, manifest: true},
}

var ruleWords = sync.OnceValue(func() []*regexp.Regexp {
	rs := make([]*regexp.Regexp, len(rules))
	for i, r := range rules {
		rs[i] = regexp.MustCompile(`(?i)` + r.words)
	}
	return rs
})

// ReasonOf says why the registry refused, if err is a final answer of one.
func ReasonOf(err error) Reason {
	var te *transport.Error
	if !errors.As(err, &te) || te.StatusCode < 400 || errors.Is(err, ErrInterrupted) {
		return NoReason
	}
	var status *StatusError
	if errors.As(err, &status) && status.DiskFull() {
		return DiskFull
	}
	manifest := te.Request != nil && te.Request.Method == http.MethodPut && strings.Contains(te.Request.URL.Path, "/manifests/")
	said := te.Errors
	if len(said) == 0 {
		said = []transport.Diagnostic{{}}
	}
	for i, r := range rules {
		if r.manifest && !manifest || r.statuses != nil && !slices.Contains(r.statuses, te.StatusCode) {
			continue
		}
		for _, d := range said {
			if (r.codes == nil || slices.Contains(r.codes, d.Code)) && ruleWords()[i].MatchString(d.Message) {
				return r.reason
			}
		}
	}
	return NoReason
}
