// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/resume"
)

// What to do about a refusal is the same everywhere, but how differs from one
// cloud to another: these are the ones whose commands are known, by their hosts.
var (
	ecrHost       = regexp.MustCompile(`^[0-9]{12}\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\.(amazonaws\.com(\.cn)?|on\.aws)$`)
	ecrPublicHost = "public.ecr.aws"
	garHost       = regexp.MustCompile(`^([a-z0-9-]+)-docker\.pkg\.dev$`)
	acrHost       = regexp.MustCompile(`^([a-z0-9-]+)\.azurecr\.(io|cn|us)$`)
)

// reasonHint says what to do about what the registry said; empty if that is not
// known.
func reasonHint(err error, s scene) string {
	var e *resume.Error
	repo := ""
	if errors.As(err, &e) {
		_, repo, _ = strings.Cut(e.Repository, "/")
	}
	var content *resume.ContentError
	if errors.As(err, &content) {
		if e != nil && e.Digest == digest.FromBytes(nil) {
			return emptyHint
		}
		return contentHint
	}
	reason := protocol.ReasonOf(err)
	if s.prefix != "" && reason != protocol.TokenExpired && reason != protocol.SSO {
		return "" // it is read from
	}
	switch reason {
	case protocol.NoRepository:
		return createHint(s.host, repo)
	case protocol.MaybeNoRepository:
		return "if the repository does not exist, " + createHint(s.host, repo) + "; if it does, this account may not push to it"
	case protocol.TagImmutable:
		return immutableHint
	case protocol.Quota:
		return quotaHint
	case protocol.DiskFull:
		return fullHint
	case protocol.PlanLimit:
		return planHint
	case protocol.TokenExpired:
		return "the credentials have expired: " + renewal(s.host)
	case protocol.SSO:
		return ssoHint(s.host)
	case protocol.ReadOnly:
		return readOnlyHint
	case protocol.ManifestBlocked:
		return manifestHint
	}
	// Until 2024 ECR closed the connection for a repository that does not exist:
	// https://github.com/aws/containers-roadmap/issues/1970.
	if e != nil && e.Op == "open" && errors.Is(err, io.EOF) && ecrHost.MatchString(s.host) {
		return "ECR may close the connection if the repository does not exist; if so, " + createHint(s.host, repo)
	}
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized && isCloud(s.host) {
		return renewal(s.host)
	}
	return ""
}

func isCloud(host string) bool {
	return ecrHost.MatchString(host) || host == ecrPublicHost || garHost.MatchString(host) || acrHost.MatchString(host)
}

// createHint is how a repository is created.
func createHint(host, repo string) string {
	if m := ecrHost.FindStringSubmatch(host); m != nil {
		return fmt.Sprintf("create it: aws ecr create-repository --region %s --repository-name %s", m[2], repo)
	}
	if host == ecrPublicHost {
		_, name, _ := strings.Cut(repo, "/")
		return fmt.Sprintf("create it: aws ecr-public create-repository --region us-east-1 --repository-name %s", name)
	}
	if m, parts := garHost.FindStringSubmatch(host), strings.Split(repo, "/"); m != nil && len(parts) > 1 {
		return fmt.Sprintf("create it: gcloud artifacts repositories create %s --repository-format=docker --location=%s --project=%s", parts[1], m[1], parts[0])
	}
	return fmt.Sprintf("create the repository or project of %s at %s, and push again", repo, host)
}

// renewal is how to get new credentials.
func renewal(host string) string {
	if m := ecrHost.FindStringSubmatch(host); m != nil {
		return fmt.Sprintf("aws ecr get-login-password --region %s | docker login --username AWS --password-stdin %s (good for 12 hours)", m[2], host)
	}
	if host == ecrPublicHost {
		return fmt.Sprintf("aws ecr-public get-login-password --region us-east-1 | docker login --username AWS --password-stdin %s (good for 12 hours)", host)
	}
	if garHost.MatchString(host) {
		return fmt.Sprintf("gcloud auth print-access-token | docker login --username oauth2accesstoken --password-stdin %s (good for 1 hour), "+
			"or gcloud auth configure-docker %s", host, host)
	}
	if m := acrHost.FindStringSubmatch(host); m != nil {
		return fmt.Sprintf("az acr login --name %s (good for 3 hours)", m[1])
	}
	return fmt.Sprintf("docker login %s", host)
}

func ssoHint(host string) string {
	if host == "ghcr.io" {
		return "authorize the token for the organization: github.com, Settings, Developer settings, Personal access tokens, Configure SSO"
	}
	return fmt.Sprintf("log in to %s with an access token that is authorized for the organization's single sign-on", host)
}

const (
	slowProbeHint = "check that the registry answers; --deadline TIME gives the probe longer"
	immutableHint = "the tag exists and cannot be overwritten: push another tag, or have the rule of the repository changed"
	quotaHint     = "the quota of this account or project is used up: free space there or have the quota raised, and run the same command again"
	planHint      = "the plan of this account allows no more: delete repositories or images, or change the plan"
	readOnlyHint  = "the registry takes no pushes at the moment: ask its administrator"
	manifestHint  = "the registry may not take indexes, attestations or this type of manifest: --platform OS/ARCH pushes one image alone"
	emptyHint     = "object storage behind some registries takes no empty blobs: build the image without the layer of 0 bytes"
	contentHint   = "the registry checks what blobs contain (Nexus: strict content type validation): change that rule, or push to another repository"
)
