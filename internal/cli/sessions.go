// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// kept is an upload of which a record is kept, for people and programs. The
// location is left out: it may be a credential.
type kept struct {
	Reference  string    `json:"reference,omitempty"`
	Repository string    `json:"repository"`
	Digest     string    `json:"digest"`
	Offset     int64     `json:"offset"`
	Size       int64     `json:"size"`
	Opened     time.Time `json:"opened"`
	Updated    time.Time `json:"updated"`
	Expires    time.Time `json:"expires"`
	Expired    bool      `json:"expired"`
	// Alive is what the registry says, where it was asked and answered.
	Alive *bool `json:"alive,omitempty"`
	// Uploading: a push has it at this moment. Only where it was to be asked.
	Uploading bool `json:"uploading,omitempty"`
	// Holder is who has it, where machines share the store.
	Holder string `json:"holder,omitempty"`
	Error  string `json:"error,omitempty"`

	record resume.Record
}

func newKept(r resume.Record, now time.Time) *kept {
	return &kept{
		Reference: r.Reference, Repository: r.Name(), Digest: r.Digest.String(), Offset: r.Offset, Size: r.Size,
		Opened: r.Opened, Updated: r.Updated, Expires: r.Opened.Add(resume.RecordsFor), Expired: r.Expired(now), record: r,
	}
}

func (a *app) sessionsCommand() *cobra.Command {
	var o options
	common, listFlags, forgetFlags := o.sessionsFlags()
	verb := func(use, short string, run func(ctx context.Context, store sessionStore, args []string) (int, error), own ...flagGroup) *cobra.Command {
		cmd := &cobra.Command{Use: use, Short: short}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := o.load(cmd.Flags(), a.env); err != nil {
				return err
			}
			a.out.quiet.Store(o.quiet)
			store, err := o.state.sessionStore()
			if err != nil {
				a.out.line(noStateWords(err))
				a.exit = exitPermanent
				return nil
			}
			a.exit, err = run(cmd.Context(), store, args)
			return err
		}
		for _, g := range slices.Concat(common, own) {
			cmd.Flags().AddFlagSet(g.FlagSet)
		}
		return cmd
	}
	list := func(ctx context.Context, s sessionStore, args []string) (int, error) {
		if len(args) > 0 {
			return 0, fmt.Errorf(noSessionsVerb, args[0])
		}
		return a.listSessions(ctx, &o, s)
	}
	cmd := verb("sessions", sessionsShort, list, listFlags)
	cmd.Args = cobra.ArbitraryArgs // list says what is wrong with them
	cmd.AddCommand(verb("list", sessionsShort, list, listFlags),
		verb("forget DIGEST|REFERENCE", forgetShort, func(ctx context.Context, s sessionStore, args []string) (int, error) {
			return a.forgetSessions(ctx, &o, s, args)
		}, forgetFlags),
		verb("prune", pruneShort, func(_ context.Context, s sessionStore, args []string) (int, error) {
			if len(args) > 0 {
				return 0, fmt.Errorf(noArgument, args[0])
			}
			return a.pruneSessions(&o, s), nil
		}))
	all := []flagGroup{listFlags, forgetFlags}
	cmd.SetHelpFunc(func(*cobra.Command, []string) {
		_, err := io.WriteString(a.stdout, helpText(sessionsHelp, append(all, common...)))
		a.exit = a.written(err)
	})
	return cmd
}

func (a *app) listSessions(ctx context.Context, o *options, store sessionStore) (int, error) {
	records, holders, err := store.records(ctx)
	if err != nil {
		a.out.line(noStateWords(err))
		return exitPermanent, nil
	}
	if records, err = o.atRegistry(records); err != nil {
		return 0, err
	}
	all := []*kept{} // a list, also where it is empty
	for _, r := range records {
		k := newKept(r, time.Now())
		k.Holder = holders[r.Key]
		all = append(all, k)
	}
	if o.alive {
		about, err := o.aboutRegistry(records)
		if err != nil {
			return 0, err
		}
		a.checkAll(ctx, o, about, store, all)
	}
	if code := stopped(ctx); code != exitOK {
		return code, nil
	}
	if o.output == "json" {
		return a.written(a.json(map[string]any{"sessions": all})), nil
	}
	if len(all) == 0 {
		a.out.note(nothingKept)
		return exitOK, nil
	}
	return a.written(writeTable(a.stdout, all)), nil
}

// atRegistry leaves the records of the registry that --registry names, if it
// names one.
func (o *options) atRegistry(all []resume.Record) ([]resume.Record, error) {
	if o.registry == "" {
		return all, nil
	}
	reg, err := name.NewRegistry(o.registry, name.WeakValidation)
	if err != nil {
		return nil, fmt.Errorf(badRegistry, o.spelled["registry"], o.registry)
	}
	return slices.DeleteFunc(all, func(r resume.Record) bool { return registryOf(r) != reg.RegistryStr() }), nil
}

// aboutRegistry is the registry that the flags about connections are for: the
// one that all records are at. If there are several, a flag about one of them is
// an error, and a variable, which may be set for other calls, is for none.
func (o *options) aboutRegistry(all []resume.Record) (string, error) {
	var registries []string
	for _, r := range all {
		if at := registryOf(r); !slices.Contains(registries, at) {
			registries = append(registries, at)
		}
	}
	if len(registries) == 1 {
		return registries[0], nil
	}
	for _, flag := range []string{"plain-http", "tls-verify", "cert-file", "key-file", "cert-dir"} {
		if len(registries) > 1 && o.spelled[flag] == "--"+flag {
			return "", fmt.Errorf(severalAsked, o.spelled[flag], len(registries))
		}
	}
	return "", nil
}

// registryOf is the registry of a record, as references have it.
func registryOf(r resume.Record) string {
	repo, err := name.NewRepository(r.Name(), name.WeakValidation)
	if err != nil {
		return r.Registry
	}
	return repo.RegistryStr()
}

// checkAll asks several registries at once. One that does not answer is not
// asked again.
func (a *app) checkAll(ctx context.Context, o *options, about string, store sessionStore, all []*kept) {
	var silent sync.Map
	var eg errgroup.Group
	eg.SetLimit(8)
	for _, k := range all {
		eg.Go(func() error {
			if err, ok := silent.Load(k.record.Registry); ok {
				k.Error = err.(string)
				return nil
			}
			err := a.checkOne(ctx, o, about, store, k)
			if err != nil {
				k.Error = clean(err.Error())
			}
			if errors.Is(err, resume.ErrInterrupted) {
				silent.Store(k.record.Registry, k.Error)
			}
			return nil
		})
	}
	_ = eg.Wait() // errors are in the list
}

// checkOne asks about one. What a push is uploading just now is left alone:
// some registries do not answer for it.
func (a *app) checkOne(ctx context.Context, o *options, about string, store sessionStore, k *kept) (err error) {
	lease, err := store.Reserve(ctx, k.record.Key)
	if errors.Is(err, resume.ErrHeld) {
		k.Uploading = true
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lease.Release(context.WithoutCancel(ctx))) }()
	return a.asks(ctx, o, about, k.record, func(ctx context.Context, p *pusher.Pusher) error {
		offset, alive, err := p.Check(ctx, k.record)
		if err == nil {
			k.Alive = &alive
		}
		if alive {
			k.Offset = offset
		}
		return err
	})
}

// stopped is the exit code of a verb whose context a signal has ended.
func stopped(ctx context.Context) int {
	var s *signalError
	if errors.As(context.Cause(ctx), &s) {
		return s.exit()
	}
	return exitOK
}

func (a *app) json(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func writeTable(w io.Writer, all []*kept) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, err := fmt.Fprint(t, "REFERENCE\tDIGEST\tOFFSET\tAGE\tSTATE\n")
	for _, k := range all {
		if err == nil {
			_, err = fmt.Fprintf(t, "%s\t%s\t%s of %s\t%s\t%s\n", clean(k.place()), shortDigest(k.record.Digest),
				bytesWords(k.Offset), bytesWords(k.Size), durationWords(max(time.Since(k.Opened), 0).Round(time.Second)), clean(k.state()))
		}
	}
	return errors.Join(err, t.Flush())
}

// place is where the upload goes, as the user knows it.
func (k *kept) place() string {
	if k.Reference != "" {
		return k.Reference
	}
	return k.Repository
}

func (k *kept) state() string {
	switch {
	case k.Holder != "":
		return "being uploaded by " + k.Holder
	case k.Uploading:
		return "being uploaded"
	case k.Error != "":
		return "not known: " + k.Error
	case k.Alive != nil && *k.Alive:
		return "alive"
	case k.Alive != nil:
		return "gone"
	case k.Expired:
		return "expired"
	}
	return "kept"
}

// asks runs f with a pusher for the repository of a record, for a short time.
// The flags about connections are for the registry about.
func (a *app) asks(ctx context.Context, o *options, about string, r resume.Record, f func(context.Context, *pusher.Pusher) error) error {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%w: no answer for %s", resume.ErrInterrupted, patience))
	defer cancel()
	_, err := inTime(ctx, func() (*struct{}, error) {
		repo, err := name.NewRepository(r.Name(), name.WeakValidation)
		if err != nil {
			return nil, err
		}
		po, err := a.connect(o, about, name.Repository{}).options(repo, asTarget)
		if err != nil {
			return nil, err
		}
		po.Store = resume.NoStore()
		if po.Scheme == pusher.SchemeHTTP && strings.HasPrefix(r.Registry, "https://") {
			po.Scheme = pusher.SchemeAuto // --plain-http is about other records
		}
		p, err := pusher.New(po)
		if err != nil {
			return nil, err
		}
		return nil, f(ctx, p)
	})
	return err
}

func (a *app) forgetSessions(ctx context.Context, o *options, store sessionStore, args []string) (int, error) {
	switch {
	case len(args) == 0 && !o.all:
		return 0, errors.New(nothingToForget)
	case len(args) > 0 && o.all && strings.HasPrefix(o.spelled["all"], "-"):
		return 0, errors.New(allAndOne)
	case len(args) > 1:
		return 0, fmt.Errorf(tooManyForgotten, args[1])
	}
	chosen, _, err := store.records(ctx)
	if err != nil {
		a.out.line(noStateWords(err))
		return exitPermanent, nil
	}
	if chosen, err = o.atRegistry(chosen); err != nil {
		return 0, err
	}
	if len(args) > 0 { // which is more than a variable says
		if chosen, err = choose(chosen, args[0]); err != nil {
			return 0, err
		}
		if len(chosen) == 0 {
			a.out.line(fmt.Sprintf(notKept, args[0]))
			return exitPermanent, nil
		}
	}
	about, err := o.aboutRegistry(chosen)
	if err != nil {
		return 0, err
	}
	exit := exitOK
	forgotten := []*kept{}
	for _, r := range chosen {
		if err := a.forget(ctx, o, about, store, r); err != nil {
			a.out.line(forgetFailedWords(r, err))
			exit = exitPermanent
		} else {
			forgotten = append(forgotten, newKept(r, time.Now()))
		}
		if code := stopped(ctx); code != exitOK {
			exit = code
			break
		}
	}
	if o.output == "json" {
		exit = max(exit, a.written(a.json(map[string]any{"forgotten": forgotten})))
	}
	return exit, nil
}

func (a *app) forget(ctx context.Context, o *options, about string, store sessionStore, r resume.Record) (err error) {
	lease, err := store.Reserve(ctx, r.Key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lease.Release(context.WithoutCancel(ctx))) }()
	if r, err = lease.Load(ctx); err != nil { // a push may have gone on with it
		if errors.Is(err, resume.ErrNoRecord) {
			err = nil
		}
		return err
	}
	if !r.Expired(time.Now()) {
		err := a.asks(ctx, o, about, r, func(ctx context.Context, p *pusher.Pusher) error { return p.Cancel(ctx, r) })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			a.out.note(notCancelledWords(r, err))
		}
	}
	if err := lease.Remove(ctx); err != nil {
		return err
	}
	a.out.note(forgottenWords(r))
	return nil
}

// choose finds the records that a user means: those of one blob, by its digest
// or the beginning of it, or those of a reference or repository.
func choose(all []resume.Record, what string) (chosen []resume.Record, err error) {
	const least = 4 // characters of a digest
	hex := strings.TrimPrefix(what, "sha256:")
	blobs := map[string]bool{}
	for _, r := range all {
		switch {
		case what == r.Reference || what == r.Name() || r.Reference != "" && named(what) == r.Reference:
			chosen = append(chosen, r)
		case what == r.Digest.String() || len(hex) >= least && strings.HasPrefix(r.Digest.Encoded(), hex):
			chosen = append(chosen, r)
			blobs[r.Digest.String()] = true
		}
	}
	if len(blobs) > 1 {
		return nil, fmt.Errorf(ambiguousDigest, what)
	}
	return chosen, nil
}

// named is a reference fully spelled out, or empty.
func named(s string) string {
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		return ""
	}
	return ref.Name()
}

func (a *app) pruneSessions(o *options, store sessionStore) int {
	n, err := store.prune(time.Now())
	if err != nil {
		a.out.line(noStateWords(err))
		return exitPermanent
	}
	if o.output == "json" {
		return a.written(a.json(map[string]int{"pruned": n}))
	}
	a.out.note(fmt.Sprintf("%s pruned", plural(n, "session")))
	return exitOK
}
