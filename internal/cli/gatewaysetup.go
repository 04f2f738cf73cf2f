// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rpush-go/rpush/internal/gateway/setup"
	"github.com/rpush-go/rpush/resume"
)

// setupOptions are the flags of gateway setup.
type setupOptions struct {
	gateway, root        string
	several, apply, undo bool
}

func (s *setupOptions) flags() []flagGroup {
	g := newGroup("Flags")
	g.StringVar(&s.gateway, "gateway", setup.DefaultGateway, "clients reach the gateway at `URL`")
	g.BoolVar(&s.several, "several", false, "the gateway runs without --upstream: names begin with the registry")
	g.BoolVar(&s.apply, "apply", false, "do it; without this nothing is changed")
	g.BoolVar(&s.undo, "undo", false, "take back what was set up, exactly; prints it without --apply")
	g.StringVar(&s.root, "root", "", "the system is below `DIR`")
	_ = g.MarkHidden("root") // for tests and images that are not running
	return []flagGroup{g}
}

func (a *app) setupCommand() *cobra.Command {
	var s setupOptions
	groups := s.flags()
	cmd := &cobra.Command{Use: "setup", Short: setupShort, Args: func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0 || !slices.Contains(setup.Clients, setup.Client(args[0])):
			return errors.New(setupWhich)
		case len(args) > 2:
			return fmt.Errorf(setupTooMany, args[2])
		}
		return nil
	}}
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.FlagSet)
	}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, helpText(setupHelp, groups))
		a.exit = a.written(err)
	})
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		o, err := s.options(args, a.env)
		if err != nil {
			return err
		}
		return a.setUp(&s, o)
	}
	return cmd
}

// options are those of package setup.
func (s *setupOptions) options(args []string, env map[string]string) (setup.Options, error) {
	o := setup.Options{Client: setup.Client(args[0]), Gateway: s.gateway, Several: s.several, Root: s.root}
	if len(args) == 2 {
		o.Registry = strings.TrimPrefix(args[1], "docker://")
	}
	if os.Geteuid() <= 0 || o.Client == setup.Kaniko { // -1 on Windows
		return o, nil
	}
	if o.Config = env["XDG_CONFIG_HOME"]; o.Config == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return o, err
		}
		o.Config = filepath.Join(home, ".config")
	}
	var err error
	o.State, err = resume.StateDir()
	return o, err
}

// setUp prints a plan, which can be fed to a shell, or carries it out.
func (a *app) setUp(s *setupOptions, o setup.Options) error {
	plan, err := setup.Fix, error(nil)
	if s.undo {
		plan = setup.Undo
	}
	p, err := plan(o)
	if err == nil && s.apply && o.Client == setup.Kaniko {
		err = setup.ErrNoFile
	}
	switch {
	case errors.Is(err, setup.ErrRecord):
		a.out.line(err.Error())
		a.exit = exitPermanent
		return nil
	case errors.Is(err, setup.ErrNoRegistry):
		return usageError(fmt.Sprintf(setupNoRegistry, o.Client))
	case err != nil:
		return usageError(err.Error())
	}
	if s.apply {
		if err := p.Apply(); err != nil {
			a.out.line(err.Error())
			if errors.Is(err, fs.ErrPermission) {
				a.out.line(hint(fmt.Sprintf(setupNeedsRoot, o.Client)))
			}
			a.exit = exitPermanent
			return nil
		}
	}
	if len(p.Refused) > 0 {
		a.exit = exitPermanent
	}
	_, err = io.WriteString(a.stdout, setupWords(p, s))
	if err != nil {
		a.exit = a.written(err)
	}
	return nil
}

// setupWords is a plan, or what became of it.
func setupWords(p *setup.Plan, s *setupOptions) string {
	var b strings.Builder
	comment := func(prefix, text string) {
		for line := range strings.Lines(text) {
			fmt.Fprintf(&b, "%s%s\n", prefix, clean(strings.TrimSuffix(line, "\n")))
			prefix = "#   "
		}
	}
	for _, n := range p.Refused {
		comment("# refused: ", n)
	}
	for _, step := range p.Steps {
		if s.apply {
			comment("# done: ", step.What)
			continue
		}
		comment("# ", step.What)
		for line := range strings.Lines(step.Command) {
			fmt.Fprintf(&b, "%s\n", clean(strings.TrimSuffix(line, "\n")))
		}
	}
	for _, n := range p.Notes {
		comment("# ", n)
	}
	if len(p.Steps) > 0 && !s.apply {
		b.WriteString(setupNotApplied)
	}
	if len(p.Use) > 0 {
		b.WriteString(setupUse)
		for _, u := range p.Use {
			comment("#   ", u)
		}
	}
	return b.String()
}
