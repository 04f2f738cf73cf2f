// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpproxy"

	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/intercept"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// The exit codes of a command that did not run, as a shell has them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// runFlags are those of gateway run.
func (o *options) runFlags(registries *[]string) []flagGroup {
	o.parallel, o.output, o.image.noContentTrust = pusher.DefaultParallel, "text", true
	r := newGroup("Registries")
	r.StringArrayVar(registries, "registry", nil, "serve `REGISTRY`; can be repeated. Else those of the command's arguments and of docker login")
	d := newGroup("Disk")
	d.StringVar(&o.image.spoolDir, "spool-dir", "", "keep copies of bodies under way in `DIR`")
	c := newGroup("Connections to registries")
	o.to.tlsFlags(c.FlagSet)
	c.Var(&o.image.limitRate, "limit-rate", "send at most `RATE` bytes a second: 500K, 20M")
	e := o.requestFlags()
	out := newGroup("Output")
	o.logFlags(out.FlagSet)
	o.telemetryFlags(out.FlagSet)
	return []flagGroup{r, c, e, o.stateFlags(), d, out}
}

func (a *app) runCommand() *cobra.Command {
	var o options
	var registries []string
	groups := o.runFlags(&registries)
	cmd := &cobra.Command{Use: "run", Short: runShort, Args: func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New(noCommand)
		}
		return nil
	}}
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.Flags().SetInterspersed(false) // what follows COMMAND is its own
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, helpText(runHelp, groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.load(cmd.Flags(), a.env); err != nil {
			return err
		}
		a.out.quiet.Store(o.quiet)
		var err error
		a.exit, err = a.runThrough(cmd.Context(), &o, registries, args)
		var usage usageError
		if err != nil && !errors.As(err, &usage) {
			a.out.line(err.Error())
			a.exit, err = exitPermanent, nil
		}
		return err
	}
	return cmd
}

// runThrough runs a command whose connections to registries go through a gateway
// of its own, and returns its exit code.
func (a *app) runThrough(ctx context.Context, o *options, named, args []string) (int, error) {
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		return exitUsage, usageError(noRunHere)
	}
	if why := daemonClient(args, a.env); why != "" {
		return exitUsage, usageError(why)
	}
	about, err := interceptedRegistries(named, args)
	if err != nil {
		return exitUsage, err
	}
	if len(about.all) == 0 {
		return exitUsage, usageError(noRegistryToServe)
	}
	if err := about.check(o); err != nil {
		return exitUsage, err
	}
	path, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		a.out.line(fmt.Sprintf(commandNotFound, args[0], err))
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return exitNotFound, nil
		}
		return exitNotExecutable, nil
	}

	var sum runSummary
	opts := a.gatewayOptions(o, 0, logrus.ErrorLevel) // stderr is the command's
	tel := a.telemetryOf(o)
	opts.OnEvent = tel.watching(sum.event)
	g, err := gateway.New(opts)
	if err != nil {
		return exitUsage, usageError(err.Error())
	}
	p, err := intercept.Start(intercept.Options{
		Hosts: about.hosts(),
		Handler: func(ctx context.Context, at *url.URL) (http.Handler, error) {
			h, err := a.runHandler(ctx, g, o, about, at)
			if err != nil {
				return nil, err
			}
			return sum.around(h), nil
		},
		Forward: forwardProxies(),
	})
	if err != nil {
		return exitPermanent, &localError{"the proxy", err}
	}
	defer p.Close()

	dir, err := os.MkdirTemp("", "rpush-gateway-")
	if err != nil {
		return exitPermanent, &localError{"a directory for certificates", err}
	}
	defer os.RemoveAll(dir)
	var extra []byte
	if o.to.caFile != "" { // what goes around the gateway, such as a token server
		if extra, err = os.ReadFile(o.to.caFile); err != nil {
			return exitPermanent, &localError{"--ca-file=" + o.to.caFile, err}
		}
	}
	env, err := p.Environment(os.Environ(), dir, extra)
	if err != nil {
		return exitPermanent, &localError{"the certificates of this system", err}
	}
	code, err := a.child(ctx, path, args, env)
	if err != nil {
		a.out.line(fmt.Sprintf(commandNotFound, args[0], err))
		return exitNotExecutable, nil
	}
	a.out.note(sum.words(about.all))
	tel.ended(ctx, nil)
	return code, nil
}

// runHandler forwards to one registry as the command addresses it.
func (a *app) runHandler(ctx context.Context, g *gateway.Gateway, o *options, about intercepted, at *url.URL) (http.Handler, error) {
	registry := about.registry(at)
	var po pusher.Options
	if err := about.flagsFor(o, registry).apply(&po, registry, nil); err != nil {
		return nil, err
	}
	plain := gateway.Upstream{URL: &url.URL{Scheme: "http", Host: at.Host}, TLS: po.TLSClientConfig}
	if po.Scheme == pusher.SchemeHTTP { // the command may think otherwise
		return g.To(plain)
	}
	h, err := g.To(gateway.Upstream{URL: at, TLS: po.TLSClientConfig})
	if err != nil || at.Scheme != "https" {
		return h, err
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	switch {
	case !h.SpeaksPlain(ctx):
		return h, nil
	case po.Scheme == pusher.SchemeAuto:
		return nil, intercept.ErrPlain
	}
	// The command need not know.
	return g.To(plain)
}

// forwardProxies says which proxy of the environment carries a connection that is
// passed on. ALL_PROXY, which Go does not read but curl and Python do, is for what
// has no other.
func forwardProxies() func(*url.URL) (*url.URL, error) {
	c := httpproxy.FromEnvironment()
	all := cmp.Or(os.Getenv("ALL_PROXY"), os.Getenv("all_proxy"))
	c.HTTPSProxy, c.HTTPProxy = cmp.Or(c.HTTPSProxy, all), cmp.Or(c.HTTPProxy, all)
	return c.ProxyFunc()
}

// pingTime bounds how long it may take to find out whether a host speaks TLS. The
// client waits for its handshake meanwhile, as a rule for 10 s at most.
const pingTime = 5 * time.Second

// child runs the command with the streams of rpush until it ends. Signals reach
// it; a terminal sends its own to both.
func (a *app) child(ctx context.Context, path string, args, env []string) (int, error) {
	cmd := exec.Command(path, args[1:]...) //nolint:gosec // the user's own command
	cmd.Args[0] = args[0]
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.out.w
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT) // the command's, which may go on after it
	defer signal.Stop(quit)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	relay := func(s os.Signal) {
		if (s == os.Interrupt || s == syscall.SIGHUP || s == syscall.SIGQUIT) && inForeground() {
			return
		}
		_ = cmd.Process.Signal(s)
	}
	a.relay.Store(&relay)
	defer a.relay.Store(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-quit:
				relay(s)
			case <-ctx.Done(): // a signal that came before the command ran
				_ = cmd.Process.Signal(syscall.SIGTERM)
				<-ended
				return
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		a.out.line(err.Error()) // a stream broke; the command has ended all the same
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// intercepted are the registries of a gateway run.
type intercepted struct {
	asked []string // those that --registry or, without it, the arguments name
	all   []string
}

// interceptedRegistries are those that --registry names; else those in the
// command's arguments and those that this user has credentials for.
func interceptedRegistries(named, args []string) (intercepted, error) {
	var in intercepted
	add := func(list *[]string, s string) bool {
		r, err := name.NewRegistry(s, name.WeakValidation)
		if err != nil || strings.ContainsAny(s, "/@") {
			return false
		}
		if !slices.Contains(*list, r.RegistryStr()) {
			*list = append(*list, r.RegistryStr())
		}
		return true
	}
	for _, s := range named {
		if !add(&in.asked, s) {
			return in, usageError(fmt.Sprintf(badRegistry, "--registry", s))
		}
	}
	if len(named) == 0 {
		for _, arg := range args[1:] {
			if host := registryNamedBy(arg); host != "" {
				add(&in.asked, host)
			}
		}
	}
	in.all = slices.Clone(in.asked)
	if len(named) == 0 {
		for _, host := range credentials.Registries() {
			add(&in.all, host)
		}
	}
	return in, nil
}

// check refuses flags about one registry if it is not clear which one is meant.
func (in intercepted) check(o *options) error {
	for _, flag := range []string{"plain-http", "insecure", "tls-verify", "cert-file", "key-file", "cert-dir"} {
		if o.spelled[flag] == "--"+flag && len(in.asked) != 1 {
			return usageError(fmt.Sprintf(runOneRegistry, o.spelled[flag]))
		}
	}
	return nil
}

// flagsFor has what the flags say about a registry. Unless the user names exactly
// one, variables that are about one registry, and may be set for other calls,
// apply to none.
func (in intercepted) flagsFor(o *options, registry string) *endpoint {
	if len(in.asked) == 1 && in.asked[0] == registry {
		return &o.to
	}
	return o.to.elsewhere()
}

// hosts are what the registries are reached at.
func (in intercepted) hosts() []string {
	var all []string
	for _, r := range in.all {
		all = append(all, r)
		if r == name.DefaultRegistry {
			all = append(all, dockerHosts...)
		}
	}
	return all
}

// dockerHosts are the hosts of Docker Hub beside name.DefaultRegistry.
var dockerHosts = []string{"registry-1.docker.io", "docker.io"}

// registry is the one that a URL without the default port leads to.
func (in intercepted) registry(at *url.URL) string {
	standard := map[string]string{"http": ":80", "https": ":443"}[at.Scheme]
	for _, r := range in.all {
		if strings.EqualFold(strings.TrimSuffix(r, standard), at.Host) {
			return r
		}
	}
	if slices.Contains(dockerHosts, strings.ToLower(at.Host)) {
		return name.DefaultRegistry
	}
	return at.Host
}

var registryInArgument = regexp.MustCompile(`^(?:(?:docker|oci)://)?([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](?::[0-9]{1,5})?)/[a-z0-9]`)

// registryNamedBy returns the host of a reference in an argument, such as
// HOST/NAME:TAG, docker://HOST/NAME, --destination=HOST/NAME; empty if there is
// none. A URL of http or https is no reference.
func registryNamedBy(arg string) string {
	if strings.HasPrefix(arg, "-") {
		_, value, ok := strings.Cut(arg, "=")
		if !ok {
			return ""
		}
		arg = value
	}
	m := registryInArgument.FindStringSubmatch(arg)
	if m == nil || !strings.ContainsAny(m[1], ".:[") && m[1] != "localhost" {
		return ""
	}
	if host, _, _ := strings.Cut(m[1], ":"); !strings.ContainsAny(m[1], "[") {
		if _, err := os.Stat(arg); err == nil && strings.Contains(host, ".") {
			return "" // a file
		}
	}
	return m[1]
}

// daemonClient says, if a command has a daemon do the work, why a proxy for the
// command cannot help; else it is empty.
func daemonClient(args []string, env map[string]string) string {
	switch base := filepath.Base(args[0]); base {
	case "docker":
		for _, a := range args[1:] {
			switch a {
			case "push", "pull", "build", "buildx", "bake", "compose", "run", "create":
				return fmt.Sprintf(daemonWords, "docker "+a, "the Docker engine")
			case "login", "logout", "manifest", "imagetools", "version":
				return ""
			}
		}
	case "buildctl":
		return fmt.Sprintf(daemonWords, base, "buildkitd")
	case "crictl":
		return fmt.Sprintf(daemonWords, base, "the container runtime")
	case "podman", "buildah":
		if env["CONTAINER_HOST"] != "" || slices.Contains(args, "--remote") {
			return fmt.Sprintf(daemonWords, base+" --remote", "a podman service")
		}
	}
	return ""
}

// runSummary counts what a gateway did for a command. It is safe for concurrent
// use.
type runSummary struct {
	requests, committed, breaks, kept atomic.Int64
}

func (s *runSummary) around(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		h.ServeHTTP(w, r)
	})
}

func (s *runSummary) event(e resume.Event) {
	switch e.Kind {
	case resume.Committed:
		s.committed.Add(1)
	case resume.Broken:
		s.breaks.Add(1)
	case resume.Resumed:
		s.kept.Add(e.Offset)
	}
}

func (s *runSummary) words(registries []string) string {
	if s.requests.Load() == 0 {
		return fmt.Sprintf(nothingCameThrough, strings.Join(registries, ", "))
	}
	return fmt.Sprintf("gateway: %s, %s, %s not sent again", plural(int(s.committed.Load()), "upload"),
		plural(int(s.breaks.Load()), "break")+" survived", bytesWords(s.kept.Load()))
}
