// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/engine"
)

// dockerTried names the programs called docker that have turned out to be rpush,
// so that two copies of rpush do not call each other forever.
const dockerTried = "RPUSH_DOCKER_TRIED"

// dockerPath, if set, is the docker that gets all commands but pushes.
const dockerPath = "RPUSH_DOCKER"

// pluginMetadata is the command that docker calls a plugin with to learn what it
// is (cli/cli-plugins/metadata in docker/cli).
const pluginMetadata = "docker-cli-plugin-metadata"

// Run is Main for a program that may have been called by another name, argv[0].
// Called "docker" it takes over docker push and leaves all else to the real
// docker. Called "docker-rpush" it is a plugin: docker rpush.
func Run(argv []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	args := argv[1:]
	switch strings.TrimSuffix(filepath.Base(argv[0]), ".exe") {
	case "docker":
		push, ok := dockerPush(args)
		if !ok {
			return execDocker(argv, stderr)
		}
		args = push
	case "docker-rpush":
		if len(args) > 0 && args[0] == pluginMetadata {
			return writePluginMetadata(stdout, stderr)
		}
		args = pluginArgs(args)
	}
	return Main(args, stdin, stdout, stderr, environ)
}

// dockerGlobals are the flags that docker takes before a command.
type dockerGlobals struct {
	config, context, logLevel       string
	hosts                           []string
	ca, cert, key                   string
	debug, tls, verify, showVersion bool
	help                            bool
}

func (g *dockerGlobals) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("docker", pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.StringVar(&g.config, "config", "", "")
	f.StringVarP(&g.context, "context", "c", "", "")
	f.StringVarP(&g.logLevel, "log-level", "l", "info", "")
	f.StringArrayVarP(&g.hosts, "host", "H", nil, "")
	f.BoolVarP(&g.debug, "debug", "D", false, "")
	f.BoolVar(&g.tls, "tls", false, "")
	f.BoolVar(&g.verify, "tlsverify", false, "")
	f.StringVar(&g.ca, "tlscacert", "", "")
	f.StringVar(&g.cert, "tlscert", "", "")
	f.StringVar(&g.key, "tlskey", "", "")
	f.BoolVarP(&g.showVersion, "version", "v", false, "")
	f.BoolVarP(&g.help, "help", "h", false, "")
	return f
}

// dockerPush returns the arguments of rpush for those of docker, if they are
// about a push that rpush can take over.
func dockerPush(args []string) (push []string, ok bool) {
	var g dockerGlobals
	f := g.flags()
	if err := f.Parse(args); err != nil || g.showVersion || g.help {
		return nil, false
	}
	rest := f.Args()
	switch {
	case len(rest) > 0 && rest[0] == "push":
		rest = rest[1:]
	case len(rest) > 1 && rest[0] == "image" && rest[1] == "push":
		rest = rest[2:]
	default:
		return nil, false
	}
	engine, ok := g.apply()
	if !ok {
		return nil, false
	}
	return slices.Concat([]string{"push", "--output", "docker"}, engine, rest), true
}

// apply makes rpush find the same engine and credentials as docker would. It is
// false for what rpush has no word for.
func (g *dockerGlobals) apply() (args []string, ok bool) {
	if len(g.hosts) > 1 || len(g.hosts) == 1 && g.context != "" {
		return nil, false // docker says what is wrong
	}
	env := map[string]string{}
	if g.config != "" {
		env["DOCKER_CONFIG"] = g.config
	}
	for _, host := range g.hosts {
		args = append(args, "--docker-host", host)
	}
	if g.context != "" {
		args = append(args, "--docker-context", g.context)
	}
	if g.tls {
		env["DOCKER_TLS"] = "1"
	}
	if g.verify {
		env["DOCKER_TLS_VERIFY"] = "1"
	}
	// The environment has a directory for these, with fixed names.
	var dir string
	for file, given := range map[string]string{"ca.pem": g.ca, "cert.pem": g.cert, "key.pem": g.key} {
		if given == "" {
			continue
		}
		if filepath.Base(given) != file || dir != "" && filepath.Dir(given) != dir {
			return nil, false
		}
		dir = filepath.Dir(given)
	}
	if dir != "" {
		env["DOCKER_CERT_PATH"] = dir
		if !g.tls && !g.verify {
			env["DOCKER_TLS"] = "1"
		}
	}
	for k, v := range env {
		if err := os.Setenv(k, v); err != nil {
			return nil, false
		}
	}
	return args, true
}

// pluginArgs are the arguments of rpush for those that docker gives a plugin: all
// of docker's own, global flags included.
func pluginArgs(args []string) []string {
	if len(args) > 1 && (args[0] == "__complete" || args[0] == "__completeNoDesc") && args[1] == "rpush" {
		return append([]string{args[0]}, args[2:]...)
	}
	if len(args) > 1 && args[0] == "help" && args[1] == "rpush" {
		return append(slices.Clone(args[2:]), "--help")
	}
	var g dockerGlobals
	f := g.flags()
	if err := f.Parse(args); err != nil {
		return args
	}
	rest := f.Args()
	if len(rest) == 0 || rest[0] != "rpush" {
		return args // docker-rpush called by hand
	}
	rest = rest[1:]
	engine, ok := g.apply()
	if !ok || len(engine) == 0 {
		return rest
	}
	// Only a push reads from an engine. Variables do not bother other commands.
	for i := 0; i+1 < len(engine); i += 2 {
		if err := os.Setenv(envName(strings.TrimPrefix(engine[i], "--")), engine[i+1]); err != nil {
			return rest
		}
	}
	return rest
}

func writePluginMetadata(stdout, stderr io.Writer) int {
	err := json.NewEncoder(stdout).Encode(struct {
		SchemaVersion, Vendor, Version, ShortDescription, URL string
	}{"0.1.0", "rpush", version(), pluginShort, "https://github.com/rpush-go/rpush"})
	if err != nil {
		fmt.Fprintf(stderr, "rpush: %v\n", err)
		return exitPermanent
	}
	return exitOK
}

const (
	pluginShort = "Push an image with uploads that continue after a broken connection"
	noDocker    = "rpush was called as docker, and there is no other docker in PATH; " + dockerPath + " can name one"
)

// execDocker becomes the real docker.
func execDocker(argv []string, stderr io.Writer) int {
	path, err := realDocker()
	if err == nil {
		return become(path, append([]string{path}, argv[1:]...), stderr)
	}
	fmt.Fprintf(stderr, "rpush: %v\n", err)
	return 127 // as a shell that finds no command
}

// realDocker is the first docker in PATH that is not rpush.
func realDocker() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	tried := append(filepath.SplitList(os.Getenv(dockerTried)), self)
	if err := os.Setenv(dockerTried, strings.Join(tried, string(filepath.ListSeparator))); err != nil {
		return "", err
	}
	var own []os.FileInfo
	for _, path := range tried {
		if fi, err := os.Stat(path); err == nil {
			own = append(own, fi)
		}
	}
	candidates := []string{os.Getenv(dockerPath)}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) { // as package os/exec, which runs nothing of the working directory
			candidates = append(candidates, filepath.Join(dir, dockerProgram))
		}
	}
	for _, path := range candidates {
		fi, err := os.Stat(path)
		if err == nil && isProgram(fi) && !slices.ContainsFunc(own, func(o os.FileInfo) bool { return os.SameFile(o, fi) }) {
			return path, nil
		}
	}
	return "", errors.New(noDocker)
}

// dockerResult prints what docker push prints last.
func (o *options) dockerResult(w io.Writer, all []delivered) error {
	last := ""
	for _, d := range all {
		repo := engine.Familiar(d.ref.Context())
		if repo != last && !o.quiet {
			if _, err := fmt.Fprintf(w, "The push refers to repository [%s]\n", repo); err != nil {
				return err
			}
		}
		if o.quiet && o.image.allTags {
			if repo != last {
				if _, err := fmt.Fprintln(w, repo); err != nil {
					return err
				}
			}
			last = repo
			continue
		}
		last = repo
		for _, ref := range d.references() {
			line := engine.Familiar(ref)
			if !o.quiet {
				line = fmt.Sprintf("%s: digest: %s size: %d", ref.Identifier(), d.report.Digest, d.size())
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// references are all names that a push gave an image.
func (d delivered) references() []name.Reference {
	refs := []name.Reference{d.ref}
	for _, tag := range d.report.Tags {
		refs = append(refs, d.ref.Context().Tag(tag))
	}
	return refs
}

// size is that of the manifest that was pushed.
func (d delivered) size() int64 {
	for _, m := range d.report.Manifests {
		if m.Digest == d.report.Digest {
			return m.Size
		}
	}
	return 0
}
