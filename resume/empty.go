// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Some registries cannot store a blob of no bytes, because the object storage
// behind them wants at least one part: ECR answers 400 to the commit, Cloudflare's
// registry and docker-registry 2.8 on S3 answer 500, every time. A 500 is retried,
// as the registry may only have failed this time.

// emptyDigest is the digest of no bytes.
var emptyDigest = digest.FromBytes(nil)

// failsEmpty notes an answer to the commit of a blob that fails at the registry.
func (u *upload) failsEmpty(answer *protocol.StatusError) {
	if answer.Status == http.StatusInternalServerError && u.blob.Size == 0 && u.blob.Digest == emptyDigest {
		u.emptyFailure = answer
		u.emptyFailures++
	}
}

// emptyAgain opens another session for an empty blob whose commit failed: there is
// nothing in the old one to keep, and it may be damaged. After enough failures the
// upload ends.
func (u *upload) emptyAgain() (step, error) {
	if u.emptyFailures >= maxFailedCommits {
		return stepResolve, &ContentError{Err: fmt.Errorf("it fails every commit of an empty blob: %w", u.emptyFailure.Permanent())}
	}
	next, err := u.drop(errFailsCommit)
	if protocol.IsTransient(err) {
		return next, nil // the failure has been waited for
	}
	return next, err
}
