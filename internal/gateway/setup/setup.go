// SPDX-License-Identifier: Apache-2.0

// Package setup plans the configuration that sends a registry client's pushes
// through a gateway, applies it, and takes exactly it back. What is changed is
// recorded on disk before it is changed, so that it can be undone after a kill at
// any moment.
package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/rpush-go/rpush/internal/durable"
)

// Client is a program, or a family of programs, that pushes.
type Client string

// The clients.
const (
	Docker     Client = "docker"
	Containerd Client = "containerd"
	Buildkit   Client = "buildkit"
	Podman     Client = "podman" // and skopeo and buildah
	Kaniko     Client = "kaniko"
)

// Clients are all of them.
var Clients = []Client{Docker, Containerd, Buildkit, Podman, Kaniko}

// DefaultGateway is where rpush gateway serve listens unless told otherwise.
const DefaultGateway = "http://localhost:5077"

// Options say what to set up. Client is required.
type Options struct {
	Client Client
	// Registry is the host of the registry. Docker and Containerd need it.
	Registry string
	// Gateway is where clients reach the gateway: http or https, a host, a port.
	// Empty is DefaultGateway.
	Gateway string
	// Several says that the gateway has no upstream of its own: names begin with
	// the registry.
	Several bool
	// Root is the root directory of the system. Empty is "/".
	Root string
	// Config, unless empty, is the configuration directory (XDG_CONFIG_HOME) of a
	// user who is not root, below Root. The configuration of this user is changed.
	Config string
	// State is the directory of the record in that case.
	State string
}

// Step is one thing that a Plan does.
type Step struct {
	What    string `json:"what"`
	Command string `json:"command"` // that does the same by hand

	do func() error
}

// Plan is what Fix or Undo would do. Nothing is done before Apply.
type Plan struct {
	Steps []Step   `json:"steps"`
	Notes []string `json:"notes"` // what to do beside it, and what to know
	// Use is how to push once it is set up.
	Use []string `json:"use,omitempty"`
	// Refused are files that somebody else made or has changed since.
	Refused []string `json:"refused,omitempty"`
	Applied bool     `json:"applied"`

	save func() error // tidies up at the end, unless nil
}

// Apply does the steps in order, and stops at the first that fails. What was done
// until then is in the record, so that Undo takes it back.
func (p *Plan) Apply() error {
	for _, s := range p.Steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.What, err)
		}
	}
	p.Applied = true
	if p.save != nil {
		return p.save()
	}
	return nil
}

// What keeps a plan from being made.
var (
	ErrNoRegistry = errors.New("the registry is missing")
	ErrRecord     = errors.New("the record of what was set up cannot be used")
	ErrRootOnly   = errors.New("containerd's configuration belongs to root")
	ErrNoFile     = errors.New("kaniko has no configuration file: add the flags to its command")
	ErrPortInName = errors.New("a registry with a port cannot be part of an image name: use a gateway with --upstream")
)

// place is a system, or a user's part of it, and what is being set up there.
type place struct {
	o        Options
	disk     durable.Disk
	gateway  *url.URL
	registry string // as in image names, empty if none was named
}

func newPlace(o Options) (*place, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Gateway == "" {
		o.Gateway = DefaultGateway
	}
	u, err := url.Parse(o.Gateway)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not the URL of a gateway, as %s is", o.Gateway, DefaultGateway)
	}
	if _, err := name.NewRegistry(u.Host, name.StrictValidation); err != nil {
		return nil, fmt.Errorf("%q is not the URL of a gateway: %w", o.Gateway, err)
	}
	p := &place{o: o, disk: durable.OS{}, gateway: &url.URL{Scheme: u.Scheme, Host: u.Host}}
	if o.Registry != "" {
		if p.registry, err = registryName(o.Registry); err != nil {
			return nil, err
		}
	}
	if o.Client == Containerd && o.Config != "" {
		return nil, ErrRootOnly
	}
	return p, nil
}

// registryName is a registry as image names have it. It is safe in a path.
func registryName(s string) (string, error) {
	r, err := name.NewRegistry(s, name.StrictValidation)
	if err != nil || strings.ContainsAny(s, "/\\@ \"'\n") || strings.HasPrefix(s, ".") {
		return "", fmt.Errorf("%q is not a registry", s)
	}
	if r.RegistryStr() == name.DefaultRegistry {
		return "docker.io", nil
	}
	return r.RegistryStr(), nil
}

// Fix says what a client needs. Without anything left to do the plan has no
// steps.
func Fix(o Options) (*Plan, error) {
	p, err := newPlace(o)
	if err != nil {
		return nil, err
	}
	return p.fix()
}

// Undo says what takes back all that was set up for a client; for one registry,
// if the options name one.
func Undo(o Options) (*Plan, error) {
	p, err := newPlace(o)
	if err != nil {
		return nil, err
	}
	return p.undo()
}

// dir is where a client's configuration is, relative to the root.
func (p *place) dir(c Client) string {
	if p.o.Config == "" {
		switch c {
		case Docker:
			return "etc/docker/certs.d"
		case Containerd:
			return "etc/containerd/certs.d"
		case Buildkit:
			return "etc/buildkit"
		default:
			return "etc/containers/registries.conf.d"
		}
	}
	config := strings.TrimPrefix(p.o.Config, "/")
	switch c {
	case Docker:
		return filepath.Join(config, "docker/certs.d")
	case Buildkit:
		return filepath.Join(config, "buildkit")
	default:
		return filepath.Join(config, "containers/registries.conf.d")
	}
}

// file is the file that a change is in, relative to the root.
func (p *place) file(c Client, registry string) string {
	switch c {
	case Docker, Containerd:
		return filepath.Join(p.dir(c), registry, "hosts.toml")
	case Buildkit:
		return filepath.Join(p.dir(c), "buildkitd.toml")
	default:
		return filepath.Join(p.dir(c), "90-rpush-gateway.conf")
	}
}

// record is where it is written down what was changed.
func (p *place) record() string {
	if p.o.Config == "" {
		return filepath.Join(p.o.Root, "var/lib/rpush/gateway-undo.json")
	}
	return filepath.Join(p.o.State, "gateway-undo.json")
}

func (p *place) path(file string) string { return filepath.Join(p.o.Root, file) }

func (p *place) fix() (*Plan, error) {
	rec, err := p.load()
	if err != nil {
		return nil, err
	}
	plan := &Plan{Steps: []Step{}, Notes: []string{}}
	switch p.o.Client {
	case Docker, Containerd:
		if p.registry == "" {
			return nil, ErrNoRegistry
		}
		if p.o.Several && strings.Contains(p.registry, ":") {
			return nil, ErrPortInName
		}
		text, err := p.hostsTOML()
		if err != nil {
			return nil, err
		}
		err = p.whole(plan, rec, p.registry, text)
		if err != nil {
			return nil, err
		}
	case Buildkit:
		if err := p.block(plan, rec, p.buildkitTOML()); err != nil {
			return nil, err
		}
	case Podman:
		if p.gateway.Scheme == "http" {
			if err := p.whole(plan, rec, "", p.registriesConf()); err != nil {
				return nil, err
			}
		}
	case Kaniko:
	default:
		return nil, fmt.Errorf("%q is not a client that can be set up", p.o.Client)
	}
	p.explain(plan)
	return plan, nil
}

// explain adds how the gateway is run and how to push through it.
func (p *place) explain(plan *Plan) {
	registry := p.registry
	if registry == "" {
		registry = "registry.example"
	}
	host := p.gateway.Host
	image := host + "/team/app:1"
	serve := "rpush gateway serve --upstream " + registry
	if p.o.Several {
		image, serve = host+"/"+registry+"/team/app:1", "rpush gateway serve --registry "+registry
	}
	if p.gateway.String() != DefaultGateway {
		serve += " --listen ADDRESS"
	}
	switch p.o.Client {
	case Docker:
		// Docker sends the credentials of a registry to no other host.
		plan.Notes = append(plan.Notes,
			"Docker Engine 29 and later reads hosts.toml if it has the containerd image store; nothing has to be restarted",
			"otherwise nothing has to be set up: docker push "+image)
		plan.Use = []string{serve + " --sign-in --allow " + registry, "docker push " + registry + "/team/app:1"}
	case Containerd:
		if b, err := os.ReadFile(p.path("etc/containerd/config.toml")); err != nil || !strings.Contains(string(b), "certs.d") {
			plan.Notes = append(plan.Notes, `containerd's CRI plugin reads this only if its config_path is "/etc/containerd/certs.d"; nerdctl always does`)
		}
		plan.Use = []string{serve, "ctr images push --hosts-dir /" + p.dir(Containerd) + " " + registry + "/team/app:1", "nerdctl push " + registry + "/team/app:1"}
	case Buildkit:
		plan.Notes = append(plan.Notes,
			"restart buildkitd afterwards",
			"for a builder of buildx in a container: docker buildx create --driver-opt network=host --buildkitd-config /"+p.file(Buildkit, ""))
		plan.Use = []string{serve, "buildctl build ... --output type=image,push=true,name=" + image, "docker buildx build --push -t " + image + " ."}
	case Podman:
		if p.gateway.Scheme != "http" {
			plan.Notes = append(plan.Notes, "the gateway speaks TLS: podman needs no configuration, unless its certificate is one of your own")
		}
		plan.Notes = append(plan.Notes, "without any of this: rpush gateway run -- podman push "+registry+"/team/app:1")
		plan.Use = []string{serve, "podman push app " + image, "skopeo copy oci:app docker://" + image, "buildah push app docker://" + image}
	case Kaniko:
		flags := "--destination=" + image
		if p.gateway.Scheme == "http" {
			flags += " --insecure-registry=" + host + " --insecure"
		}
		plan.Notes = append(plan.Notes, "kaniko has no configuration file: add these flags, and run the gateway in the same pod")
		plan.Use = []string{serve, "/kaniko/executor " + flags}
	}
}

// hostsTOML is for containerd's host configuration. containerd tells a gateway
// which registry it means (?ns=) when it pulls, not when it pushes; so for several
// registries the name is in the path.
func (p *place) hostsTOML() (string, error) {
	server := "https://" + p.registry
	if p.registry == "docker.io" {
		server = "https://registry-1.docker.io"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\nserver = %q\n", p.mark(), server)
	// Without hosts.toml the directory's certificates are for the registry.
	dir := filepath.Dir(p.file(p.o.Client, p.registry))
	entries, err := os.ReadDir(p.path(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var authorities, pairs []string
	for _, e := range entries {
		full := filepath.Join("/", dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			authorities = append(authorities, fmt.Sprintf("%q", full))
		case ".cert":
			pairs = append(pairs, fmt.Sprintf("[%q, %q]", full, strings.TrimSuffix(full, ".cert")+".key"))
		}
	}
	if authorities != nil {
		fmt.Fprintf(&b, "ca = [%s]\n", strings.Join(authorities, ", "))
	}
	if pairs != nil {
		fmt.Fprintf(&b, "client = [%s]\n", strings.Join(pairs, ", "))
	}
	at := p.gateway.String()
	if p.o.Several {
		at += "/v2/" + p.registry
	}
	fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n", at)
	if p.o.Several {
		b.WriteString("  override_path = true\n")
	}
	return b.String(), nil
}

// buildkitTOML lets buildkitd speak plain HTTP to the gateway. buildkitd pushes
// to no mirror, so image names name the gateway.
func (p *place) buildkitTOML() string {
	return fmt.Sprintf("[registry.%q]\n  http = %t\n", p.gateway.Host, p.gateway.Scheme == "http")
}

// registriesConf does the same for containers/image, which redirects pulls only.
func (p *place) registriesConf() string {
	return fmt.Sprintf("# %s\n[[registry]]\nlocation = %q\ninsecure = true\n", p.mark(), p.gateway.Host)
}

func (p *place) mark() string {
	return fmt.Sprintf("Written by rpush gateway setup %[1]s; rpush gateway setup %[1]s --undo --apply takes it back.", p.o.Client)
}
