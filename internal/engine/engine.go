// SPDX-License-Identifier: Apache-2.0

// Package engine reads images out of a Docker engine, and tells it what became
// of them. The engine is found as docker finds it: DOCKER_HOST, DOCKER_CONTEXT
// or the current context, over a socket, TCP, TLS or ssh. Podman's compatible
// socket is as good.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The least engine that is spoken to: what moby's client requires.
const (
	LeastAPI     = client.MinAPIVersion
	LeastVersion = "19.03"

	// answerFor is how long the engine may take to answer for the first time.
	answerFor = 30 * time.Second
)

// Options say which engine. The zero value is docker's choice.
type Options struct {
	// Host is the address, as of DOCKER_HOST, over which it wins.
	Host string
	// Context is the name of a docker context, over which Host wins.
	Context string
}

// Engine is one that answers. It is safe for concurrent use.
type Engine struct {
	c *client.Client
	// Address is where it is, for people.
	Address string
	info    system.Info
	known   bool // that info was given
}

// Open finds the engine and asks whether it answers. The error is
// *UnreachableError, *TooOldError, resume.ErrSource, or the cause of a done ctx.
func Open(ctx context.Context, o Options) (*Engine, error) {
	how, address, err := endpoint(o)
	if err != nil {
		return nil, bad("finding the Docker engine: %w", err)
	}
	c, err := client.New(how...)
	if err != nil {
		return nil, bad("the Docker engine at %s: %w", address, err)
	}
	e := &Engine{c: c, Address: address}
	bound, cancel := context.WithTimeout(ctx, answerFor)
	defer cancel()
	ping, err := c.Ping(bound, client.PingOptions{})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
		// The client tells causes by words of its own, without the error.
		if !strings.HasPrefix(address, "ssh://") { // that may ask for a password again
			if conn, cause := c.Dialer()(bound); cause != nil {
				err = cause
			} else {
				conn.Close()
			}
		}
		err = &UnreachableError{address, err}
	case older(ping.APIVersion, LeastAPI):
		err = &TooOldError{address, ping.APIVersion}
	}
	if err != nil {
		c.Close() //nolint:errcheck // idle connections
		return nil, err
	}
	// A proxy before the socket may not let anyone ask; then nothing is known.
	if info, err := c.Info(bound, client.InfoOptions{}); err == nil {
		e.info, e.known = info.Info, true
	}
	return e, nil
}

// older compares API versions, 1.9 and 1.41. What is no version is not older.
func older(a, least string) bool {
	var am, an, bm, bn int
	if n, _ := fmt.Sscanf(a, "%d.%d", &am, &an); n != 2 {
		return false
	}
	fmt.Sscanf(least, "%d.%d", &bm, &bn) //nolint:errcheck // a constant
	return am < bm || am == bm && an < bn
}

// Close lets go of connections.
func (e *Engine) Close() error { return e.c.Close() }

// Image is one that the engine has.
type Image struct {
	// Name is what it was asked for by.
	Name string
	// ID is the digest of the config; with the containerd store that of the
	// manifest or index.
	ID digest.Digest
	// DiffIDs of the layers, the base first.
	DiffIDs []digest.Digest
	// RepoDigests are the manifests it was pulled or pushed as.
	RepoDigests []name.Digest
	// Whole says that the engine keeps it in containerd, compressed, with the
	// manifests it came with.
	Whole bool

	platform v1.Platform
	of       *picked
}

// picked is what an image was picked from, and by what.
type picked struct {
	index    string
	platform v1.Platform
}

// Image asks for an image by name or ID. The error is *NoImageError,
// resume.ErrSource, or the cause of a done ctx.
func (e *Engine) Image(ctx context.Context, image string) (Image, error) {
	in, err := e.c.ImageInspect(ctx, image)
	switch {
	case ctx.Err() != nil:
		return Image{}, context.Cause(ctx)
	case cerrdefs.IsNotFound(err):
		return Image{}, &NoImageError{e.Address, image}
	case err != nil:
		return Image{}, bad("asking the Docker engine at %s for %s: %w", e.Address, image, err)
	}
	img := Image{Name: image, ID: digest.Digest(in.ID), RepoDigests: parseDigests(in.RepoDigests)}
	img.Whole = e.containerd() || !e.known && in.Descriptor != nil
	if !strings.Contains(in.ID, ":") { // podman leaves the algorithm out
		img.ID = digest.NewDigestFromEncoded(digest.SHA256, in.ID)
	}
	if err := img.ID.Validate(); err != nil {
		return Image{}, bad("the Docker engine at %s gave %s the ID %q: %w", e.Address, image, in.ID, err)
	}
	img.platform = v1.Platform{OS: in.Os, Architecture: in.Architecture, Variant: in.Variant}
	for _, l := range in.RootFS.Layers {
		d := digest.Digest(l)
		if err := d.Validate(); err != nil {
			return Image{}, bad("the Docker engine at %s gave %s a layer %q: %w", e.Address, image, l, err)
		}
		img.DiffIDs = append(img.DiffIDs, d)
	}
	return img, nil
}

// Pick gives the image for a platform alone. The error is as of Image;
// *NoPlatformError if there is none.
func (e *Engine) Pick(ctx context.Context, image string, img Image, p v1.Platform) (Image, error) {
	none := &NoPlatformError{Address: e.Address, Name: image, Platform: p}
	if !img.Whole {
		if !img.platform.Satisfies(p) {
			none.Has = []string{img.platform.String()}
			return Image{}, none
		}
		return img, nil
	}
	in, err := e.c.ImageInspect(ctx, img.ID.String(), client.ImageInspectWithManifests(true))
	switch {
	case ctx.Err() != nil:
		return Image{}, context.Cause(ctx)
	case err != nil:
		return Image{}, bad("asking the Docker engine at %s for the platforms of %s: %w", e.Address, image, err)
	}
	for _, m := range in.Manifests {
		if m.ImageData == nil || !m.Available {
			continue
		}
		of := m.ImageData.Platform
		has := v1.Platform{OS: of.OS, Architecture: of.Architecture, Variant: of.Variant, OSVersion: of.OSVersion}
		if has.Satisfies(p) {
			img.of = &picked{img.ID.String(), has}
			img.ID = m.Descriptor.Digest
			return img, nil
		}
		none.Has = append(none.Has, has.String())
	}
	return Image{}, none
}

// Tags are those of a repository, in order. The error is as of Image;
// *NoImageError if there is none.
func (e *Engine) Tags(ctx context.Context, repo name.Repository) (tags []string, err error) {
	list, err := e.c.ImageList(ctx, client.ImageListOptions{})
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, bad("asking the Docker engine at %s for its images: %w", e.Address, err)
	}
	for _, item := range list.Items {
		for _, s := range item.RepoTags {
			if tag, err := name.NewTag(s, name.WeakValidation); err == nil && tag.Context().Name() == repo.Name() {
				tags = append(tags, tag.TagStr())
			}
		}
	}
	if len(tags) == 0 {
		return nil, &NoImageError{e.Address, Familiar(repo)}
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

func parseDigests(all []string) (refs []name.Digest) {
	for _, s := range all {
		if ref, err := name.NewDigest(s, name.WeakValidation); err == nil {
			refs = append(refs, ref)
		}
	}
	return refs
}

// Export gives what docker save would, of this very image: a tar whose manifest
// comes last. The engine may write it to its own disk first. The error, of
// reading too, is *BrokenError, *NoImageError, resume.ErrSource, or the cause of
// a done ctx.
func (e *Engine) Export(ctx context.Context, img Image) (io.ReadCloser, error) {
	id := img.ID.String()
	var opts []client.ImageSaveOption
	if of := img.of; of != nil {
		id = of.index
		opts = append(opts, client.ImageSaveWithPlatforms(ocispec.Platform{
			OS: of.platform.OS, Architecture: of.platform.Architecture, Variant: of.platform.Variant, OSVersion: of.platform.OSVersion,
		}))
	}
	r, err := e.c.ImageSave(ctx, []string{id}, opts...)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case cerrdefs.IsNotFound(err):
		return nil, &NoImageError{e.Address, img.Name}
	case client.IsErrConnectionFailed(err):
		return nil, &BrokenError{e.Address, img.Name, err}
	case err != nil:
		return nil, bad("reading %s from the Docker engine at %s: %w", img.Name, e.Address, err)
	}
	return &export{r, e, img.Name}, nil
}

// export is an image that is being read.
type export struct {
	io.ReadCloser
	from *Engine
	name string
}

func (x *export) Read(p []byte) (int, error) {
	n, err := x.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &BrokenError{x.from.Address, x.name, err}
	}
	return n, err
}

// maxRelatives bounds how many other images are looked at.
const maxRelatives = 64

// Relatives are images of the engine that a registry is known to have and that
// begin with the same layer as img, those with the most layers in common first.
// It is a help only: what cannot be found out is left out.
func (e *Engine) Relatives(ctx context.Context, img Image, registry string) []Image {
	list, err := e.c.ImageList(ctx, client.ImageListOptions{All: false})
	if err != nil || len(img.DiffIDs) == 0 {
		return nil
	}
	var found []Image
	asked := 0
	for _, item := range list.Items {
		// Of an image with several names Docker 29 lists one digest only.
		if !slices.ContainsFunc(slices.Concat(item.RepoDigests, item.RepoTags), func(s string) bool {
			ref, err := name.ParseReference(s, name.WeakValidation)
			return err == nil && ref.Context().RegistryStr() == registry
		}) {
			continue
		}
		if asked++; asked > maxRelatives || ctx.Err() != nil {
			break
		}
		other, err := e.Image(ctx, item.ID)
		if err == nil && common(img, other) > 0 {
			found = append(found, other)
		}
	}
	slices.SortStableFunc(found, func(a, b Image) int { return common(img, b) - common(img, a) })
	return found
}

// common counts the layers that two images begin with.
func common(a, b Image) int {
	n := 0
	for n < len(a.DiffIDs) && n < len(b.DiffIDs) && a.DiffIDs[n] == b.DiffIDs[n] {
		n++
	}
	return n
}

// Learn has the engine note that its image is at a registry under this digest,
// by a pull of what it has already: `docker inspect` then shows it. Credentials
// are those for the registry.
func (e *Engine) Learn(ctx context.Context, ref name.Digest, auth *authn.AuthConfig) error {
	o := client.ImagePullOptions{}
	if auth != nil && *auth != (authn.AuthConfig{}) {
		encoded, err := authconfig.Encode(registry.AuthConfig{
			Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
			IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
			ServerAddress: ref.Context().RegistryStr(),
		})
		if err != nil {
			return err
		}
		o.RegistryAuth = encoded
	}
	r, err := e.c.ImagePull(ctx, Familiar(ref), o)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Wait(ctx)
}

// Familiar spells a reference, or a repository, as the engine does: Docker Hub
// is docker.io there.
func Familiar(ref interface{ Name() string }) string {
	s := ref.Name()
	if rest, ok := strings.CutPrefix(s, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return s
}

// containerd reports whether images are kept by it.
func (e *Engine) containerd() bool {
	return slices.ContainsFunc(e.info.DriverStatus, func(kv [2]string) bool {
		return kv[0] == "driver-type" && kv[1] == "io.containerd.snapshotter.v1"
	})
}

// Insecure reports whether the engine was told not to ask for a trusted
// certificate of the registry, or for TLS at all: by the registry's name, or by
// a network that its address is in. Only an address in the name itself, or
// localhost, is matched with networks. The engine resolves other names; rpush
// does not, since then any answer of a name server could turn verification off.
func (e *Engine) Insecure(host string) bool {
	conf := e.info.RegistryConfig
	if conf == nil {
		return false
	}
	if index, ok := conf.IndexConfigs[indexName(host)]; ok && index != nil {
		return !index.Secure
	}
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(strings.Trim(bare, "[]")); err == nil {
		addrs = []netip.Addr{a}
	} else if strings.EqualFold(bare, "localhost") {
		addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return slices.ContainsFunc(conf.InsecureRegistryCIDRs, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
	})
}

func indexName(host string) string {
	if host == name.DefaultRegistry {
		return "docker.io"
	}
	return host
}

// Mirrors are the registries that the engine pulls from instead of this one,
// as HOST[:PORT]; only those at the top of a host that speak https.
func (e *Engine) Mirrors(host string) (hosts []string) {
	conf := e.info.RegistryConfig
	if conf == nil {
		return nil
	}
	index := conf.IndexConfigs[indexName(host)]
	if index == nil {
		return nil
	}
	for _, m := range index.Mirrors {
		if u, err := url.Parse(m); err == nil && u.Scheme == "https" && strings.Trim(u.Path, "/") == "" {
			hosts = append(hosts, u.Host)
		}
	}
	return hosts
}

// Proxies are what the engine was told about proxies; ok is false where that is
// nothing.
func (e *Engine) Proxies() (http, https, no string, ok bool) {
	http, https, no = e.info.HTTPProxy, e.info.HTTPSProxy, e.info.NoProxy
	return http, https, no, http != "" || https != ""
}

// Remote reports whether the engine is not on this host, so that names,
// certificates and ports may be others there.
func (e *Engine) Remote() bool {
	u, err := url.Parse(e.Address)
	if err != nil {
		return false
	}
	switch u.Scheme {
	case "unix", "npipe", "fd":
		return false
	case "ssh":
		return true
	}
	a, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !a.IsLoopback())
}
