// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// The bounds of a list that a registry gives in pages.
const (
	maxPages = 10_000
	maxTags  = 1 << 18
	maxNames = 16 << 20 // bytes of all tags
)

// Repository is one to read from. What is read goes on where a connection
// broke, with the budget of an upload. It is a Content; Manifest and Open fail
// with *resume.Error. It is safe for concurrent use.
type Repository struct {
	name name.Repository
	ctx  context.Context // of Pusher.Repository: blobs are read under it
	c    *resume.Client
}

var _ Content = (*Repository)(nil)

// Repository makes ready to read from repo. The context bounds all reading. Only
// finding out which scheme the registry speaks touches the network.
func (p *Pusher) Repository(ctx context.Context, repo name.Repository) (*Repository, error) {
	c, err := p.connect(ctx, repo, nil, repo.Scope(transport.PullScope))
	if err != nil {
		return nil, err
	}
	return &Repository{name: repo, ctx: ctx, c: c}, nil
}

// Find gives the manifest under a tag or a digest of the repository. What it
// names is read when it is needed.
func (r *Repository) Find(ctx context.Context, ref name.Reference) (*Stored, error) {
	resp, err := r.get(ctx, "manifests/"+ref.Identifier(), "", manifestTypes...)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	dgst := digest.FromBytes(raw)
	if d, ok := ref.(name.Digest); ok {
		// What is wrong with it, if anything, is found when it is read.
		dgst = digest.Digest(d.DigestStr())
	}
	d := v1.Descriptor{MediaType: contentType(resp), Size: int64(len(raw))}
	if d.Digest, err = v1.NewHash(dgst.String()); err != nil {
		return nil, protocol.Kind(protocol.ErrSource, err)
	}
	if !manifest.Is(d.MediaType) {
		return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("%s is of the type %q, which cannot be copied", ref.Name(), d.MediaType))
	}
	s := &Stored{Content: &seen{r, d.Digest, raw}, Descriptor: d, MountFrom: r.name}
	if _, err := s.Manifest(ctx); err != nil {
		return nil, protocol.Kind(protocol.ErrSource, err)
	}
	return s, nil
}

// contentType is what an answer says it is, without parameters.
func contentType(resp *http.Response) types.MediaType {
	mt, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return types.MediaType(strings.TrimSpace(mt))
}

// seen is a repository of which one manifest has been read.
type seen struct {
	*Repository
	digest v1.Hash
	raw    []byte
}

func (s *seen) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest == s.digest {
		return s.raw, nil
	}
	return s.Repository.Manifest(ctx, d)
}

// Manifest implements Content.
func (r *Repository) Manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	resp, err := r.get(ctx, "manifests/"+d.Digest.String(), "", append([]types.MediaType{d.MediaType}, manifestTypes...)...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(resp.Body)
}

// Open implements Content. Nothing is asked before the first Read.
func (r *Repository) Open(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.c.Fetch(r.ctx, digest.Digest(d.Digest.String()), d.Size, offset), nil
}

// Tags lists the tags of the repository (distribution-spec v1.1, end-8a), in
// the registry's order.
func (r *Repository) Tags(ctx context.Context) (all []string, err error) {
	next, names := &url.URL{Path: "tags/list"}, 0
	for range maxPages {
		resp, err := r.get(ctx, next.Path, next.RawQuery)
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		// A list may have more elements than a manifest.
		if len(all)+manifest.Elements(raw) > maxTags {
			return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("%s has more than %d tags", r.name, maxTags))
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("the list of tags of %s: %w", r.name, err))
		}
		for _, tag := range page.Tags {
			names += len(tag)
		}
		if names > maxNames {
			return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("the tags of %s have more than %d bytes", r.name, maxNames))
		}
		all = append(all, page.Tags...)
		// The link's query is all that differs between pages.
		query, ok := protocol.NextPage(resp.Header)
		if !ok || len(page.Tags) == 0 {
			return all, nil
		}
		next.RawQuery = query
	}
	return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("the list of tags of %s does not end", r.name))
}

// Referrers lists the manifests whose subject dgst is, by the registry's own
// list (end-12a) or, where it keeps none, by that under the fallback tag.
func (r *Repository) Referrers(ctx context.Context, dgst digest.Digest) ([]v1.Descriptor, error) {
	resp, err := r.get(ctx, "referrers/"+dgst.String(), "", types.OCIImageIndex)
	if missing(err) {
		resp, err = r.get(ctx, "manifests/"+fallbackTag(dgst), "", types.OCIImageIndex)
	}
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var list v1.IndexManifest
	if err := manifest.Unmarshal(raw, &list); err != nil {
		return nil, protocol.Kind(protocol.ErrSource, fmt.Errorf("the list of referrers of %s: %w", dgst, err))
	}
	return list.Manifests, nil
}

// At is a manifest of the repository that a descriptor names. The Stored keeps
// the type, digest and size of d only.
func (r *Repository) At(d v1.Descriptor) *Stored {
	return &Stored{Content: r, Descriptor: manifest.Bare(d), MountFrom: r.name}
}

// missing reports whether the registry said that it has nothing there, or that
// it does not know such a request.
func missing(err error) bool {
	var te *transport.Error
	return errors.As(err, &te) && slices.Contains([]int{
		http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest,
	}, te.StatusCode)
}

func (r *Repository) get(ctx context.Context, path, query string, accept ...types.MediaType) (*http.Response, error) {
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}}
	for _, t := range slices.Compact(accept) {
		req.Header.Add("Accept", string(t))
	}
	op := "read " + strings.TrimSuffix(path[:cmp.Or(strings.IndexByte(path, '/'), len(path))], "s")
	resp, err := r.c.Do(ctx, op, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		err := r.c.Refused(op, resp)
		if resp.StatusCode == http.StatusNotFound {
			err = protocol.Kind(protocol.ErrSource, err)
		}
		return nil, err
	}
	return resp, nil
}

// Tag is a reference of the repository.
func (r *Repository) Tag(tag string) name.Reference { return r.name.Tag(tag) }
