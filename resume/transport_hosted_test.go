// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// ranged is a client that sends a whole blob in one PATCH with Content-Range, as
// go-containerregistry did until 2023.
func ranged(p *passing, req *http.Request, data []byte) {
	bodyAgain(p, req, data)
	req.Header.Set("Content-Range", fmt.Sprintf("0-%d", len(data)-1))
}

// hosted is the upload of another client to a registry that answers a PATCH with
// any 2xx.
func (p *passing) hosted(s style, data []byte) (*http.Response, error) {
	ctx := context.Background()
	at, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	put := p.request(ctx, http.MethodPut, "")
	if s.patch {
		req := p.request(ctx, http.MethodPatch, at.String())
		req.Header = req.Header.Clone()
		s.body(p, req, data)
		resp, err := p.do(req)
		if err != nil || resp.StatusCode/100 != 2 {
			return resp, err
		}
		if at, err = resp.Location(); err != nil {
			return nil, err
		}
	} else {
		s.body(p, put, data)
	}
	if put.URL, err = put.URL.Parse(withDigest(at, data)); err != nil {
		return nil, err
	}
	put.Host = put.URL.Host
	return p.do(put)
}

// What the hosted registries do, to an unchanged client over the transport, with
// and without a break.
func TestTransportHostedRegistries(t *testing.T) {
	data := content(8 * mib)
	used := []style{{"PATCH with Content-Range", true, ranged}, styles[1], styles[5]}
	if testing.Short() { // as few does
		used = used[:1]
	}
	limited := []byte(`{"errors":[{"code":"DENIED","message":"permission_denied: Error from intermediary with HTTP status code 403 \"Forbidden\" - with-body: {\"message\":\"You have exceeded a secondary rate limit. Please wait a few minutes\"}"}]}`)
	for name, o := range map[string]scripted.Options{
		"ghcr":              {MaxRanged: 4 * mib, UploadPath: scripted.BlobsUpload},
		"ecr":               scripted.ECR(),
		"gar":               {SingleUse: true, OnePatch: true, UploadPath: scripted.ArtifactsUploads, Location: scripted.Relative},
		"a limit of 5 MiB":  {MaxBody: 5 * mib},
		"s3":                {Storage: scripted.OtherOrigin, OtherHost: "other.test", PartSize: 5 * mib},
		"redirects at home": {Storage: scripted.SameOrigin},
	} {
		for _, s := range used {
			for what, act := range map[string]scripted.Action{
				"clean":        {},
				"break":        {BreakBody: true, BodyLimit: 5<<20 + 1<<19},
				"lost answer":  {AfterReset: true},
				"rate limit":   {Before: http.StatusForbidden, Body: limited},
				"429":          {Before: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"7"}}},
				"gateway away": {Before: http.StatusBadGateway},
			} {
				for _, k := range []scripted.Kind{scripted.Patch, scripted.Put} {
					if what == "clean" && k == scripted.Put || act.BreakBody && (k == scripted.Patch) != s.patch {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%s", name, s.name, what, k), func(t *testing.T) {
						o := o
						if what != "clean" {
							o.Intercept = on(k, 1, act)
						}
						onTransport(t, o, &resume.TransportOptions{}, func(p *passing) {
							p.net.Latency = latency
							began := time.Now()
							resp, err := p.hosted(s, data)
							if err != nil || resp.StatusCode != http.StatusCreated {
								t.Fatalf("%v, %v\n%s\n%s", resp, err, p.trace(), p.log.String())
							}
							p.has(data)
							if took := time.Since(began); took > 5*time.Minute {
								t.Errorf("took %s", took)
							}
						})
					})
				}
			}
		}
	}
}

// A refusal of the content is the client's answer, word for word.
func TestTransportContentRefused(t *testing.T) {
	const nexus = `{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"blob upload invalid","detail":"Invalid docker content"}]}`
	refuse := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Put {
			return scripted.Action{Before: http.StatusBadRequest, Body: []byte(nexus)}
		}
		return scripted.Action{}
	}
	for _, f := range []func(scripted.Request) scripted.Action{refuse, all(brokenBody(5000), refuse)} {
		onTransport(t, scripted.Options{Intercept: f}, &resume.TransportOptions{}, func(p *passing) {
			resp, err := p.hosted(styles[0], content(10_000))
			if err != nil || resp.StatusCode != http.StatusBadRequest {
				t.Fatalf("got %v, %v", resp, err)
			}
			body := make([]byte, len(nexus)+1)
			if n, _ := resp.Body.Read(body); string(body[:n]) != nexus {
				t.Errorf("got %q", body[:n])
			}
		})
	}
}
