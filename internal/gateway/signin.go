// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/signin"
)

// maxSignIns bounds what is kept for one registry.
const maxSignIns = 512

// signIn returns what adds the gateway's own credentials to requests for a
// repository, and to none for another one: a token is asked for this repository
// and the one that a blob is mounted from, to read or to write.
func (s *Server) signIn(ctx context.Context, in *served, registry string, rt route, query string) (http.RoundTripper, error) {
	repo, err := repositoryAt(registry, rt.repository)
	if err != nil {
		return nil, protocol.Kind(protocol.ErrEndpoint, err)
	}
	action, reads := transport.PushScope, rt.kind == aboutBlob || rt.kind == aboutTags || rt.kind == aboutReferrers
	if reads {
		action = transport.PullScope
	}
	scopes := []string{repo.Scope(action)}
	if q, err := url.ParseQuery(query); err == nil && rt.kind == aboutUploads && q.Get("from") != "" {
		if from, err := repositoryAt(registry, q.Get("from")); err == nil {
			scopes = append(scopes, from.Scope(transport.PullScope))
		}
	}
	key := ""
	for _, sc := range scopes {
		key += sc + "\n"
	}
	s.mu.Lock()
	rtp := in.signIns[key]
	s.mu.Unlock()
	if rtp != nil {
		return rtp, nil
	}
	auth, _, err := signin.Credentials(ctx, s.o.Keychain, repo)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if rtp = in.signIns[key]; rtp != nil {
		return rtp, nil
	}
	if len(in.signIns) >= maxSignIns {
		clear(in.signIns)
	}
	rtp = signin.New(repo, in.up.url.Scheme, s.o.Keychain, auth, in.up.registry, scopes...)
	in.signIns[key] = rtp
	return rtp, nil
}

// refuse replaces an answer by one of the gateway's own.
func refuse(resp *http.Response, status int, code, message string) {
	resp.Body.Close()
	body := errorBody(code, message)
	resp.StatusCode, resp.Status = status, http.StatusText(status)
	resp.Header.Del("WWW-Authenticate")
	resp.Header.Del("Content-Encoding")
	resp.Header.Set("Content-Type", "application/json")
	setBody(resp, body)
}
