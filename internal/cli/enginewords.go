// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/rpush-go/rpush/internal/engine"
)

// proxySecretWords is about a proxy of the engine whose password it keeps.
const proxySecretWords = "the engine's proxy asks for a password that the engine does not reveal: HTTPS_PROXY is used instead, if it is set"

func elsewhereHint(address string) string {
	return fmt.Sprintf("the image is read from the engine at %s, but the push runs on this host: names, certificates, ports and proxies may differ between the two", address)
}

// engineCure says what to do about an engine that does not do as asked; empty
// where err is about something else.
func engineCure(err error) string {
	var (
		unreachable *engine.UnreachableError
		old         *engine.TooOldError
		none        *engine.NoImageError
		broken      *engine.BrokenError
		unverified  *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &broken):
		return "start the engine and run the same command again: layers that are at the registry or in the spool are neither compressed nor sent again"
	case errors.As(err, &old):
		return fmt.Sprintf("use docker save IMAGE | rpush - REF instead; reading from the engine needs Docker %s or later", engine.LeastVersion)
	case errors.As(err, &none):
		return "docker images lists the images of the engine; an image that is not in the engine needs a SOURCE, see rpush --help"
	case errors.As(err, &unreachable) && engine.Forbidden(err):
		return "add this user to the group of the socket, or set DOCKER_HOST to an engine that this user may use"
	case errors.As(err, &unreachable) && errors.As(err, &unverified):
		return "DOCKER_CERT_PATH, or the docker context, must have the ca.pem of the engine's CA, and DOCKER_HOST a name that the engine's certificate is valid for"
	case errors.As(err, &unreachable) && engine.WantsCertificate(err):
		return "DOCKER_CERT_PATH, or the docker context, must have a cert.pem and key.pem that the engine's CA has issued"
	case errors.As(err, &unreachable) && engine.WantsTLS(err):
		return "if it speaks TLS, set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH"
	case errors.As(err, &unreachable):
		return "start the engine, set DOCKER_HOST or --docker-host to where it is, or name a SOURCE, see rpush --help"
	}
	return ""
}
