// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/protocol"
)

// refer adds m to the list that a registry without the referrers API keeps
// under a tag (distribution-spec v1.1, "Pushing Manifests with Subject").
// Whoever else does so at the same moment may be overwritten, as the spec
// admits; within one push the additions take turns.
func (d *Delivery) refer(ctx context.Context, m *node) error {
	subject := m.subject
	if err := subject.Validate(); err != nil {
		return protocol.Kind(protocol.ErrSource, fmt.Errorf("manifest %s has the subject %q: %w", m.digest, subject, err))
	}
	d.referrers.Lock()
	defer d.referrers.Unlock()

	if native, err := d.listsReferrers(ctx, subject); err != nil || native {
		return err
	}
	tag := fallbackTag(subject)
	list, err := d.fallback(ctx, tag)
	if err != nil {
		return err
	}
	desc := m.descriptor()
	if slices.ContainsFunc(list.Manifests, func(o v1.Descriptor) bool { return o.Digest == desc.Digest }) {
		return nil
	}
	list.Manifests = append(list.Manifests, desc)
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPut, "", bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.URL.Path = "manifests/" + tag
	req.Header.Set("Content-Type", string(types.OCIImageIndex))
	const op = "publish the list of referrers"
	resp, err := d.c.Do(ctx, op, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return d.c.Refused(op, resp)
	}
	return nil
}

// fallbackTag is where the referrers of a digest are listed: the digest with a
// dash, at most 128 characters.
func fallbackTag(d digest.Digest) string {
	tag := d.Algorithm().String() + "-" + d.Encoded()
	return tag[:min(len(tag), 128)]
}

// listsReferrers reports whether the registry has the referrers API (end-12a).
func (d *Delivery) listsReferrers(ctx context.Context, subject digest.Digest) (bool, error) {
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "referrers/" + subject.String()}, Header: http.Header{}}
	req.Header.Set("Accept", string(types.OCIImageIndex))
	resp, err := d.c.Do(ctx, "list referrers", req)
	return err == nil && resp.StatusCode == http.StatusOK, err
}

// fallback reads the list as it is, empty if there is none.
func (d *Delivery) fallback(ctx context.Context, tag string) (*v1.IndexManifest, error) {
	list := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "manifests/" + tag}, Header: http.Header{}}
	req.Header.Set("Accept", string(types.OCIImageIndex))
	const op = "read the list of referrers"
	resp, err := d.c.Do(ctx, op, req)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotFound:
		return list, nil
	case resp.StatusCode != http.StatusOK:
		return nil, d.c.Refused(op, resp)
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if err := manifest.Unmarshal(raw, list); err != nil || list.MediaType != "" && !list.MediaType.IsIndex() {
		return nil, protocol.Kind(protocol.ErrRefused, fmt.Errorf("the tag %s is no list of referrers", tag))
	}
	return list, nil
}

// descriptor is how a list of referrers names m.
func (m *node) descriptor() v1.Descriptor {
	doc, err := manifest.Parse(m.raw, types.MediaType(m.report.MediaType))
	if err != nil { // it was parsed when its subject was found
		doc = &manifest.Manifest{}
	}
	artifact := doc.ArtifactType
	if artifact == "" && doc.Config != nil {
		artifact = string(doc.Config.MediaType)
	}
	return v1.Descriptor{
		MediaType:    types.MediaType(m.report.MediaType),
		Size:         int64(len(m.raw)),
		Digest:       v1.Hash{Algorithm: m.digest.Algorithm().String(), Hex: m.digest.Encoded()},
		ArtifactType: artifact,
		Annotations:  doc.Annotations,
	}
}
