package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// options are the flags of a push.
type options struct {
	plainHTTP, tlsVerify, insecure bool
	caFile                         string

	parallel                                     int
	retryFor, stallTimeout, answerTimeout, limit time.Duration

	cacheDir, stateDir string
	noState            bool
	alive, all         bool

	output         string
	quiet, verbose bool
	strict         bool

	spelled map[string]string // how the user set a flag: "--quiet", "RPUSH_QUIET"
}

// flagGroup is a part of the help.
type flagGroup struct {
	*pflag.FlagSet
	title string
}

func newGroup(title string) flagGroup {
	f := flagGroup{pflag.NewFlagSet(title, pflag.ContinueOnError), title}
	f.SortFlags = false
	return f
}

// pushFlags are those of a push.
func (o *options) pushFlags() []flagGroup {
	e := o.effortFlags()
	e.IntVar(&o.parallel, "parallel", pusher.DefaultParallel, "upload `N` blobs at once, 1 to 64")
	return []flagGroup{o.connectionFlags(), e, o.stateFlags(), o.outputFlags()}
}

// sessionsFlags are those of the verb sessions. What only list or forget takes
// is returned apart.
func (o *options) sessionsFlags() (common []flagGroup, list, forget flagGroup) {
	o.parallel, o.retryFor = pusher.DefaultParallel, 0
	o.stallTimeout, o.answerTimeout = resume.DefaultStallTimeout, resume.DefaultAnswerTimeout
	s := newGroup("State")
	s.StringVar(&o.stateDir, "state-dir", "", stateDirUsage)
	list = newGroup("List")
	list.BoolVar(&o.alive, "check", false, "ask the registries whether the sessions are alive")
	forget = newGroup("Forget")
	forget.BoolVar(&o.all, "all", false, "all of them")
	c := newGroup("Connection")
	c.StringVar(&o.caFile, "ca-file", "", "trust the PEM certificates in `FILE` too")
	c.BoolVar(&o.tlsVerify, "tls-verify", true, "check the registry's certificate")
	return []flagGroup{s, c, o.outputFlags()}, list, forget
}

const stateDirUsage = "keep open uploads in `DIR`, not in the user's state directory"

// stateFlags say where open uploads are kept.
func (o *options) stateFlags() flagGroup {
	s := newGroup("State")
	s.StringVar(&o.stateDir, "state-dir", "", stateDirUsage)
	s.BoolVar(&o.noState, "no-state", false, "keep nothing: a push that is killed starts again")
	return s
}

// probeFlags are those of a probe.
func (o *options) probeFlags() []flagGroup {
	o.parallel = pusher.DefaultParallel
	r := o.outputFlags()
	r.BoolVar(&o.strict, "strict", false, "exit 4 where the registry cannot continue an upload")
	return []flagGroup{o.connectionFlags(), o.effortFlags(), r}
}

func (o *options) connectionFlags() flagGroup {
	c := newGroup("Connection")
	c.StringVar(&o.caFile, "ca-file", "", "trust the PEM certificates in `FILE` too")
	c.BoolVar(&o.plainHTTP, "plain-http", false, "speak HTTP, never HTTPS")
	c.BoolVar(&o.tlsVerify, "tls-verify", true, "check the registry's certificate")
	c.BoolVar(&o.insecure, "insecure", false, "do not check it, and take HTTP where there is no HTTPS")

	return c
}

func (o *options) effortFlags() flagGroup {
	e := newGroup("Effort")
	e.DurationVar(&o.retryFor, "retry-for", resume.DefaultRetryFor, "give up after `TIME` without progress; 0: one try")
	e.DurationVar(&o.stallTimeout, "stall-timeout", resume.DefaultStallTimeout, "try again after `TIME` without a byte sent")
	e.DurationVar(&o.answerTimeout, "answer-timeout", resume.DefaultAnswerTimeout, "wait `TIME` for the answer to a sent body")
	e.DurationVar(&o.limit, "deadline", 0, "end after `TIME` in any case; 0: no limit")
	e.StringVar(&o.cacheDir, "cache-dir", "", "keep what is learnt about registries in `DIR`, not in the user's cache")
	return e
}

func (o *options) outputFlags() flagGroup {
	r := newGroup("Output")
	r.StringVar(&o.output, "output", "text", "print the result as `FORMAT`, text or json")
	r.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing on stderr but errors")
	r.BoolVarP(&o.verbose, "verbose", "v", false, "log every request to stderr")
	return r
}

// envName is the variable that stands for a flag.
func envName(flag string) string {
	return "RPUSH_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// load takes what no flag has set from the environment, where an empty
// variable is as good as none, and checks all of it.
func (o *options) load(fs *pflag.FlagSet, env map[string]string) error {
	var err error
	if o.spelled, err = fromEnvironment(fs, env); err != nil {
		return err
	}
	for _, c := range o.contradictions() {
		a, b := o.spelled[c.a], o.spelled[c.b]
		switch fromFlag := strings.HasPrefix(a, "-"); {
		case !c.both || fromFlag == strings.HasPrefix(b, "-"):
		case fromFlag:
			o.unset(fs, c.b)
		default:
			o.unset(fs, c.a)
		}
	}
	return o.check()
}

// fromEnvironment sets the flags that only have a variable, and returns how the
// user set each.
func fromEnvironment(fs *pflag.FlagSet, env map[string]string) (spelled map[string]string, err error) {
	spelled = map[string]string{}
	fs.VisitAll(func(f *pflag.Flag) {
		value := env[envName(f.Name)]
		switch {
		case f.Changed:
			spelled[f.Name] = "--" + f.Name
		case f.Name == "help" || f.Name == "version" || value == "" || err != nil:
		default:
			spelled[f.Name] = envName(f.Name)
			if e := f.Value.Set(value); e != nil {
				err = fmt.Errorf("invalid value %q of %s: %w", value, envName(f.Name), e)
			}
		}
	})
	return spelled, err
}

// unset takes back what a variable said, since a flag says otherwise.
func (o *options) unset(fs *pflag.FlagSet, flag string) {
	f := fs.Lookup(flag)
	_ = f.Value.Set(f.DefValue) // a default is valid
	delete(o.spelled, flag)
}

// contradiction is two flags that cannot both hold.
type contradiction struct {
	both bool
	a, b string
}

func (o *options) contradictions() []contradiction {
	noVerify := o.spelled["tls-verify"] != "" && !o.tlsVerify
	verify := o.spelled["tls-verify"] != "" && o.tlsVerify
	return []contradiction{
		{o.plainHTTP && o.insecure, "plain-http", "insecure"},
		{verify && o.insecure, "tls-verify", "insecure"},
		{o.caFile != "" && o.insecure, "ca-file", "insecure"},
		{o.caFile != "" && noVerify, "ca-file", "tls-verify"},
		{o.quiet && o.verbose, "quiet", "verbose"},
		{o.noState && o.stateDir != "", "no-state", "state-dir"},
	}
}

func (o *options) check() error {
	for _, c := range o.contradictions() {
		if c.both {
			return fmt.Errorf("%s and %s contradict each other", o.spelled[c.a], o.spelled[c.b])
		}
	}

	if o.parallel < 1 || o.parallel > 64 {
		return fmt.Errorf("%s is %d, not 1 to 64", o.spelled["parallel"], o.parallel)
	}
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("%s is %q, neither text nor json", o.spelled["output"], o.output)
	}
	for _, d := range []struct {
		flag       string
		value, min time.Duration
	}{
		{"retry-for", o.retryFor, 0},
		{"stall-timeout", o.stallTimeout, 1},
		{"answer-timeout", o.answerTimeout, 1},
		{"deadline", o.limit, 0},
	} {
		switch {
		case d.value >= d.min:
		case d.min == 0:
			return fmt.Errorf("%s is %s, a negative time", o.spelled[d.flag], d.value)
		default:
			return fmt.Errorf("%s is %s, not a positive time", o.spelled[d.flag], d.value)
		}
	}
	return nil
}

// pusher returns the options of the library; the caller adds the rest. It
// reads the CA file.
func (o *options) pusher() (pusher.Options, error) {
	p := pusher.Options{
		Parallel:      o.parallel,
		RetryFor:      o.retryFor,
		StallTimeout:  o.stallTimeout,
		AnswerTimeout: o.answerTimeout,
		UserAgent:     userAgent(),
	}
	if o.retryFor == 0 {
		p.RetryFor = -1 // 0 is the library's default
	}
	dir := o.cacheDir
	if user, err := os.UserCacheDir(); dir == "" && err == nil {
		dir = filepath.Join(user, "rpush")
	}
	if dir != "" { // without a home it is learnt anew each time
		p.Dialects = resume.FileDialects(filepath.Join(dir, "registries.json"))
	}
	switch {
	case o.plainHTTP:
		p.Scheme = pusher.SchemeHTTP
	case o.insecure:
		p.Scheme = pusher.SchemeEither
	}
	if o.insecure || !o.tlsVerify {
		p.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for
	}
	if o.caFile != "" {
		pool, err := loadCAs(o.caFile)
		if err != nil {
			return p, &localError{fmt.Sprintf("%s=%s", o.spelled["ca-file"], o.caFile), err}
		}
		p.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return p, nil
}

func loadCAs(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no PEM certificate in it")
	}
	return pool, nil
}

// localError is about a setting on this machine, neither source nor registry.
type localError struct {
	what string
	err  error
}

func (e *localError) Error() string { return e.what + ": " + e.err.Error() }
func (e *localError) Unwrap() error { return e.err }
