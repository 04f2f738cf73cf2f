// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/credentials"
	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/pusher"
)

// gatewayCommand is what lets other clients' uploads resume.
func (a *app) gatewayCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "gateway", Short: gatewayShort, Args: func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf(noGatewayVerb, args[0])
		}
		return errors.New(gatewayVerbMissing)
	}, RunE: func(*cobra.Command, []string) error { return nil }}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, gatewayHelp)
		a.exit = a.written(err)
	})
	cmd.AddCommand(a.runCommand(), a.serveCommand(), a.setupCommand())
	return cmd
}

// serveOptions are the flags of gateway serve that no other verb has.
type serveOptions struct {
	listen, upstream, htpasswd, certFile, keyFile string
	registries, allow                             []string
	signIn, accept                                bool
	maxRequests                                   int
	headerTimeout, idleTimeout, stopTimeout       time.Duration
	spoolLimit                                    rate
}

// serveFlags are those of gateway serve.
func (o *options) serveFlags(s *serveOptions) []flagGroup {
	o.parallel, o.output, o.image.noContentTrust = pusher.DefaultParallel, "text", true
	l := newGroup("Listening")
	l.StringVar(&s.listen, "listen", "127.0.0.1:5077", "listen at `ADDRESS`; a socket of systemd wins")
	l.StringVar(&s.certFile, "cert-file", "", "serve HTTPS with the certificate in `FILE`")
	l.StringVar(&s.keyFile, "key-file", "", "the key in `FILE` belongs to it")
	l.StringVar(&s.htpasswd, "htpasswd", "", "ask clients for a user and password in `FILE` (bcrypt)")
	l.IntVar(&s.maxRequests, "max-requests", gateway.DefaultMaxRequests, "serve `N` requests at once; more are answered 503")
	l.DurationVar(&s.headerTimeout, "header-timeout", 30*time.Second, "give a client `TIME` to send the head of a request")
	l.DurationVar(&s.idleTimeout, "idle-timeout", gateway.DefaultIdleTimeout, "give up a client that moves no byte of a body for `TIME`")
	l.DurationVar(&s.stopTimeout, "stop-timeout", 30*time.Second, "when stopped, let requests under way go on for `TIME`")

	r := newGroup("Registries")
	r.StringVar(&s.upstream, "upstream", "", "serve the repositories of `REGISTRY` under their own names")
	r.StringArrayVar(&s.registries, "registry", nil, "without --upstream: serve `REGISTRY` and no others; can be repeated")

	r.BoolVar(&s.accept, "accept", false, "beside a registry that loses broken uploads: keep every byte here until the commit")

	c := newGroup("Credentials for registries")
	c.BoolVar(&s.signIn, "sign-in", false, "sign in with the credentials of this user, where --allow says so")
	c.StringArrayVar(&s.allow, "allow", nil, "use them for `REGISTRY[/REPOSITORY]` and what is below it; can be repeated")
	c.StringVar(&o.to.authFile, "authfile", "", "look for credentials in `FILE` only")

	t := newGroup("Connections to registries")
	o.to.tlsVerify = true
	t.StringVar(&o.to.caFile, "ca-file", "", "trust the PEM certificates in `FILE` too")
	t.StringVar(&o.to.certDir, "cert-dir", "", "use `DIR` as docker uses certs.d/HOST")
	t.BoolVar(&o.to.tlsVerify, "tls-verify", true, "=false: do not verify the registry")
	t.BoolVar(&o.to.plainHTTP, "plain-http", false, "speak HTTP, never HTTPS")
	t.BoolVar(&o.to.insecure, "insecure", false, "do not verify the registry, and take HTTP")
	t.Var(&o.image.limitRate, "limit-rate", "send at most `RATE` bytes a second: 500K, 20M")

	e := o.requestFlags()

	d := newGroup("Disk")
	d.StringVar(&o.image.spoolDir, "spool-dir", "", "keep copies of bodies under way in `DIR`")
	d.Var(&s.spoolLimit, "spool-limit", "keep at most `SIZE` of them, and of what --accept keeps: 20G; 0: 10G each")

	out := newGroup("Output")
	o.logFlags(out.FlagSet)
	return []flagGroup{l, r, c, t, e, o.stateFlags(), d, out}
}

// check refuses settings that would let strangers in, or do nothing.
func (s *serveOptions) check(fs *pflag.FlagSet, o *options) error {
	for _, flag := range []string{"plain-http", "insecure", "tls-verify", "cert-dir"} {
		if o.spelled[flag] == "--"+flag && !s.servesOne() {
			return fmt.Errorf(flagNeedsOneRegistry, o.spelled[flag])
		}
	}
	switch {
	case (s.certFile == "") != (s.keyFile == ""):
		return fmt.Errorf(bothOrNone, "--cert-file", "--key-file")
	case s.signIn != (len(s.allow) > 0):
		return fmt.Errorf(bothOrNone, "--sign-in", "--allow")
	case s.upstream != "" && len(s.registries) > 0:
		return errors.New(upstreamAndRegistry)
	case fs.Changed("authfile") && !s.signIn:
		return errors.New(authfileWithoutSignIn)
	case s.maxRequests < 1:
		return fmt.Errorf("--max-requests is %d, not at least 1", s.maxRequests)
	case s.headerTimeout <= 0 || s.idleTimeout <= 0 || s.stopTimeout < 0:
		return errors.New(badServeTimeout)
	}
	return nil
}

// servesOne reports whether the user names the one registry that is served, which
// the flags about connections are for.
func (s *serveOptions) servesOne() bool { return s.upstream != "" || len(s.registries) == 1 }

// flagsFor has what the flags say about the registries that are served. If a
// client may name any, a variable that is about one registry, and may be set for
// other calls, is for none of them.
func (s *serveOptions) flagsFor(o *options) *options {
	if s.servesOne() {
		return o
	}
	return &options{to: *o.to.elsewhere()}
}

func (a *app) serveCommand() *cobra.Command {
	var o options
	var s serveOptions
	groups := o.serveFlags(&s)
	cmd := &cobra.Command{Use: "serve", Short: serveShort, Args: func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf(noArgument, args[0])
		}
		return nil
	}}
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, helpText(serveHelp, groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.load(cmd.Flags(), a.env); err != nil {
			return err
		}
		if err := s.check(cmd.Flags(), &o); err != nil {
			return err
		}
		if s.accept && o.state.none {
			return errors.New(acceptNeedsState)
		}
		a.out.quiet.Store(o.quiet)
		err := a.serveGateway(cmd.Context(), &o, &s)
		var usage usageError
		switch {
		case errors.As(err, &usage):
			return err
		case err != nil:
			a.out.line(err.Error())
			a.exit = exitPermanent
		}
		return nil
	}
	return cmd
}

// serveGateway listens until the context ends, and then lets requests under way
// go on for a while.
func (a *app) serveGateway(ctx context.Context, o *options, s *serveOptions) error {
	if a.env["GOGC"] == "" {
		debug.SetGCPercent(50) // what a thousand uploads hold is small, and mostly garbage
	}
	m := newGatewayMetrics()
	opts := a.gatewayOptions(o, s.spoolLimit, logrus.InfoLevel)
	opts.OnEvent = m.uploads.Event
	g, err := gateway.New(opts)
	if err != nil {
		return usageError(err.Error())
	}
	so := gateway.ServerOptions{
		Upstream: s.upstream, Registries: s.registries, Allow: s.allow,
		MaxRequests: s.maxRequests, IdleTimeout: s.idleTimeout,
		Connect: func(_ context.Context, registry string) (gateway.Upstream, error) {
			return s.flagsFor(o).gatewayUpstream(registry)
		},
	}
	if s.accept {
		if so.AcceptDir, err = o.state.directory(); err != nil {
			return &localError{"--accept", err}
		}
		so.AcceptLimit = int64(s.spoolLimit)
	}
	if s.signIn {
		so.Keychain = freshKeychain{o.to.authFile}
	}
	if s.htpasswd != "" {
		users, err := newFreshHtpasswd(s.htpasswd, func(err error) { a.out.line(fmt.Sprintf(htpasswdKept, err)) })
		if err != nil {
			return &localError{"--htpasswd", err}
		}
		so.Authenticate = users.check
	}
	ln, err := a.gatewayListener(s.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	local := isLocal(ln.Addr())
	if !local {
		switch {
		case s.certFile == "":
			return usageError(fmt.Sprintf(publicNeeds, ln.Addr(), "--cert-file and --key-file"))
		case s.htpasswd == "":
			return usageError(fmt.Sprintf(publicNeeds, ln.Addr(), "--htpasswd"))
		case s.upstream == "" && len(s.registries) == 0:
			return usageError(fmt.Sprintf(publicNeeds, ln.Addr(), "--upstream or --registry"))
		}
	}
	so.AnyHost = !local || s.htpasswd != ""
	h, err := g.NewServer(so)
	switch {
	case errors.Is(err, gateway.ErrDirInUse):
		return &localError{"--accept", err}
	case err != nil:
		return usageError(err.Error())
	}
	defer h.Close() //nolint:errcheck // the process ends
	srv := &http.Server{
		Handler:           m.around(h, h.Admit),
		ReadHeaderTimeout: s.headerTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          quietLog,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // bodies go over HTTP/1.1
	}
	scheme := "http"
	if s.certFile != "" {
		pair, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
		if err != nil {
			return &localError{"--cert-file", err}
		}
		scheme = "https"
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}
	a.stopWithin.Store(int64(s.stopTimeout + stopWithin))
	a.out.note(servingWords(scheme, ln.Addr().String(), s))
	return stopGracefully(ctx, srv, ln, s.stopTimeout)
}

// stopGracefully serves until the context ends. Whatever is still under way after
// grace is cut off: the registry keeps what it has.
func stopGracefully(ctx context.Context, srv *http.Server, ln net.Listener, grace time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if srv.Shutdown(late) != nil {
		srv.Close()
	}
	return nil
}

// gatewayOptions returns the options of a gateway for the flags of a push's
// connection and effort. usual is what it logs unless the user wants more or less.
func (a *app) gatewayOptions(o *options, spoolLimit rate, usual logrus.Level) gateway.Options {
	po := o.effort()
	level := usual
	switch {
	case o.verbose:
		level = logrus.DebugLevel
	case o.quiet:
		level = logrus.ErrorLevel
	}
	return gateway.Options{
		RetryFor: po.RetryFor, Tries: po.Tries, StallTimeout: po.StallTimeout, AnswerTimeout: po.AnswerTimeout,
		Limit: po.Limit, Dialects: po.Dialects, Store: a.store(o), Logger: a.logger(level),
		SpoolDir: o.image.spoolDir, SpoolLimit: int64(spoolLimit),
	}
}

// gatewayUpstream says how the flags connect to a registry.
func (o *options) gatewayUpstream(registry string) (gateway.Upstream, error) {
	var po pusher.Options
	if err := o.to.apply(&po, registry, nil); err != nil {
		return gateway.Upstream{}, err
	}
	u := gateway.Upstream{URL: &url.URL{Scheme: "https", Host: registry}, TLS: po.TLSClientConfig, MaybePlain: po.Scheme == pusher.SchemeEither}
	if po.Scheme == pusher.SchemeHTTP {
		u.URL.Scheme = "http"
	}
	return u, nil
}

// gatewayListener listens at address, or takes the socket that systemd made.
func (a *app) gatewayListener(address string) (net.Listener, error) {
	if n, err := strconv.Atoi(a.env["LISTEN_FDS"]); err == nil && n > 0 && a.env["LISTEN_PID"] == strconv.Itoa(os.Getpid()) {
		if n > 1 {
			return nil, usageError(oneSocket)
		}
		f := os.NewFile(3, "socket of systemd") // sd_listen_fds(3): the first is 3
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, &localError{"the socket of systemd", err}
		}
		return ln, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &localError{"--listen", err}
	}
	return ln, nil
}

// isLocal reports whether only this machine reaches an address.
func isLocal(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// freshKeychain reads the credentials again each time it is asked: a gateway
// lives longer than many tokens do.
type freshKeychain struct{ file string }

// Resolve implements authn.Keychain.
func (k freshKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return (&credentials.Keychain{File: k.file}).Resolve(r)
}

func servingWords(scheme, addr string, s *serveOptions) string {
	to := "for the registry that a name begins with"
	switch {
	case s.upstream != "":
		to = "for " + s.upstream
	case len(s.registries) > 0:
		to = "for " + strings.Join(s.registries, ", ")
	}
	return fmt.Sprintf("listening at %s://%s %s", scheme, addr, to)
}
