// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"net/http"
	"time"
)

// Personality is a registry that people push to.
type Personality struct {
	Name    string
	Options Options
}

const mib = 1 << 20

// Personalities behave as hosted registries, and what stands before registries,
// are read or reported to. What nobody has established, such as what is left of a
// broken PATCH on GHCR, is the worst that does not end in a lost session. Styles
// that need one have OtherHost "other.test".
//
// Each call returns values of its own.
func Personalities() []Personality {
	return []Personality{
		{"ghcr", GHCR()}, {"ecr", ECR()}, {"gar", GAR()}, {"s3", S3()}, {"harbor", Harbor()},
		{"jfrog", JFrog()}, {"r2", R2()}, {"pulp", Pulp()}, {"edge", Edge()},
	}
}

// GHCR is GitHub's registry: upload locations at a path of its own, and at most
// 4 MiB in a body with Content-Range.
func GHCR() Options {
	return Options{Store: Boundary, UploadPath: BlobsUpload, MaxRanged: 4 * mib}
}

// ECR is Amazon's registry: 201 to a PATCH, a Range that sticks after the first
// one, 404 to every status request, one location, parts of at least 5 MiB, the
// offset in the text of a 416, and no empty blobs.
func ECR() Options {
	return Options{
		PatchStatus: http.StatusCreated, Range: Stuck, Status: MissingStatus, OneLocation: true, SaysOffset: true,
		MinPart: 5 * mib, NoEmpty: http.StatusBadRequest, NoManifestDigest: []string{http.MethodGet},
	}
}

// GAR is Google's Artifact Registry: relative upload locations at a path of their
// own that are good for one use, one PATCH for each session, and blobs that
// another path of the registry answers for.
func GAR() Options {
	return Options{
		Store: Boundary, UploadPath: ArtifactsUploads, Location: Relative, SingleUse: true, OnePatch: true, Storage: SameOrigin,
	}
}

// S3 is distribution 3 on object storage, with redirects, which are on by default.
func S3() Options {
	return Options{PartSize: 5 * mib, Storage: OtherOrigin, OtherHost: "other.test"}
}

// Harbor is Harbor 2 on object storage: distribution 2 below, and 401 to a mount
// from a project that the user may not read.
func Harbor() Options {
	return Options{
		Store: Fragile, StaleIsGone: true, LooseRange: true, Storage: OtherOrigin, OtherHost: "other.test",
		NoMount: http.StatusUnauthorized,
	}
}

// JFrog is an Artifactory 6 with a virtual repository: no body in a commit, and
// 403 to the question for a tag that is not there.
func JFrog() Options {
	return Options{Store: Fragile, NoPutBody: http.StatusNotFound, AbsentTag: http.StatusForbidden}
}

// R2 is Cloudflare's serverless registry: chunks of equal size within announced
// limits, a status for GET only, and no empty blobs.
func R2() Options {
	return Options{
		Store: Boundary, Status: GetOnly, Range: EmptyMinusOne, Location: Relative,
		MinChunk: 5 * mib, MaxChunk: 100_000_000, EqualChunks: true, HTML: true, NoEmpty: http.StatusInternalServerError,
	}
}

// Pulp is Pulp, and with it Satellite and Automation Hub: a first PATCH without
// Content-Range has to be the whole blob, a wrong offset is 500, a mount from a
// repository that is not there 404, blobs are redirected to another path, and
// manifests are queued.
func Pulp() Options {
	return Options{
		Store: Boundary, Location: Relative, PatchStatus: http.StatusNoContent, WholeFirst: true, WrongStart: http.StatusInternalServerError,
		NoMount: http.StatusNotFound, Storage: SameOrigin, QueuesManifests: 2 * time.Second,
	}
}

// Edge is a network before distribution 3 that buffers requests. It answers some
// itself: 413 above a size, with a web page, and 524 after 100 s to bodies that
// take longer, which are those above a size here.
func Edge() Options {
	return Options{
		Store: Boundary, HTML: true, MaxBody: 100_000_000,
		EndsBodies: 524, EndsAt: 24 * mib, EndsWhole: true, EndsAfter: 100 * time.Second,
	}
}

// Scaled divides every size by n, for tests with small blobs.
func (o Options) Scaled(n int64) Options {
	for _, size := range []*int64{&o.PartSize, &o.MinPart, &o.MaxBody, &o.MaxRanged, &o.MinChunk, &o.MaxChunk, &o.EndsAt} {
		*size /= n
	}
	return o
}
