// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// options are the flags of a push.
type options struct {
	to, from endpoint
	image    imageFlags

	parallel                                     int
	retryFor, stallTimeout, answerTimeout, limit time.Duration

	cacheDir   string
	state      state
	alive, all bool
	registry   string // whose uploads sessions is about
	engine     engineOptions
	layers     layerOptions

	output              string
	pushes              bool   // of a push, whose output may also be docker's
	progress, logFormat string // empty is the default
	report              string // the file of --report
	metricsFile         string
	quiet, verbose      bool
	strict              bool

	spelled map[string]string // how the user set a flag: "--quiet", "RPUSH_QUIET"
}

// flagGroup is a part of the help.
type flagGroup struct {
	*pflag.FlagSet
	title string
	brief bool // only the names are in the help
}

func newGroup(title string) flagGroup {
	f := flagGroup{FlagSet: pflag.NewFlagSet(title, pflag.ContinueOnError), title: title}
	f.SortFlags = false
	return f
}

// pushFlags are those of a push.
func (o *options) pushFlags() []flagGroup {
	o.pushes = true
	out := o.outputFlags()
	out.StringVar(&o.progress, "progress", "", "show it as `HOW`: auto, tty, plain, json, quiet")
	out.StringVar(&o.logFormat, "log-format", "", "print stderr as `FORMAT`: text or json")
	out.StringVar(&o.report, "report", "", "write an HTML page about breaks to `FILE`")
	o.telemetryFlags(out.FlagSet)
	e := o.effortFlags()
	e.IntVar(&o.parallel, "parallel", pusher.DefaultParallel, "upload `N` blobs at once, 1 to 64")
	return []flagGroup{
		o.imageFlags(), o.engine.flags(), o.signInFlags(), o.connectionFlags(), o.sourceFlags(), e, o.stateFlags(), out, o.otherFlags(),
	}
}

// sessionsFlags are those of the verb sessions. What only list or forget takes
// is returned apart.
func (o *options) sessionsFlags() (common []flagGroup, list, forget flagGroup) {
	o.parallel, o.retryFor, o.image.retryTimes, o.image.noContentTrust = pusher.DefaultParallel, 0, -1, true
	o.stallTimeout, o.answerTimeout = resume.DefaultStallTimeout, resume.DefaultAnswerTimeout
	s := newGroup("State")
	o.state.flags(s.FlagSet)
	list = newGroup("List")
	list.BoolVar(&o.alive, "check", false, "ask the registries whether the sessions are alive")
	list.StringVar(&o.registry, "registry", "", atRegistryUsage)
	forget = newGroup("Forget")
	forget.StringVar(&o.registry, "registry", "", atRegistryUsage)
	forget.BoolVar(&o.all, "all", false, "all of them")
	c := newGroup("Connection")
	c.BoolVar(&o.to.plainHTTP, "plain-http", false, "also use HTTP, for uploads of a push with --plain-http")
	o.to.trustFlags(c.FlagSet)
	return []flagGroup{s, c, o.outputFlags()}, list, forget
}

const atRegistryUsage = "only uploads to `REGISTRY`"

// stateFlags say where open uploads are kept.
func (o *options) stateFlags() flagGroup {
	s := newGroup("State")
	o.state.flags(s.FlagSet)
	s.BoolVar(&o.state.none, "no-state", false, "keep nothing: a push that is killed starts again")
	return s
}

// probeFlags are those of a probe.
func (o *options) probeFlags() []flagGroup {
	o.parallel, o.image.noContentTrust = pusher.DefaultParallel, true
	r := o.outputFlags()
	r.BoolVar(&o.strict, "strict", false, "exit 4 if the registry cannot continue an upload")
	return []flagGroup{o.signInFlags(), o.connectionFlags(), o.effortFlags(), r}
}

func (o *options) connectionFlags() flagGroup {
	c := newGroup("Connection")
	o.to.tlsFlags(c.FlagSet)
	c.Var(&o.image.limitRate, "limit-rate", "send at most `RATE` bytes a second: 500K, 20M")
	return c
}

func (o *options) effortFlags() flagGroup {
	e := o.requestFlags()
	e.DurationVar(&o.limit, "deadline", 0, "end after `TIME` in any case; 0: no limit")
	return e
}

// requestFlags say how long and how often a request is tried, and where what
// that teaches is kept.
func (o *options) requestFlags() flagGroup {
	e := newGroup("Effort")
	e.DurationVar(&o.retryFor, "retry-for", resume.DefaultRetryFor, "give up after `TIME` without progress; 0: one try")
	e.IntVar(&o.image.retryTimes, "retry-times", -1, "give up after `N` retries without progress")
	e.DurationVar(&o.stallTimeout, "stall-timeout", resume.DefaultStallTimeout, "try again after `TIME` without a byte sent")
	e.DurationVar(&o.answerTimeout, "answer-timeout", resume.DefaultAnswerTimeout, "wait `TIME` for the answer to a sent body")
	e.StringVar(&o.cacheDir, "cache-dir", "", "keep what rpush learns in `DIR`")
	return e
}

func (o *options) outputFlags() flagGroup {
	r := newGroup("Output")
	usage := "result as `FORMAT`: text or json"
	if o.pushes {
		usage = "result as `FORMAT`: text, json or docker"
	}
	r.StringVar(&o.output, "output", "text", usage)
	o.logFlags(r.FlagSet)
	return r
}

// telemetryFlags say where metrics go.
func (o *options) telemetryFlags(f *pflag.FlagSet) {
	f.StringVar(&o.metricsFile, "metrics-file", "", "add metrics for Prometheus to `FILE`")
}

// logFlags say how much goes to stderr.
func (o *options) logFlags(f *pflag.FlagSet) {
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only errors on stderr")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log every request to stderr")
}

// envName is the variable that stands for a flag.
func envName(flag string) string {
	return "RPUSH_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// load takes what no flag has set from the environment, where an empty
// variable is as good as none, and checks all of it.
func (o *options) load(fs *pflag.FlagSet, env map[string]string) error {
	o.to.spelled = func(flag string) string { return o.spelled[flag] }
	o.from.spelled = o.to.spelled
	o.state.key = env[stateKeyVariable]
	var err error
	if o.spelled, err = fromEnvironment(fs, env); err != nil {
		return err
	}
	for _, c := range o.contradictions() {
		a, b := o.spelled[c.a], o.spelled[c.b]
		switch {
		case !c.both || rank(a) == rank(b):
		case rank(a) == rankFixed:
			return fmt.Errorf(contradictsFixed, b, strings.TrimSuffix(a, fixedSuffix))
		case rank(b) == rankFixed:
			return fmt.Errorf(contradictsFixed, a, strings.TrimSuffix(b, fixedSuffix))
		case rank(a) > rank(b):
			o.unset(fs, c.b)
		default:
			o.unset(fs, c.a)
		}
	}
	o.to.ownCA = strings.Contains(o.spelled["ca-file"], " of ")
	return o.check()
}

const (
	rankFixed        = 3
	fixedSuffix      = ", fixed"
	contradictsFixed = "%s cannot be used: it contradicts %s, which is fixed"
)

// rank orders how a flag may be set: a configuration file, a variable, the flag,
// an administrator.
func rank(spelled string) int {
	switch {
	case strings.HasSuffix(spelled, fixedSuffix):
		return rankFixed
	case strings.HasPrefix(spelled, "-"):
		return 2
	case strings.HasPrefix(spelled, "RPUSH_"):
		return 1
	}
	return 0
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
		case value == "" && len(f.Annotations[configOrigin]) > 0:
			spelled[f.Name] = f.Annotations[configOrigin][0]
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
	return append(slices.Concat(o.to.contradictions(), o.from.contradictions(), o.image.contradictions(), o.state.contradictions()), []contradiction{
		{o.quiet && o.verbose, "quiet", "verbose"},
		{o.layers.compression == "zstd" && o.layers.format == "v2s2", "compression", "format"},
		{o.engine.host != "" && o.engine.context != "", "docker-host", "docker-context"},
		{o.image.preserveDigests && o.layers.format != "", "preserve-digests", "format"},
	}...)
}

func (o *options) check() error {
	for _, c := range o.contradictions() {
		if c.both {
			return fmt.Errorf("%s and %s contradict each other", o.spelled[c.a], o.spelled[c.b])
		}
	}

	for _, check := range []func() error{o.to.check, o.from.check, o.image.check} {
		if err := check(); err != nil {
			return err
		}
	}
	if o.to.passwordStdin && o.from.passwordStdin {
		return errors.New(oneStdin)
	}
	if o.parallel < 1 || o.parallel > 64 {
		return fmt.Errorf("%s is %d, not 1 to 64", o.spelled["parallel"], o.parallel)
	}
	if err := o.checkOutput(); err != nil {
		return err
	}
	if err := o.checkProgress(); err != nil {
		return err
	}
	if err := o.layers.check(o.spelled); err != nil {
		return err
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
	return o.state.check(o.spelled)
}

// checkOutput takes docker's output for a push only. A variable may be set for
// other commands.
func (o *options) checkOutput() error {
	switch {
	case o.output == "text", o.output == "json", o.output == "docker" && o.pushes:
		return nil
	case o.output == "docker" && o.spelled["output"] != "--output":
		o.output = "text"
		return nil
	case o.pushes:
		return fmt.Errorf("%s is %q, none of text, json and docker", o.spelled["output"], o.output)
	}
	return fmt.Errorf("%s is %q, neither text nor json", o.spelled["output"], o.output)
}

// effort returns the library's options that are the same for every registry.
func (o *options) effort() pusher.Options {
	p := pusher.Options{
		Parallel:      o.parallel,
		RetryFor:      o.retryFor,
		StallTimeout:  o.stallTimeout,
		AnswerTimeout: o.answerTimeout,
		UserAgent:     userAgent(),
		Limit:         int64(o.image.limitRate),
	}
	if o.retryFor == 0 {
		p.RetryFor = -1 // 0 is the library's default
	}
	if o.image.retryTimes >= 0 {
		p.Tries = o.image.retryTimes + 1
	}
	if o.state.shared != nil {
		p.Dialects = o.state.shared.Dialects()
	} else if dir := o.cache(); dir != "" { // without a home it is learned again each time
		if own, err := owndir.Make(dir, owndir.Known); err == nil {
			p.Dialects = resume.FileDialects(filepath.Join(own, "registries.json"))
		}
	}
	return p
}

// cache is the directory for what need not be kept, empty if there is none.
func (o *options) cache() string {
	if user, err := os.UserCacheDir(); o.cacheDir == "" && err == nil {
		return filepath.Join(user, "rpush")
	}
	return o.cacheDir
}

// localError is about a setting on this machine, neither source nor registry.
type localError struct {
	what string
	err  error
}

func (e *localError) Error() string { return e.what + ": " + e.err.Error() }
func (e *localError) Unwrap() error { return e.err }
