package pusher

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// maxTokenAnswer bounds what is read of a token server's answer.
	maxTokenAnswer = 1 << 20
	// tokenTimeout bounds a request for a token. Several requests may wait for it.
	tokenTimeout = time.Minute
)

// tokenRequests carries requests for tokens (the distribution project's token
// authentication, by GET, and OAuth2, by POST). Equal requests at the same time
// become one: a refresh token may be good for one use. What the server
// answers besides a token reaches nobody, as errors would quote it, and it may
// hold a token of another kind.
type tokenRequests struct{ group singleflight.Group }

// tokenAnswer is an answer that several requests get.
type tokenAnswer struct {
	status string
	code   int
	header http.Header
	body   []byte
}

// isTokenRequest reports whether go-containerregistry made req to get a token.
func isTokenRequest(req *http.Request) bool {
	if own, _ := req.Context().Value(ownRequest{}).(string); own == req.URL.String() || req.URL.Path == "/v2/" {
		return false
	}
	q := req.URL.Query()
	return req.Method == http.MethodPost || q.Has("service") || q.Has("scope")
}

// ownRequest is the context key for the URL of a request that is not for a token.
type ownRequest struct{}

func withOwnRequest(req *http.Request) *http.Request {
	return req.WithContext(context.WithValue(req.Context(), ownRequest{}, req.URL.String()))
}

func (t *tokenRequests) send(req *http.Request, base http.RoundTripper) (*http.Response, error) {
	var form []byte
	if req.Body != nil {
		var err error
		form, err = io.ReadAll(io.LimitReader(req.Body, maxTokenAnswer))
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	key := req.Method + " " + req.URL.String() + "\n" + req.Header.Get("Authorization") + "\n" + string(form)
	done := t.group.DoChan(key, func() (any, error) {
		// The request serves all that wait, so it does not end with the first.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), tokenTimeout)
		defer cancel()
		r := req.Clone(ctx)
		if req.Body != nil {
			r.Body = io.NopCloser(bytes.NewReader(form))
		}
		resp, err := base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		a := &tokenAnswer{status: resp.Status, code: resp.StatusCode, header: resp.Header}
		if resp.StatusCode != http.StatusOK {
			return a, nil
		}
		if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer)); err != nil {
			return nil, err
		}
		var token struct {
			Token       string `json:"token"`
			AccessToken string `json:"access_token"`
		}
		if json.Unmarshal(a.body, &token) != nil || token.Token == "" && token.AccessToken == "" {
			return nil, fmt.Errorf("the token server at %s answered without a token", req.URL.Host)
		}
		return a, nil
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		a := r.Val.(*tokenAnswer)
		return &http.Response{
			Status: a.status, StatusCode: a.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
		}, nil
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
}
