// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/internal/conntrack/remedy"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/selftest"
)

// doctorOptions are the flags of the host check.
type doctorOptions struct {
	watch                    time.Duration
	selfTest, strict         bool
	fix                      string
	apply, persist, undo     bool
	forAdmin                 bool
	output                   string
	quiet, verbose, plainTCP bool
}

func (o *doctorOptions) flags() []flagGroup {
	c := newGroup("Check")
	c.DurationVar(&o.watch, "watch", 0, "measure for `TIME`: best while a push runs")
	c.BoolVar(&o.selfTest, "selftest", false, "rebuild the incident in throwaway namespaces, to see what this kernel does")
	c.BoolVar(&o.plainTCP, "plain-http", false, "a reference without a port means port 80, not 443")
	c.BoolVar(&o.strict, "strict", false, "exit 4 at risk too")
	f := newGroup("Fix")
	f.StringVar(&o.fix, "fix", "", "show how to stop it, by `REMEDY`: drop, a narrow rule, or liberal, a sysctl")
	f.BoolVar(&o.apply, "apply", false, "do it, with --fix or --undo")
	f.BoolVar(&o.persist, "persist", false, "with --fix: also after a reboot")
	f.BoolVar(&o.undo, "undo", false, "show how to take back what --fix did")
	f.BoolVar(&o.forAdmin, "for-admin", false, "print a page for whoever runs the registry's host")
	r := newGroup("Output")
	r.StringVar(&o.output, "output", "text", "print the result as `FORMAT`, text or json")
	r.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing on stderr but errors")
	r.BoolVarP(&o.verbose, "verbose", "v", false, "show every detail, and the command that shows it")
	return []flagGroup{c, f, r}
}

// load takes what no flag has set from the environment, and checks all of it.
func (o *doctorOptions) load(fs *pflag.FlagSet, env map[string]string) error {
	spelled, err := fromEnvironment(fs, env)
	if err != nil {
		return err
	}
	for _, pair := range [][2]string{{"quiet", "verbose"}, {"fix", "undo"}} {
		for i, name := range pair {
			other := pair[1-i]
			if strings.HasPrefix(spelled[name], "--") && spelled[other] == envName(other) {
				f := fs.Lookup(other)
				_ = f.Value.Set(f.DefValue) // a flag wins over a variable; a default is valid
			}
		}
	}
	return o.check()
}

func (o *doctorOptions) check() error {
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("--output is %q, neither text nor json", o.output)
	case o.watch < 0:
		return fmt.Errorf("--watch is %s, a negative time", o.watch)
	case o.fix != "" && o.fix != string(remedy.Drop) && o.fix != string(remedy.Liberal):
		return fmt.Errorf("--fix is %q, neither drop nor liberal", o.fix)
	case o.fix != "" && o.undo:
		return errors.New("--fix and --undo contradict each other")
	case o.apply && o.fix == "" && !o.undo:
		return errors.New("--apply needs --fix or --undo")
	case o.persist && o.fix == "":
		return errors.New("--persist needs --fix")
	case o.forAdmin && (o.fix != "" || o.undo || o.watch > 0 || o.selfTest || o.output == "json"):
		return errors.New("--for-admin prints a page, and does nothing else")
	case o.undo && (o.watch > 0 || o.selfTest):
		return errors.New("--undo takes back, and measures nothing: --watch and --selftest go without it")
	case o.quiet && o.verbose:
		return errors.New("--quiet and --verbose contradict each other")
	}
	return nil
}

func (a *app) doctorCommand() *cobra.Command {
	var o doctorOptions
	groups := o.flags()
	cmd := &cobra.Command{Use: "doctor [REFERENCE]", Short: doctorShort, Args: func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf(tooManyForDoctor, args[1])
		}
		return nil
	}}
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, doctorHelpText(groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.load(cmd.Flags(), a.env); err != nil {
			return err
		}
		var reg *conntrack.Registry
		if len(args) == 1 {
			var err error
			if reg, err = parseRegistry(args[0], o.plainTCP); err != nil {
				return err
			}
		}
		a.exit = a.doctor(cmd.Context(), &o, reg)
		return nil
	}
	return cmd
}

// selfTestCommand is what the self-test calls this program with.
func (a *app) selfTestCommand() *cobra.Command {
	return &cobra.Command{Use: selftest.Command, Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return selftest.Main(cmd.Context(), a.stdout)
	}}
}

// parseRegistry takes a reference, or a host alone, and returns its endpoint.
func parseRegistry(arg string, plain bool) (*conntrack.Registry, error) {
	s := strings.TrimPrefix(arg, "docker://")
	host, rest, path := strings.Cut(s, "/")
	if h, _, ok := strings.Cut(host, ":"); h == "" && (ok || path) {
		return nil, fmt.Errorf(badReference, arg)
	}
	alone := !path && (strings.ContainsAny(host, ".:") || host == "localhost")
	if _, port, ok := strings.Cut(host, ":"); alone && ok {
		if _, err := strconv.ParseUint(strings.TrimPrefix(port[strings.LastIndexByte(port, ':')+1:], ":"), 10, 16); err != nil {
			h := host[:strings.LastIndexByte(host, ':')]
			if strings.Trim(port, "0123456789") == "" && (h == "localhost" || strings.Contains(h, ".")) {
				return nil, fmt.Errorf(badReference, arg) // a host, and no port
			}
			alone = false // name:tag, on Docker Hub
		}
	}
	if alone || path && rest == "" {
		s = host + "/any"
	}
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		return nil, fmt.Errorf(badReference, arg)
	}
	host = ref.Context().RegistryStr()
	port := 443
	if plain {
		port = 80
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf(badReference, arg)
		}
		host, port = h, int(n) //nolint:gosec // of 16 bits
	}
	return &conntrack.Registry{Host: strings.Trim(host, "[]"), Port: port}, nil
}

// doctorDocument is what --output json prints.
type doctorDocument struct {
	*conntrack.Report
	Headline string       `json:"headline"`
	Advice   []string     `json:"advice"`
	Fix      *remedy.Plan `json:"fix,omitempty"`
	Error    string       `json:"error,omitempty"`
	Exit     int          `json:"exit"`
}

func (a *app) doctor(ctx context.Context, o *doctorOptions, reg *conntrack.Registry) int {
	a.out.quiet.Store(o.quiet)
	if o.forAdmin {
		_, err := io.WriteString(a.stdout, adminWords(reg))
		return a.written(err)
	}
	r := conntrack.Examine(ctx, reg)
	var doc doctorDocument
	var failed error
	switch {
	case o.undo:
		doc.Fix, failed = remedy.PlanUndo(ctx)
	case o.fix != "":
		doc.Fix, failed = a.planFix(ctx, o, r)
	}
	if failed == nil && doc.Fix != nil && o.apply {
		if o.fix != "" {
			a.out.lines(doc.Fix.Notes) // what it costs is said before
		}
		if failed = doc.Fix.Apply(context.WithoutCancel(ctx)); failed == nil { // half of it is worse
			r = conntrack.Examine(ctx, reg)
		}
	}
	cut := false
	if failed == nil && o.watch > 0 {
		cut = a.watch(ctx, o, r)
	}
	if failed == nil && o.selfTest && ctx.Err() == nil && r.Where != conntrack.NotLinux {
		a.out.note(selfTestWords)
		r.Tested(selftest.Run(ctx))
	}
	doc.Report, doc.Headline, doc.Advice = r, headline(r), advice(r, o, reg)
	doc.Exit = a.doctorExit(o, &doc, failed)
	var stopped *signalError
	if (cut || ctx.Err() != nil) && errors.As(context.Cause(ctx), &stopped) && r.Verdict != conntrack.Evidence {
		doc.Exit = stopped.exit()
	}
	if failed != nil {
		doc.Error = failed.Error()
		a.out.lines(fixFailedWords(failed))
	}
	if err := a.doctorResult(o, &doc); err != nil {
		return a.written(err)
	}
	return doc.Exit
}

var errNotTold = errors.New("run it on the machine itself")

// planFix has nothing to do where nothing is at risk, or something else
// protects already.
func (a *app) planFix(ctx context.Context, o *doctorOptions, r *conntrack.Report) (*remedy.Plan, error) {
	kind := remedy.Kind(o.fix)
	none := func(note string) (*remedy.Plan, error) {
		return &remedy.Plan{Steps: []remedy.Step{}, Notes: []string{note}}, nil
	}
	if r.Where != conntrack.Here && r.Where != conntrack.Undecided {
		return none(nothingToFix)
	}
	if by := otherProtection(r, kind); by != "" {
		return none(fmt.Sprintf(alreadyProtected, by))
	}
	if r.Where == conntrack.Undecided && o.apply {
		return nil, fmt.Errorf("%s: %w", notToldNotApplied, cmp.Or(r.Unread(), errNotTold))
	}
	p, err := remedy.PlanFix(ctx, kind, r.Ports(), o.persist)
	if err != nil {
		return nil, err
	}
	if len(p.Steps) == 0 {
		p.Notes = append(p.Notes, alreadyFixed)
	} else {
		p.Notes = append(tradeOff(kind), p.Notes...)
	}
	if r.Where == conntrack.Undecided {
		p.Notes = append(p.Notes, notToldNotApplied)
	}
	return p, nil
}

// otherProtection is what protects already and is not the remedy's own doing.
func otherProtection(r *conntrack.Report, kind remedy.Kind) string {
	ours := slices.ContainsFunc(r.Guards, func(g rules.Guard) bool { return g.By == "rpush" && g.Effect == rules.Protects })
	for _, by := range r.Protection {
		liberal := !strings.Contains(by, ":")
		if kind == remedy.Drop && (liberal || !ours) || kind == remedy.Liberal && !liberal {
			return by
		}
	}
	return ""
}

// watch measures, until the time is over or a signal comes. It reports whether
// it was cut short.
func (a *app) watch(ctx context.Context, o *doctorOptions, r *conntrack.Report) bool {
	if r.Where == conntrack.NotLinux {
		return false
	}
	all := context.WithoutCancel(ctx)
	before, err := conntrack.NowWithRules(all, r)
	if err != nil {
		r.NotWatched(fmt.Sprintf(notMeasured, err))
		return false
	}
	a.out.note(watchWords(o.watch))
	t := time.NewTimer(o.watch)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	after, err := conntrack.NowWithRules(all, r)
	if err != nil {
		r.NotWatched(fmt.Sprintf(notMeasured, err))
		return false
	}
	r.Watched(conntrack.Between(before, after))
	return ctx.Err() != nil
}

func (a *app) doctorExit(o *doctorOptions, d *doctorDocument, failed error) int {
	refused := d.Fix != nil && len(d.Fix.Refused) > 0
	switch {
	case failed != nil, refused:
		return exitPermanent
	case o.undo:
		return exitOK
	}
	told := !slices.ContainsFunc(d.Checks, func(c conntrack.Check) bool { return c.Name == "window" && c.Verdict == conntrack.Unknown })
	switch {
	case d.Verdict == conntrack.Evidence:
		return exitFault
	case !told && d.Verdict != conntrack.NotApplicable:
		return exitPermanent // it was asked for
	}
	switch d.Verdict {
	case conntrack.AtRisk:
		if o.strict {
			return exitFault
		}
	case conntrack.Unknown:
		return exitPermanent
	}
	return exitOK
}

func (a *app) doctorResult(o *doctorOptions, d *doctorDocument) error {
	if o.output == "json" {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	var text string
	switch {
	case d.Fix != nil && !d.Fix.Applied:
		text = planWords(d.Fix, o)
	case d.Fix != nil:
		text = appliedWords(d.Fix, o)
	}
	if !o.undo && d.Error == "" && (d.Fix == nil || d.Fix.Applied) {
		terminal := isTerminal(a.stdout)
		text += doctorWords(d, o.verbose, terminal && a.env["NO_COLOR"] == "", terminal)
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// hostResets compares the counters around a push that broke: 0 unless this
// host sent resets the way of the incident.
func hostResets(before conntrack.Sample, broke bool) uint64 {
	if !broke || before.At.IsZero() {
		return 0
	}
	after, err := conntrack.Now()
	if err != nil {
		return 0
	}
	if w := conntrack.Between(before, after); w.Moved == conntrack.Resets {
		return w.OutRsts
	}
	return 0
}
