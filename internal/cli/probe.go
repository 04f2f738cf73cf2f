// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

func (a *app) probeCommand() *cobra.Command {
	var o options
	groups := o.probeFlags()
	cmd := &cobra.Command{Use: "probe REPOSITORY", Short: probeShort, Args: func(_ *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return errors.New(noRepository)
		case 1:
			return nil
		default:
			return fmt.Errorf(tooManyArguments, args[1])
		}
	}}
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, helpText(probeHelp, groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.load(cmd.Flags(), a.env); err != nil {
			return err
		}
		repo, err := name.NewRepository(strings.TrimPrefix(args[0], "docker://"), name.WeakValidation)
		if err != nil {
			return fmt.Errorf(badRepository, args[0])
		}
		a.exit = a.probe(cmd.Context(), &o, repo)
		return nil
	}
	return cmd
}

// probeFor is how long a probe may take without --deadline.
const probeFor = time.Minute

// errProbeLimit is the cause of a context that ended after that time.
var errProbeLimit = fmt.Errorf("%w: the probe took longer than a minute", resume.ErrInterrupted)

// probe says what it will do, does it, and says what came of it.
func (a *app) probe(ctx context.Context, o *options, repo name.Repository) int {
	a.out.quiet.Store(o.quiet)
	ctx, cancel := o.bound(ctx)
	defer cancel()
	if o.limit <= 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, a.probeFor, errProbeLimit)
		defer cancel()
	}
	x := a.connect(o, repo.RegistryStr(), name.Repository{})
	p, err := inTime(ctx, func() (*resume.Probe, error) { return a.probed(ctx, o, repo, x) })
	if p == nil {
		p = &resume.Probe{}
	}
	if p.Steps == nil {
		p.Steps = []resume.ProbeStep{}
	}
	var f *failure
	if err != nil {
		f = explain(err, scene{
			probe: true, host: repo.RegistryStr(), report: &pusher.Report{}, cause: context.Cause(ctx),
			from: func() string { return x.keys(asTarget).From(repo) },
		})
		a.out.lines(f.lines)
	}
	if err := a.probeResult(o, repo, p, f); err != nil {
		return a.written(err)
	}
	switch {
	case f != nil:
		return f.Exit
	case o.strict && !continues(p.Class):
		return exitFault
	}
	return exitOK
}

func (a *app) probed(ctx context.Context, o *options, repo name.Repository, x *connections) (*resume.Probe, error) {
	if err := x.readPasswords(); err != nil {
		return nil, err
	}
	po, err := x.options(repo, asTarget)
	if err != nil {
		return nil, err
	}
	progress := newProgress(a.out, nil)
	defer progress.start()()
	po.OnEvent, po.Store = progress.event, resume.NoStore()
	pr, err := pusher.New(po)
	if err != nil {
		return nil, err
	}
	a.out.note(probingWords(repo))
	progress.doing("probing " + repo.Name())
	return pr.Probe(ctx, repo)
}

// continues reports whether a broken upload can go on where it stood, at least
// at the last whole request.
func continues(c resume.Class) bool { return c == resume.Exact || c == resume.Boundary }

func (a *app) probeResult(o *options, repo name.Repository, p *resume.Probe, f *failure) error {
	if o.output == "json" {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Repository string `json:"repository"`
			*resume.Probe
			Cures []string `json:"cures,omitempty"`
			Error *failure `json:"error,omitempty"`
		}{repo.Name(), p, cures(p.Class), f})
	}
	if f != nil && len(p.Steps) == 0 {
		return nil
	}
	_, err := io.WriteString(a.stdout, probeWords(repo, p))
	return err
}
