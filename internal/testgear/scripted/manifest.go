// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"
)

func (x *exchange) getManifest() {
	x.g.mu.Lock()
	m, digest, ok := x.g.manifest(x.q.Repo, x.q.Reference)
	x.g.mu.Unlock()
	if refusal := x.g.o.AbsentTag; !ok && refusal != 0 && !digestForm.MatchString(x.q.Reference) {
		x.fail(refusal, "UNAUTHORIZED", x.q.Reference)
		return
	}
	if !ok {
		x.fail(http.StatusNotFound, "MANIFEST_UNKNOWN", x.q.Reference)
		return
	}
	x.w.Header().Set("Content-Type", m.mediaType)
	if no := x.g.o.NoManifestDigest; !slices.Contains(no, x.r.Method) {
		x.w.Header().Set("Docker-Content-Digest", digest)
	}
	x.reply(http.StatusOK, m.data)
}

func (x *exchange) putManifest() {
	ref := x.q.Reference
	isDigest := digestForm.MatchString(ref)
	if !isDigest && !tagForm.MatchString(ref) {
		x.fail(http.StatusBadRequest, "MANIFEST_INVALID", "reference "+ref)
		return
	}
	var data []byte
	if err := x.receive(func(b []byte) { data = append(data, b...) }); err != nil {
		x.reset()
		return
	}
	type descriptor struct {
		Digest string   `json:"digest"`
		URLs   []string `json:"urls"`
	}
	var m struct {
		MediaType string       `json:"mediaType"`
		Config    *descriptor  `json:"config"`
		Layers    []descriptor `json:"layers"`
		Manifests []descriptor `json:"manifests"`
	}
	mediaType := x.r.Header.Get("Content-Type")
	if err := json.Unmarshal(data, &m); err != nil || m.MediaType != "" && m.MediaType != mediaType {
		x.fail(http.StatusBadRequest, "MANIFEST_INVALID", "Content-Type "+mediaType)
		return
	}
	digest := sum(ref, data)
	if isDigest && digest != ref {
		x.fail(http.StatusBadRequest, "DIGEST_INVALID", "content is "+digest)
		return
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	g := x.g
	g.mu.Lock()
	missing, promised := "", true
	for _, d := range m.Layers {
		if _, ok := g.blob(x.q.Repo, d.Digest); !ok && len(d.URLs) == 0 {
			missing = d.Digest
			_, phantom := g.repo(x.q.Repo).phantoms[d.Digest]
			promised = promised && phantom
		}
	}
	for _, d := range m.Manifests {
		if _, _, ok := g.manifest(x.q.Repo, d.Digest); !ok {
			missing, promised = d.Digest, false
		}
	}
	if missing != "" {
		if !promised {
			g.violate("PUT manifest %s before %s", ref, missing)
		}
		g.mu.Unlock()
		code := cmp.Or(g.o.UnknownBlob, "MANIFEST_BLOB_UNKNOWN")
		if g.o.HidesUnknownBlob {
			missing = "blob unknown to registry"
		}
		x.fail(http.StatusBadRequest, code, missing)
		return
	}
	r := g.repo(x.q.Repo)
	stored, again := r.manifests[digest]
	if !again {
		stored = manifest{data: data, mediaType: mediaType, from: time.Now().Add(g.o.QueuesManifests)}
		r.manifests[digest] = stored
	}
	queued := time.Now().Before(stored.from)
	if !isDigest {
		r.tags[ref] = digest
	}
	g.mu.Unlock()
	if queued {
		x.fail(http.StatusTooManyRequests, "TOOMANYREQUESTS", "the task has not finished yet")
		return
	}
	x.created("manifests", digest)
}
