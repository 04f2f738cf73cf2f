// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	clicontext "github.com/docker/cli/cli/context"
	dcontext "github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"
	"github.com/docker/cli/opts"
	"github.com/moby/moby/client"
)

// endpoint decides as docker does.
func endpoint(o Options) (how []client.Opt, address string, err error) {
	host := o.Host
	if host == "" && o.Context == "" {
		host = os.Getenv(client.EnvOverrideHost)
	}
	name := o.Context
	if host == "" && name == "" {
		if name = os.Getenv("DOCKER_CONTEXT"); name == "" {
			name = currentContext()
		}
	}
	var ep dcontext.Endpoint
	if host != "" || name == "" || name == "default" {
		ep, err = hostEndpoint(host)
	} else if ep, err = contextEndpoint(name); err != nil {
		err = fmt.Errorf("docker context %q: %w", name, err)
	}
	if err != nil {
		return nil, "", err
	}
	how, err = ep.ClientOpts()
	return how, ep.Host, err
}

func contextEndpoint(name string) (dcontext.Endpoint, error) {
	s := store.New(config.ContextStoreDir(), store.NewConfig(
		func() any { return &map[string]any{} },
		store.EndpointTypeGetter(dcontext.DockerEndpoint, func() any { return &dcontext.EndpointMeta{} }),
	))
	meta, err := s.GetMetadata(name)
	if err != nil {
		return dcontext.Endpoint{}, err
	}
	em, err := dcontext.EndpointFromContext(meta)
	if err != nil {
		return dcontext.Endpoint{}, err
	}
	return dcontext.WithTLSData(s, name, em)
}

// hostEndpoint is that of an address, or of the default one, with what the
// environment says of TLS.
func hostEndpoint(host string) (ep dcontext.Endpoint, err error) {
	verify := os.Getenv(client.EnvTLSVerify) != ""
	secure := verify || os.Getenv("DOCKER_TLS") != ""
	if ep.Host, err = opts.ParseHost(secure, host); err != nil || !secure {
		return ep, err
	}
	ep.SkipTLSVerify = !verify
	dir := cmp.Or(os.Getenv(client.EnvOverrideCertPath), config.Dir())
	ep.TLSData = &clicontext.TLSData{}
	for file, to := range map[string]*[]byte{
		"ca.pem": &ep.TLSData.CA, "cert.pem": &ep.TLSData.Cert, "key.pem": &ep.TLSData.Key,
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // what is missing is not needed everywhere
			return ep, err
		}
		*to = b
	}
	return ep, nil
}

// currentContext is what `docker context use` chose. A config that cannot be
// read chooses nothing; signing in complains about it.
func currentContext() string {
	f, err := config.Load("")
	if err != nil {
		return ""
	}
	return f.CurrentContext
}
