// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// said is the error of a registry's answer. The answers are as the registries were
// reported to give them.
func said(op, host, repo string, status int, code, message string) error {
	path := "/v2/" + repo + "/blobs/uploads/"
	method := http.MethodPost
	if op == "publish manifest" {
		method, path = http.MethodPut, "/v2/"+repo+"/manifests/v1"
	}
	body := fmt.Sprintf(`{"errors":[{"code":%q,"message":%q}]}`, code, message)
	if code == "" {
		body = message
	}
	a := &wire.Answer{Status: status, Header: http.Header{}, Body: []byte(body),
		Request: &http.Request{Method: method, URL: &url.URL{Scheme: "https", Host: host, Path: path}}}
	return &resume.Error{Op: op, Repository: host + "/" + repo, Err: protocol.Unexpected(a, time.Now())}
}

func TestWhatRegistriesSay(t *testing.T) {
	const (
		ecr    = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
		gar    = "europe-west1-docker.pkg.dev"
		put    = "publish manifest"
		login  = "credentials: ~/.docker/config.json"
		again  = "hint: the same command again sends the rest"
		secret = "aws ecr get-login-password --region eu-west-1 | docker login --username AWS --password-stdin " + ecr + " (good for 12 hours)"
	)
	for _, tt := range []struct {
		name, host string
		err        error
		want       []string // all that is printed
	}{
		{"ECR, no repository", ecr, said("open", ecr, "team/app", 404, "NAME_UNKNOWN", "The repository with name 'team/app' does not exist in the registry with id '123456789012'"), []string{
			"the registry answered 404 Not Found, NAME_UNKNOWN: The repository with name 'team/app' does not exist in the registry with id '123456789012', while opening an upload at " + ecr + "/team/app",
			"hint: create it: aws ecr create-repository --region eu-west-1 --repository-name team/app",
		}},
		{"ECR, no repository and no answer", ecr, &resume.Error{Op: "open", Repository: ecr + "/team/app", Err: fmt.Errorf("%w: %w", resume.ErrInterrupted, io.EOF)}, []string{
			"interrupted: EOF, while opening an upload at " + ecr + "/team/app",
			"hint: ECR may close the connection if the repository does not exist; if so, create it: aws ecr create-repository --region eu-west-1 --repository-name team/app",
			again,
		}},
		{"ECR public, no repository", ecrPublicHost, said("open", ecrPublicHost, "a1b2/app", 404, "NAME_UNKNOWN", "The repository with name 'app' does not exist"), []string{
			"the registry answered 404 Not Found, NAME_UNKNOWN: The repository with name 'app' does not exist, while opening an upload at public.ecr.aws/a1b2/app",
			"hint: create it: aws ecr-public create-repository --region us-east-1 --repository-name app",
		}},
		{"Artifact Registry, no repository or no right", gar, said("open", gar, "proj/docker/app", 403, "DENIED", `Permission "artifactregistry.repositories.uploadArtifacts" denied on resource "projects/proj/locations/europe-west1/repositories/docker" (or it may not exist)`), []string{
			`the registry answered 403 Forbidden, DENIED: Permission "artifactregistry.repositories.uploadArtifacts" denied on resource "projects/proj/locations/europe-west1/repositories/docker" (or it may not exist), while opening an upload at ` + gar + "/proj/docker/app",
			login,
			"hint: if the repository does not exist, create it: gcloud artifacts repositories create docker --repository-format=docker --location=europe-west1 --project=proj; if it does, this account may not push to it",
		}},
		{"Harbor, no project", "harbor.example", said("open", "harbor.example", "team/app", 401, "UNAUTHORIZED", "project team not found: project team not found"), []string{
			"the registry answered 401 Unauthorized, UNAUTHORIZED: project team not found: project team not found, while opening an upload at harbor.example/team/app",
			login,
			"hint: create the repository or project of team/app at harbor.example, and push again",
		}},
		{"ECR, immutable tag", ecr, said(put, ecr, "team/app", 400, "TAG_INVALID", "The image tag 'v1' already exists in the 'team/app' repository and cannot be overwritten because the tag is immutable."), []string{
			"the registry answered 400 Bad Request, TAG_INVALID: The image tag 'v1' already exists in the 'team/app' repository and cannot be overwritten because the tag is immutable., while publishing the manifest at " + ecr + "/team/app",
			"hint: " + immutableHint,
		}},
		{"Harbor, immutable tag", "harbor.example", said(put, "harbor.example", "team/app", 412, "PRECONDITION", "Failed to process request due to 'app:v1' configured as immutable."), []string{
			"the registry answered 412 Precondition Failed, PRECONDITION: Failed to process request due to 'app:v1' configured as immutable., while publishing the manifest at harbor.example/team/app",
			"hint: " + immutableHint,
		}},
		{"Quay, immutable tag", "quay.io", said(put, "quay.io", "team/app", 409, "TAG_IMMUTABLE", "tag is immutable"), []string{
			"the registry answered 409 Conflict, TAG_IMMUTABLE: tag is immutable, while publishing the manifest at quay.io/team/app",
			"hint: " + immutableHint,
		}},
		{"Harbor, quota", "harbor.example", said(put, "harbor.example", "team/app", 403, "DENIED", "adding 29.0 MiB of storage resource, which when updated to current usage of 152.4 MiB will exceed the configured upper limit of 10.0 MiB."), []string{
			"the registry answered 403 Forbidden, DENIED: adding 29.0 MiB of storage resource, which when updated to current usage of 152.4 MiB will exceed the configured upper limit of 10.0 MiB., while publishing the manifest at harbor.example/team/app",
			login,
			"hint: " + quotaHint,
		}},
		{"DigitalOcean, plan", "registry.digitalocean.com", said("open", "registry.digitalocean.com", "team/app", 403, "DENIED", "registry contains 1 repositories, limit is 1"), []string{
			"the registry answered 403 Forbidden, DENIED: registry contains 1 repositories, limit is 1, while opening an upload at registry.digitalocean.com/team/app",
			login,
			"hint: " + planHint,
		}},
		{"ECR, expired token", ecr, said("open", ecr, "team/app", 403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."), []string{
			"the registry answered 403 Forbidden, DENIED: Your authorization token has expired. Reauthenticate and try again., while opening an upload at " + ecr + "/team/app",
			login,
			"hint: the credentials have expired: " + secret,
		}},
		{"ECR, no credentials", ecr, said("open", ecr, "team/app", 401, "", "Not Authorized"), []string{
			"the registry answered 401 Unauthorized, while opening an upload at " + ecr + "/team/app",
			login,
			"hint: " + secret,
		}},
		{"Artifact Registry, no credentials", gar, said("open", gar, "proj/docker/app", 401, "UNAUTHORIZED", "authentication failed"), []string{
			"the registry answered 401 Unauthorized, UNAUTHORIZED: authentication failed, while opening an upload at " + gar + "/proj/docker/app",
			login,
			"hint: gcloud auth print-access-token | docker login --username oauth2accesstoken --password-stdin " + gar + " (good for 1 hour), or gcloud auth configure-docker " + gar,
		}},
		{"ACR, no credentials", "team.azurecr.io", said("open", "team.azurecr.io", "app", 401, "UNAUTHORIZED", "authentication required"), []string{
			"the registry answered 401 Unauthorized, UNAUTHORIZED: authentication required, while opening an upload at team.azurecr.io/app",
			login,
			"hint: az acr login --name team (good for 3 hours)",
		}},
		{"GHCR, SAML", "ghcr.io", said("open", "ghcr.io", "org/app", 403, "DENIED", "permission_denied: Resource protected by organization SAML enforcement. You must grant your token access to this organization."), []string{
			"the registry answered 403 Forbidden, DENIED: permission_denied: Resource protected by organization SAML enforcement. You must grant your token access to this organization., while opening an upload at ghcr.io/org/app",
			login,
			"hint: authorize the token for the organization: github.com, Settings, Developer settings, Personal access tokens, Configure SSO",
		}},
		{"Docker Hub, SSO", "index.docker.io", said("open", "index.docker.io", "org/app", 401, "UNAUTHORIZED", "please use personal access token to login when SSO is enforced"), []string{
			"the registry answered 401 Unauthorized, UNAUTHORIZED: please use personal access token to login when SSO is enforced, while opening an upload at index.docker.io/org/app",
			login,
			"hint: log in to index.docker.io with an access token that is authorized for the organization's single sign-on",
		}},
		{"Harbor, read only", "harbor.example", said("open", "harbor.example", "team/app", 403, "DENIED", "The system is in read only mode. Any modification is prohibited."), []string{
			"the registry answered 403 Forbidden, DENIED: The system is in read only mode. Any modification is prohibited., while opening an upload at harbor.example/team/app",
			login,
			"hint: " + readOnlyHint,
		}},
		{"SWR, attestation", "swr.example", said(put, "swr.example", "team/app", 400, "SVCSTG.SWR.4001070", "Invalid image, fail to parse 'manifest.json'"), []string{
			"the registry answered 400 Bad Request, SVCSTG.SWR.4001070: Invalid image, fail to parse 'manifest.json', while publishing the manifest at swr.example/team/app",
			"hint: " + manifestHint,
		}},
		{"Gitea, index", "gitea.example", said(put, "gitea.example", "team/app", 400, "MANIFEST_INVALID", "manifest invalid"), []string{
			"the registry answered 400 Bad Request, MANIFEST_INVALID: manifest invalid, while publishing the manifest at gitea.example/team/app",
			"hint: " + manifestHint,
		}},
		{"Nexus, content", "nexus.example", &resume.Error{Op: "commit", Repository: "nexus.example/app", Err: &resume.ContentError{Err: errors.Unwrap(said("open", "nexus.example", "app", 400, "BLOB_UPLOAD_INVALID", "blob upload invalid (Invalid docker content)"))}}, []string{
			"the registry refuses to store the blob, although its bytes are good: the registry answered 400 Bad Request, BLOB_UPLOAD_INVALID: blob upload invalid (Invalid docker content), while committing at nexus.example/app",
			"hint: " + contentHint,
		}},
		{"ECR, empty blob", ecr, &resume.Error{Op: "commit", Repository: ecr + "/app", Digest: digest.FromBytes(nil), Err: &resume.ContentError{Err: errors.Unwrap(said("open", ecr, "app", 400, "BLOB_UPLOAD_INVALID", "the upload does not have any parts"))}}, []string{
			"the registry refuses to store the blob, although its bytes are good: the registry answered 400 Bad Request, BLOB_UPLOAD_INVALID: the upload does not have any parts, while committing " + shortDigest(digest.FromBytes(nil)) + " at " + ecr + "/app",
			"hint: " + emptyHint,
		}},
		{"no push right", "ghcr.io", said("open", "ghcr.io", "org/app", 403, "DENIED", "permission_denied: write_package"), []string{
			"the registry answered 403 Forbidden, DENIED: permission_denied: write_package, while opening an upload at ghcr.io/org/app",
			login,
			"hint: docker login ghcr.io stores credentials that may push",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := explain(tt.err, scene{host: tt.host, report: &pusher.Report{}, from: func() string { return "~/.docker/config.json" }})
			if got, want := strings.Join(f.lines, "\n"), strings.Join(tt.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// What is about a push says nothing to somebody who reads, and an answer that was
// waited out is no refusal.
func TestNoReason(t *testing.T) {
	missing := said("read manifest", "harbor.example", "team/app", 404, "NAME_UNKNOWN", "repository not found")
	if got := reasonHint(missing, scene{host: "harbor.example", prefix: "src-"}); got != "" {
		t.Errorf("got %q for a source", got)
	}
	if got := protocol.ReasonOf(fmt.Errorf("%w: %w", resume.ErrInterrupted, protocol.Plain(missing))); got != protocol.NoReason {
		t.Errorf("got reason %d for an interruption", got)
	}
	if got := protocol.ReasonOf(said("open", "reg.example", "team/app", 400, "MANIFEST_INVALID", "manifest invalid")); got != protocol.NoReason {
		t.Errorf("got reason %d for a blob", got)
	}
}
