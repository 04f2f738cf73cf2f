// SPDX-License-Identifier: Apache-2.0

package signin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	// maxTokenAnswer bounds what is read of a token server's answer, in bytes.
	maxTokenAnswer = 1 << 20
	// maxTokens bounds how many tokens are kept to be shared.
	maxTokens = 64
)

// tokens carries requests for tokens (the distribution project's token
// authentication, by GET, and OAuth2, by POST), one at a time: a refresh token
// may be good for one use. A request to the registry that began before a token
// was issued gets that token, so that many requests refused at once need one.
//
// What the server answers besides a token reaches nobody: errors would quote it,
// and it may hold a token of another kind. It is safe for concurrent use.
type tokens struct {
	issued atomic.Int64 // how many
	// last holds the last token for each scope. It is a lock that a cancelled
	// request can stop waiting for.
	last chan map[string]token
}

type token struct {
	number int64 // of tokens.issued
	body   []byte
	until  time.Time // the end of the first half of its life
}

// leastLife is the life of a token whose server does not say how long it lives.
const leastLife = 60 // seconds

func newTokens() *tokens {
	t := &tokens{last: make(chan map[string]token, 1)}
	t.last <- map[string]token{}
	return t
}

// request is what the context of a request to the registry knows of it.
type request struct {
	url    string
	issued int64 // how many tokens were, when it began
}

type requestKey struct{}

// mark notes in a request's context that it is no request for a token, although
// one may be made on its behalf with the same context.
func (t *tokens) mark(req *http.Request) *http.Request {
	return req.WithContext(context.WithValue(req.Context(), requestKey{}, request{req.URL.String(), t.issued.Load()}))
}

// asks reports whether go-containerregistry made req to get a token.
func (t *tokens) asks(req *http.Request) bool {
	if r, _ := req.Context().Value(requestKey{}).(request); r.url == req.URL.String() || req.URL.Path == "/v2/" {
		return false
	}
	q := req.URL.Query()
	return req.Method == http.MethodPost || q.Has("service") || q.Has("scope")
}

// get answers a request for a token.
func (t *tokens) get(req *http.Request, base http.RoundTripper) (*http.Response, error) {
	var form []byte
	if req.Body != nil {
		var err error
		form, err = io.ReadAll(io.LimitReader(req.Body, maxTokenAnswer))
		req.Body.Close()
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(form))
	}
	began := int64(math.MaxInt64) // a sign-in wants a token of its own
	if r, ok := req.Context().Value(requestKey{}).(request); ok {
		began = r.issued
	}
	key := scopeKey(req, form)
	var last map[string]token
	select {
	case last = <-t.last:
		defer func() { t.last <- last }()
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	if shared := last[key]; shared.number > began && time.Now().Before(shared.until) {
		return tokenAnswer(req, shared.body), nil
	}
	resp, err := base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		resp.Body, resp.ContentLength = http.NoBody, 0
		return resp, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
	if err != nil {
		return nil, err
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if json.Unmarshal(body, &got) != nil || got.Token == "" && got.AccessToken == "" {
		return nil, fmt.Errorf("the token server at %s answered without a token", req.URL.Host)
	}
	if len(last) >= maxTokens {
		clear(last)
	}
	life := got.ExpiresIn
	if life <= 0 || life > math.MaxInt32 {
		life = leastLife
	}
	last[key] = token{t.issued.Add(1), body, time.Now().Add(time.Duration(life) * time.Second / 2)}
	return tokenAnswer(req, body), nil
}

// scopeKey is what requests for the same token have in common. A refresh token
// is not: it may have been replaced since.
func scopeKey(req *http.Request, form []byte) string {
	values, err := url.ParseQuery(string(form))
	if err != nil {
		values = url.Values{}
	}
	values.Del("refresh_token")
	return req.Method + " " + req.URL.String() + " " + values.Encode()
}

func tokenAnswer(req *http.Request, body []byte) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Request: req,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
}
