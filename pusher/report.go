// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Report says what a push did. It is complete after success; after a failure
// it holds what was done until then.
type Report struct {
	// Reference is the reference pushed to, fully spelled out.
	Reference string `json:"reference"`
	// Digest and MediaType are those of the manifest under Reference.
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Tags are the further tags of the repository for the manifest.
	Tags []string `json:"tags,omitempty"`
	// Size is the sum of all blobs and manifests, each digest counted once.
	Size int64 `json:"size"`
	// Sent is the number of blob bytes that went out, those sent again included:
	// see resume.Result.
	Sent int64 `json:"sent"`
	// Breaks, Resumes and Restarts are the sums over Blobs.
	Breaks   int `json:"breaks"`
	Resumes  int `json:"resumes"`
	Restarts int `json:"restarts"`
	// Continued is the number of blob bytes that an earlier push had delivered of
	// uploads which this one went on with.
	Continued int64 `json:"continued"`
	// Seconds is the time the push took.
	Seconds float64 `json:"seconds"`

	Blobs     []BlobReport     `json:"blobs"`
	Manifests []ManifestReport `json:"manifests"`
}

// BlobState is how a blob came to be at the registry.
type BlobState string

// The states of a blob.
const (
	// BlobPending: not at the registry, as far as is known.
	BlobPending BlobState = "pending"
	// BlobExisted: it was there before.
	BlobExisted BlobState = "existed"
	// BlobMounted: the registry took it from another repository.
	BlobMounted BlobState = "mounted"
	// BlobUploaded: this push delivered it.
	BlobUploaded BlobState = "uploaded"
)

// BlobReport is what became of one blob.
type BlobReport struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	State     BlobState     `json:"state"`
	// Sent is the number of bytes of the blob that went out: see resume.Result.
	Sent int64 `json:"sent"`
	// Breaks counts requests that broke, Resumes how often the upload went on
	// at an offset above 0, Restarts how often a session was lost.
	Breaks   int `json:"breaks"`
	Resumes  int `json:"resumes"`
	Restarts int `json:"restarts"`
	// Continued is the number of bytes that the registry held of an upload which
	// an earlier push had left. Kept: the upload did not end well, and the next
	// push continues it.
	Continued int64 `json:"continued"`
	Kept      bool  `json:"kept"`
	// MountFrom is the repository, if any, that the registry is, or was, asked
	// to take the blob from.
	MountFrom string `json:"mountFrom,omitempty"`
	// Seconds is the time spent on the blob.
	Seconds float64 `json:"seconds"`
}

// ManifestReport is what became of one manifest.
type ManifestReport struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	// Existed: the registry had it already under the reference asked for.
	Existed bool `json:"existed"`
	// Pushed: the registry has it now, whether it existed or was written.
	Pushed bool `json:"pushed"`
}

// addBlob takes in a blob and adds it up.
func (r *Report) addBlob(b BlobReport) {
	r.Blobs = append(r.Blobs, b)
	r.Size += b.Size
	r.Sent += b.Sent
	r.Breaks += b.Breaks
	r.Resumes += b.Resumes
	r.Restarts += b.Restarts
	r.Continued += b.Continued
}

// seconds is a time to the millisecond, as a number that is printed with three
// decimals at most.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}
