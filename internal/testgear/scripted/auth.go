// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

type token struct {
	left   int // requests, when the life of tokens is limited
	scopes []string
}

// authorize answers 401 and reports false unless the request may pass.
func (x *exchange) authorize() bool {
	a := x.g.o.Auth
	if a.Scheme == NoAuth || x.foreign() {
		return true
	}
	if a.Scheme == Basic {
		if x.knows() {
			return true
		}
		x.w.Header().Set("WWW-Authenticate", `Basic realm="scripted"`)
		x.fail(http.StatusUnauthorized, "UNAUTHORIZED", "user and password, please")
		return false
	}
	if x.spend() {
		return true
	}
	scheme := "http://"
	if x.r.TLS != nil {
		scheme = "https://"
	}
	challenge := fmt.Sprintf(`Bearer realm="%s%s/token",service="scripted"`, scheme, x.r.Host)
	if x.q.Repo != "" {
		challenge += fmt.Sprintf(`,scope="repository:%s:pull,push"`, x.q.Repo)
	}
	if x.q.Authorized {
		challenge += `,error="invalid_token"`
	}
	x.w.Header().Set("WWW-Authenticate", challenge)
	x.fail(http.StatusUnauthorized, "UNAUTHORIZED", "a token, please")
	return false
}

// knows checks user and password.
func (x *exchange) knows() bool {
	user, password, ok := x.r.BasicAuth()
	return ok && user == x.g.o.Auth.User && password == x.g.o.Auth.Password
}

// spend uses up one request of a token that covers the repository.
func (x *exchange) spend() bool {
	g := x.g
	g.mu.Lock()
	defer g.mu.Unlock()
	name, ok := strings.CutPrefix(x.r.Header.Get("Authorization"), "Bearer ")
	t := g.tokens[name]
	if !ok || t == nil || !t.covers(x.q) {
		return false
	}
	if g.o.Auth.TokenRequests > 0 {
		if t.left == 0 {
			return false
		}
		t.left--
	}
	return true
}

func (t *token) covers(q Request) bool {
	if q.Repo == "" {
		return true
	}
	want := "push"
	if q.Kind == HeadBlob || q.Kind == HeadManifest {
		want = "pull"
	}
	for _, s := range t.scopes {
		actions, ok := strings.CutPrefix(s, "repository:"+q.Repo+":")
		if ok && slices.Contains(strings.Split(actions, ","), want) {
			return true
		}
	}
	return false
}

// token issues one to whoever knows the password; without a user to anybody.
func (x *exchange) token() {
	g := x.g
	if g.o.Auth.Scheme != Bearer {
		x.fail(http.StatusNotFound, "UNSUPPORTED", "no tokens here")
		return
	}
	if g.o.Auth.User != "" && !x.knows() {
		x.fail(http.StatusUnauthorized, "UNAUTHORIZED", "user and password, please")
		return
	}
	var scopes []string
	for _, s := range x.r.URL.Query()["scope"] {
		scopes = append(scopes, strings.Fields(s)...)
	}
	g.mu.Lock()
	g.issued++
	name := fmt.Sprintf("token-%d", g.issued)
	g.tokens[name] = &token{left: g.o.Auth.TokenRequests, scopes: scopes}
	g.mu.Unlock()
	b, _ := json.Marshal(map[string]any{"token": name, "access_token": name, "expires_in": 300})
	x.w.Header().Set("Content-Type", "application/json")
	x.reply(http.StatusOK, b)
}
