package cli

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/rpush-go/rpush/internal/engine"
)

// proxySecretWords is about a proxy of the engine whose password it keeps.
const proxySecretWords = "the engine's proxy asks for a password that the engine does not tell: HTTPS_PROXY is used instead, if it is set"

func elsewhereHint(address string) string {
	return fmt.Sprintf("the image is read from the engine at %s, but the push runs on this host: names, certificates, ports and proxies here may be others than there", address)
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
		return "see to it that the engine runs, then the same command again: layers that are at the registry or in the spool are neither compressed nor sent again"
	case errors.As(err, &old):
		return fmt.Sprintf("docker save IMAGE | rpush - REF does without; Docker %s is the least that is read from", engine.LeastVersion)
	case errors.As(err, &none):
		return "docker images lists what is there; an image that is not in the engine needs a SOURCE, see rpush --help"
	case errors.As(err, &unreachable) && engine.Forbidden(err):
		return "add this user to the group of the socket, or set DOCKER_HOST to an engine that may be used"
	case errors.As(err, &unreachable) && errors.As(err, &unverified):
		return "DOCKER_CERT_PATH, or the docker context, has to hold the ca.pem of the engine's authority, and DOCKER_HOST a name that its certificate is good for"
	case errors.As(err, &unreachable) && engine.WantsCertificate(err):
		return "DOCKER_CERT_PATH, or the docker context, has to hold a cert.pem and key.pem of the engine's authority"
	case errors.As(err, &unreachable) && engine.WantsTLS(err):
		return "if it speaks TLS, set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH"
	case errors.As(err, &unreachable):
		return "start the engine, set DOCKER_HOST or --docker-host to where it is, or name a SOURCE, see rpush --help"
	}
	return ""
}
