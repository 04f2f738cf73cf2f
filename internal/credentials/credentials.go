// SPDX-License-Identifier: Apache-2.0

// Package credentials finds the credentials for a registry where docker and
// podman keep them, and can say where it found them.
package credentials

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	store "github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// envAuths names the variable that holds credentials itself and wins over files, as in docker.
const envAuths = configfile.DockerEnvConfigKey

// Error is a place for credentials that cannot be used: a file that cannot be
// read or parsed, or a helper program that failed.
type Error struct {
	// Place is a file, an environment variable or a helper program.
	Place string
	Err   error
}

func (e *Error) Error() string { return fmt.Sprintf("credentials from %s: %v", e.Place, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Keychain looks in $DOCKER_AUTH_CONFIG, then in the first file there is of
// $DOCKER_CONFIG/config.json (~/.docker/config.json where that is not set),
// $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json and
// ~/.config/containers/auth.json, credential helpers included.
//
// Each target is resolved once: helper programs can be slow, and may ask the
// user. The zero value works and is safe for concurrent use.
type Keychain struct {
	// File, unless empty, is the only place that is looked in, as with
	// --authfile of podman and skopeo. Both are set before the first use.
	File string
	// Given, unless nil, are the credentials for one registry; nothing is looked
	// up for it.
	Given *Given

	mu    sync.Mutex
	known map[string]result
}

// Given are credentials that the caller has, for one registry and no other.
type Given struct {
	// Registry is as of name.Registry.RegistryStr.
	Registry string
	// From says where they come from, in words for a human.
	From string
	// Auth is nil for none: the registry is spoken to anonymously.
	Auth *authn.AuthConfig
}

func (g *Given) result() result {
	if g.Auth == nil {
		return result{auth: authn.Anonymous, from: g.From}
	}
	return result{auth: authn.FromConfig(*g.Auth), from: g.From}
}

type result struct {
	auth authn.Authenticator
	from string
	err  error
}

var _ authn.Keychain = (*Keychain)(nil)

// Resolve returns the credentials for target, a registry or a repository;
// authn.Anonymous where there are none. The error is an *Error.
func (k *Keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	r := k.resolve(target)
	return r.auth, r.err
}

// From says, in words for a human, where the credentials for target come from
// or where they were looked for. It never contains a secret.
func (k *Keychain) From(target authn.Resource) string { return k.resolve(target).from }

func (k *Keychain) resolve(target authn.Resource) result {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.known[target.String()]
	if g := k.Given; g != nil && g.Registry == target.RegistryStr() {
		return g.result()
	}
	if !ok {
		r = lookUp(target, k.File)
		if k.known == nil {
			k.known = map[string]result{}
		}
		k.known[target.String()] = r
	}
	return r
}

// lookUp looks in only, or where it is empty, in all places.
func lookUp(target authn.Resource, only string) result {
	fail := func(place string, err error) result {
		return result{from: place, err: &Error{Place: place, Err: err}}
	}

	vars := os.Getenv(envAuths)
	if only != "" {
		vars = ""
	}
	env, err := config.LoadFromReader(strings.NewReader(vars))
	if err != nil {
		return fail("$"+envAuths, err)
	}
	cf, file, err := load(only)
	if err != nil {
		return fail(tilde(file), err)
	}

	for _, key := range keys(target) {
		cfg, inEnv := env.AuthConfigs[key]
		helper, setting := helperFor(cf, key)
		place := tilde(file)
		switch {
		case inEnv:
			place = "$" + envAuths
		case key != registryKey(target) && !listed(cf, key):
			continue // helpers know registries only, unless told otherwise
		case helper != "":
			place = fmt.Sprintf("credential helper docker-credential-%s (%s in %s)", helper, setting, tilde(file))
			cfg, err = store.NewNativeStore(cf, helper).Get(key)
		default:
			cfg, err = store.NewFileStore(cf).Get(key)
		}
		if err != nil {
			return fail(place, err)
		}
		cfg.ServerAddress = "" // always set, says nothing
		if cfg == (types.AuthConfig{}) {
			continue
		}
		return result{from: place, auth: authn.FromConfig(authn.AuthConfig{
			Username:      cfg.Username,
			Password:      cfg.Password,
			Auth:          cfg.Auth,
			IdentityToken: cfg.IdentityToken,
			RegistryToken: cfg.RegistryToken,
		})}
	}

	looked := places()
	if file != "" {
		looked = []string{file} // the first that is there is the only one read
	}
	for i := range looked {
		looked[i] = tilde(looked[i])
	}
	if helper, setting := helperFor(cf, registryKey(target)); helper != "" {
		looked = append(looked, fmt.Sprintf("docker-credential-%s, its %s", helper, setting))
	}
	return result{
		auth: authn.Anonymous,
		from: fmt.Sprintf("no credentials found (looked in %s)", strings.Join(looked, ", ")),
	}
}

// places lists the files that may hold credentials, in the order in which the
// first existing one is taken.
func places() []string {
	var all []string
	if dir := os.Getenv(config.EnvOverrideConfigDir); dir != "" {
		all = append(all, filepath.Join(dir, config.ConfigFileName))
	} else if home, err := os.UserHomeDir(); err == nil {
		all = append(all, filepath.Join(home, ".docker", config.ConfigFileName))
	}
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		all = append(all, file)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		all = append(all, filepath.Join(dir, "containers", "auth.json"))
	}
	conf := os.Getenv("XDG_CONFIG_HOME")
	if home, err := os.UserHomeDir(); conf == "" && err == nil {
		conf = filepath.Join(home, ".config")
	}
	if conf != "" {
		all = append(all, filepath.Join(conf, "containers", "auth.json"))
	}
	return all
}

// load reads the only file, or the first of places that exists; file is empty
// where none does.
func load(only string) (cf *configfile.ConfigFile, file string, err error) {
	all := places()
	if only != "" {
		all = []string{only}
	}
	for _, file := range all {
		f, err := os.Open(file)
		if only == "" && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) { // HOME=/dev/null
			continue
		}
		if err != nil {
			return nil, file, err
		}
		defer f.Close()
		cf, err := config.LoadFromReader(f)
		return cf, file, err
	}
	return configfile.New(""), "", nil
}

// Registries lists the hosts that the credentials of this user are for, as docker
// login and podman login stored them, sorted. Whatever is unreadable has none.
// Credentials for Docker Hub are for docker.io.
func Registries() []string {
	found := map[string]bool{}
	note := func(key string) {
		key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
		host, _, _ := strings.Cut(key, "/")
		if host == name.DefaultRegistry {
			host = "docker.io"
		}
		if host != "" {
			found[host] = true
		}
	}
	var all []*configfile.ConfigFile
	if env, err := config.LoadFromReader(strings.NewReader(os.Getenv(envAuths))); err == nil {
		all = append(all, env)
	}
	for _, file := range places() {
		if cf, _, err := load(file); err == nil {
			all = append(all, cf)
		}
	}
	for _, cf := range all {
		for key := range cf.AuthConfigs {
			note(key)
		}
		for key := range cf.CredentialHelpers {
			note(key)
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// keys are what target may be listed under, the most specific first: podman
// keeps credentials for repositories and namespaces too.
func keys(target authn.Resource) []string {
	var all []string
	for key := target.String(); key != target.RegistryStr(); {
		all = append(all, key)
		slash := strings.LastIndexByte(key, '/')
		if slash < 0 {
			break
		}
		key = key[:slash]
	}
	all = append(all, registryKey(target))
	if target.RegistryStr() == name.DefaultRegistry {
		all = append(all, "docker.io") // podman login docker.io
	}
	return all
}

// registryKey is what docker login stores the registry's credentials under.
func registryKey(target authn.Resource) string {
	if r := target.RegistryStr(); r != name.DefaultRegistry {
		return r
	}
	return authn.DefaultAuthKey
}

func listed(cf *configfile.ConfigFile, key string) bool {
	_, inFile := cf.AuthConfigs[key]
	_, withHelper := cf.CredentialHelpers[key]
	return inFile || withHelper
}

// helperFor returns the helper that is asked about key and the setting that
// says so, both empty where the file itself holds the credentials.
func helperFor(cf *configfile.ConfigFile, key string) (helper, setting string) {
	if h, ok := cf.CredentialHelpers[key]; ok {
		if h == "" {
			return "", ""
		}
		return h, "credHelpers"
	}
	if cf.CredentialsStore == "" {
		return "", ""
	}
	return cf.CredentialsStore, "credsStore"
}

// tilde shortens a path below the home directory, as users write it.
func tilde(path string) string {
	home, err := os.UserHomeDir()
	if err != nil || home == "" {
		return path
	}
	rest, ok := strings.CutPrefix(path, home+string(filepath.Separator))
	if !ok {
		return path
	}
	return filepath.Join("~", rest)
}
