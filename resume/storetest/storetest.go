// SPDX-License-Identifier: Apache-2.0

// Package storetest tests whether a resume.Store does what its documentation says.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, storetest.Options{
//			New: func(t *testing.T) func() resume.Store {
//				db := startDatabase(t)
//				return func() resume.Store { return mystore.Open(db) }
//			},
//		})
//	}
//
// Run it with the race detector, too. It tests nothing that takes time, such as
// that a lease lasts for resume.LeaseFor.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/resume"
)

// Options say what is tested.
type Options struct {
	// New makes an empty store, and returns a function that opens it. Each call of
	// that function opens the same store as another process would; a store that
	// lives in one process returns the same one each time. New is required. It is
	// called once for each test.
	New func(t *testing.T) (open func() resume.Store)
	// TakeOver gives the lease of k away as if its holder had been gone for longer
	// than resume.LeaseFor: by a clock of the store, or by removing what stands for
	// the lease. The next Reserve of k then succeeds. nil leaves out the tests of
	// lost leases; only a store whose leases end with the process may do so.
	TakeOver func(t *testing.T, k resume.Key)
}

// Run tests a store, each property in a subtest of its own.
func Run(t *testing.T, o Options) {
	t.Helper()
	if o.New == nil {
		t.Fatal("storetest: Options.New is required")
	}
	for _, c := range properties {
		if c.takesOver && o.TakeOver == nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			s := &subject{open: o.New(t), takeOver: func(k resume.Key) { o.TakeOver(t, k) }}
			if err := c.test(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
}

// subject is a store under test.
type subject struct {
	open     func() resume.Store
	takeOver func(resume.Key)
}

// property is something that holds for every store. test returns how it does not.
type property struct {
	name      string
	takesOver bool
	test      func(context.Context, *subject) error
}

var properties = []property{
	{name: "Empty", test: empty},
	{name: "SaveAndLoad", test: saveAndLoad},
	{name: "LongLocation", test: longLocation},
	{name: "KeysAreApart", test: keysAreApart},
	{name: "OneHolder", test: oneHolder},
	{name: "OneHolderOfMany", test: oneHolderOfMany},
	{name: "ReleaseKeepsTheRecord", test: releaseKeeps},
	{name: "Remove", test: remove},
	{name: "Forget", test: forget},
	{name: "ForgetWhatIsHeld", test: forgetHeld},
	{name: "Renew", test: renew},
	{name: "EndedContext", test: endedContext},
	{name: "ManyKeysAtOnce", test: manyKeys},
	{name: "LostLease", takesOver: true, test: lostLease},
	{name: "LostLeaseIsReleased", takesOver: true, test: lostRelease},
	{name: "LostLeaseWithoutSuccessor", takesOver: true, test: lostAlone},
}

func key(s string) resume.Key {
	return resume.Key{Registry: "https://reg.test:443", Repository: "team/app", Digest: digest.FromString(s)}
}

// began is the same for all records of a process, so that they can be compared.
var began = sync.OnceValue(func() time.Time { return time.Now().UTC().Truncate(time.Second) })

// record has something in each field.
func record(k resume.Key) resume.Record {
	opened := began()
	return resume.Record{
		Key: k, Reference: "reg.test/team/app:1", Location: "https://reg.test/v2/team/app/blobs/uploads/1?_state=a%2Fb%3D&x=\"<>\\ü",
		Size: 1 << 40, Offset: 1<<40 - 1, Acked: 1 << 33, Prefix: digest.FromString("prefix"),
		MinChunk: 5 << 20, MaxChunk: 100 << 20, Part: 1 << 20, Idle: 3,
		Opened: opened.Add(-time.Hour), Updated: opened,
	}
}

// same compares records as an upload does: times by the instant.
func same(got, want resume.Record) bool {
	times := got.Opened.Equal(want.Opened) && got.Updated.Equal(want.Updated)
	got.Opened, got.Updated = want.Opened, want.Updated
	return times && got == want
}

// loads wants the record of a lease to be want.
func loads(ctx context.Context, l resume.Lease, want resume.Record) error {
	switch got, err := l.Load(ctx); {
	case err != nil:
		return fmt.Errorf("Load: %w", err)
	case !same(got, want):
		return fmt.Errorf("Load: got\n%+v, want\n%+v", fields(got), fields(want))
	}
	return nil
}

// fields prints every field, the location too.
func fields(r resume.Record) any {
	type all resume.Record
	return all(r)
}

// is wants err to be target.
func is(what string, err, target error) error {
	if !errors.Is(err, target) {
		return fmt.Errorf("%s: got the error %q, want %q", what, fmt.Sprint(err), target.Error())
	}
	return nil
}

func reserve(ctx context.Context, s resume.Store, k resume.Key) (resume.Lease, error) {
	l, err := s.Reserve(ctx, k)
	if err == nil && l == nil {
		err = errors.New("no lease: this store keeps nothing")
	}
	if err != nil {
		return nil, fmt.Errorf("Reserve: %w", err)
	}
	return l, nil
}

// keep saves a record and gives it back.
func keep(ctx context.Context, s resume.Store, r resume.Record) error {
	l, err := reserve(ctx, s, r.Key)
	if err != nil {
		return err
	}
	return errors.Join(l.Save(ctx, r), l.Release(ctx))
}

// keeps wants the store to have a record.
func keeps(ctx context.Context, s resume.Store, want resume.Record) error {
	l, err := reserve(ctx, s, want.Key)
	if err != nil {
		return err
	}
	return errors.Join(loads(ctx, l, want), l.Release(ctx))
}

// lacks wants the store to have no record of k.
func lacks(ctx context.Context, s resume.Store, k resume.Key) error {
	l, err := reserve(ctx, s, k)
	if err != nil {
		return err
	}
	_, err = l.Load(ctx)
	return errors.Join(is("Load without a record", err, resume.ErrNoRecord), l.Release(ctx))
}

func empty(ctx context.Context, s *subject) error {
	store := s.open()
	l, err := reserve(ctx, store, key("a"))
	if err != nil {
		return err
	}
	_, err = l.Load(ctx)
	return errors.Join(
		is("Load without a record", err, resume.ErrNoRecord),
		l.Remove(ctx), l.Renew(ctx), l.Release(ctx),
		store.Forget(ctx, key("a")), store.Forget(ctx, key("never")))
}

func saveAndLoad(ctx context.Context, s *subject) error {
	l, err := reserve(ctx, s.open(), key("a"))
	if err != nil {
		return err
	}
	first := record(key("a"))
	second := resume.Record{Key: key("a"), Location: "https://reg.test/2", Size: 1, Opened: first.Opened, Updated: first.Updated}
	for _, r := range []resume.Record{first, second, first} {
		if err := l.Save(ctx, r); err != nil {
			return fmt.Errorf("Save: %w", err)
		}
		if err := loads(ctx, l, r); err != nil {
			return err
		}
	}
	return errors.Join(l.Release(ctx), keeps(ctx, s.open(), first))
}

// Locations of some registries carry a signed state of many KiB.
func longLocation(ctx context.Context, s *subject) error {
	r := record(key("a"))
	r.Location = "https://reg.test/v2/team/app/blobs/uploads/1?_state=" + strings.Repeat("x", 32<<10)
	return errors.Join(keep(ctx, s.open(), r), keeps(ctx, s.open(), r))
}

func keysAreApart(ctx context.Context, s *subject) error {
	base := key("a")
	var all []resume.Record
	for _, change := range []func(*resume.Key){
		func(*resume.Key) {},
		func(k *resume.Key) { k.Registry = "http://reg.test:443" },
		func(k *resume.Key) { k.Registry = "https://reg.test:4430" },
		func(k *resume.Key) { k.Registry = "https://reg.test.example:443" },
		func(k *resume.Key) { k.Repository = "team" },
		func(k *resume.Key) { k.Repository = "team/app/x" },
		func(k *resume.Key) { k.Repository = "team-app" },
		func(k *resume.Key) { k.Repository = "team_app" },
		func(k *resume.Key) { k.Digest = digest.FromString("b") },
		func(k *resume.Key) { k.Digest = digest.SHA512.FromString("a") },
	} {
		k := base
		change(&k)
		r := record(k)
		r.Offset = int64(len(all))
		all = append(all, r)
	}
	store := s.open()
	var leases []resume.Lease
	for _, r := range all {
		l, err := reserve(ctx, store, r.Key)
		if err != nil {
			return fmt.Errorf("%+v, while others are held: %w", r.Key, err)
		}
		leases = append(leases, l)
		if err := l.Save(ctx, r); err != nil {
			return fmt.Errorf("Save: %w", err)
		}
	}
	var errs []error
	for i, l := range leases {
		errs = append(errs, loads(ctx, l, all[i]), l.Release(ctx))
	}
	other := s.open()
	for _, r := range all {
		errs = append(errs, keeps(ctx, other, r))
	}
	return errors.Join(errs...)
}

func oneHolder(ctx context.Context, s *subject) error {
	store, other := s.open(), s.open()
	l, err := reserve(ctx, store, key("a"))
	if err != nil {
		return err
	}
	var errs []error
	for range 3 { // a failed Reserve must not end the lease either
		_, err = store.Reserve(ctx, key("a"))
		errs = append(errs, is("Reserve of what the same process has", err, resume.ErrHeld))
		_, err = other.Reserve(ctx, key("a"))
		errs = append(errs, is("Reserve of what another process has", err, resume.ErrHeld))
	}
	errs = append(errs, l.Save(ctx, record(key("a"))), l.Release(ctx), keeps(ctx, other, record(key("a"))))
	return errors.Join(errs...)
}

// many is how many reserve at once.
const many = 8

// Of many that reserve at once, one gets the lease.
func oneHolderOfMany(ctx context.Context, s *subject) error {
	const rounds = 20
	stores := make([]resume.Store, many)
	for i := range stores {
		stores[i] = s.open()
	}
	for round := range rounds {
		leases, errs := make([]resume.Lease, many), make([]error, many)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i, store := range stores {
			wg.Go(func() {
				<-start
				leases[i], errs[i] = store.Reserve(ctx, key("a"))
			})
		}
		close(start)
		wg.Wait()
		holders := 0
		var wrong []error
		for i, l := range leases {
			switch {
			case errs[i] == nil && l != nil:
				holders++
				wrong = append(wrong, l.Release(ctx))
			case !errors.Is(errs[i], resume.ErrHeld):
				wrong = append(wrong, fmt.Errorf("Reserve: got %v, %w", l, errs[i]))
			}
		}
		if holders != 1 {
			wrong = append(wrong, fmt.Errorf("round %d: %d of %d have the lease, want 1", round, holders, many))
		}
		if err := errors.Join(wrong...); err != nil {
			return err
		}
	}
	return nil
}

func releaseKeeps(ctx context.Context, s *subject) error {
	r := record(key("a"))
	return errors.Join(
		keep(ctx, s.open(), r), keeps(ctx, s.open(), r),
		keeps(ctx, s.open(), r), // looking at it changes nothing
	)
}

func remove(ctx context.Context, s *subject) error {
	r := record(key("a"))
	if err := errors.Join(keep(ctx, s.open(), r), keep(ctx, s.open(), record(key("b")))); err != nil {
		return err
	}
	l, err := reserve(ctx, s.open(), r.Key)
	if err != nil {
		return err
	}
	if err := l.Remove(ctx); err != nil {
		return fmt.Errorf("Remove: %w", err)
	}
	_, err = l.Load(ctx)
	return errors.Join(
		is("Load after Remove", err, resume.ErrNoRecord),
		l.Release(ctx), lacks(ctx, s.open(), r.Key), keeps(ctx, s.open(), record(key("b"))),
		keep(ctx, s.open(), r), keeps(ctx, s.open(), r), // and it can be kept again
	)
}

func forget(ctx context.Context, s *subject) error {
	r, other := record(key("a")), record(key("b"))
	if err := errors.Join(keep(ctx, s.open(), r), keep(ctx, s.open(), other)); err != nil {
		return err
	}
	if err := s.open().Forget(ctx, r.Key); err != nil {
		return fmt.Errorf("Forget: %w", err)
	}
	return errors.Join(lacks(ctx, s.open(), r.Key), keeps(ctx, s.open(), other))
}

func forgetHeld(ctx context.Context, s *subject) error {
	store, other := s.open(), s.open()
	l, err := reserve(ctx, store, key("a"))
	if err != nil {
		return err
	}
	r := record(key("a"))
	errs := []error{l.Save(ctx, r)}
	for _, from := range []resume.Store{store, other} {
		if err := from.Forget(ctx, key("a")); err != nil && !errors.Is(err, resume.ErrHeld) {
			errs = append(errs, fmt.Errorf("Forget of what is held: got the error %w, want none or ErrHeld", err))
		}
		errs = append(errs, loads(ctx, l, r))
		_, err = other.Reserve(ctx, key("a"))
		errs = append(errs, is("Reserve after Forget of what is held", err, resume.ErrHeld))
	}
	errs = append(errs, l.Release(ctx), keeps(ctx, other, r))
	return errors.Join(errs...)
}

func renew(ctx context.Context, s *subject) error {
	l, err := reserve(ctx, s.open(), key("a"))
	if err != nil {
		return err
	}
	r := record(key("a"))
	errs := []error{l.Renew(ctx), l.Save(ctx, r)} // also without a record
	for range 3 {
		errs = append(errs, l.Renew(ctx), loads(ctx, l, r))
		_, err = s.open().Reserve(ctx, key("a"))
		errs = append(errs, is("Reserve of what was renewed", err, resume.ErrHeld))
	}
	errs = append(errs, l.Release(ctx), keeps(ctx, s.open(), r))
	return errors.Join(errs...)
}

// A Reserve that fails because its context has ended holds nothing, and a Save
// that does leaves a whole record.
func endedContext(ctx context.Context, s *subject) error {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	store := s.open()
	switch l, err := store.Reserve(ended, key("a")); {
	case err != nil:
	case l == nil:
		return errors.New("Reserve: no lease: this store keeps nothing")
	default:
		if err := l.Release(ctx); err != nil {
			return fmt.Errorf("Release: %w", err)
		}
	}
	old, second := record(key("a")), record(key("a"))
	second.Offset = 7
	l, err := reserve(ctx, store, key("a"))
	if err != nil {
		return fmt.Errorf("after a Reserve whose context had ended: %w", err)
	}
	if err := l.Save(ctx, old); err != nil {
		return fmt.Errorf("Save: %w", err)
	}
	if l.Save(ended, second) == nil {
		old = second
	} else if got, err := l.Load(ctx); err == nil && same(got, second) {
		old = second // it was saved before it was found out
	}
	return errors.Join(loads(ctx, l, old), l.Release(ctx), keeps(ctx, s.open(), old))
}

func manyKeys(ctx context.Context, s *subject) error {
	store := s.open()
	errs := make([]error, 2*many)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			r := record(key(fmt.Sprint(i)))
			r.Offset = int64(i)
			for range 5 {
				if errs[i] = errors.Join(keep(ctx, store, r), keeps(ctx, store, r), store.Forget(ctx, r.Key), lacks(ctx, store, r.Key)); errs[i] != nil {
					return
				}
			}
			errs[i] = keep(ctx, store, r)
		})
	}
	wg.Wait()
	for i := range errs {
		r := record(key(fmt.Sprint(i)))
		r.Offset = int64(i)
		errs = append(errs, keeps(ctx, s.open(), r))
	}
	return errors.Join(errs...)
}

// taken is a lease of key("a") that was lost, and that of who has it now, whose
// record is the second one.
func taken(ctx context.Context, s *subject) (lost, now resume.Lease, r resume.Record, err error) {
	r = record(key("a"))
	if lost, err = reserve(ctx, s.open(), r.Key); err != nil {
		return nil, nil, r, err
	}
	if err = lost.Save(ctx, r); err != nil {
		return nil, nil, r, fmt.Errorf("Save: %w", err)
	}
	s.takeOver(r.Key)
	if now, err = reserve(ctx, s.open(), r.Key); err != nil {
		return nil, nil, r, fmt.Errorf("after TakeOver: %w", err)
	}
	if err := loads(ctx, now, r); err != nil {
		return nil, nil, r, fmt.Errorf("the new holder: %w", err)
	}
	r.Offset, r.Location = 77, "https://reg.test/of-the-new-holder"
	if err := now.Save(ctx, r); err != nil {
		return nil, nil, r, fmt.Errorf("Save of the new holder: %w", err)
	}
	return lost, now, r, nil
}

func lostLease(ctx context.Context, s *subject) error {
	lost, now, r, err := taken(ctx, s)
	if err != nil {
		return err
	}
	_, loadErr := lost.Load(ctx)
	return errors.Join(
		is("Renew of a lost lease", lost.Renew(ctx), resume.ErrLeaseLost),
		is("Load of a lost lease", loadErr, resume.ErrLeaseLost),
		is("Save of a lost lease", lost.Save(ctx, record(key("a"))), resume.ErrLeaseLost),
		loads(ctx, now, r),
		is("Remove of a lost lease", lost.Remove(ctx), resume.ErrLeaseLost),
		loads(ctx, now, r),
		lost.Release(ctx), now.Renew(ctx), now.Release(ctx), keeps(ctx, s.open(), r))
}

// Releasing a lost lease must not take it from its new holder.
func lostRelease(ctx context.Context, s *subject) error {
	lost, now, r, err := taken(ctx, s)
	if err != nil {
		return err
	}
	if err := lost.Release(ctx); err != nil {
		return fmt.Errorf("Release of a lost lease: %w", err)
	}
	_, err = s.open().Reserve(ctx, r.Key)
	return errors.Join(
		is("Reserve after the Release of a lost lease", err, resume.ErrHeld),
		now.Renew(ctx), loads(ctx, now, r), now.Release(ctx))
}

// A lease that has run out is not for its old holder to use, even if nobody has
// it yet; unless Renew got it back.
func lostAlone(ctx context.Context, s *subject) error {
	l, err := reserve(ctx, s.open(), key("a"))
	if err != nil {
		return err
	}
	r := record(key("a"))
	if err := l.Save(ctx, r); err != nil {
		return fmt.Errorf("Save: %w", err)
	}
	s.takeOver(r.Key)
	switch err := l.Renew(ctx); {
	case err == nil:
		_, err := s.open().Reserve(ctx, r.Key)
		return errors.Join(is("Reserve of what was renewed late", err, resume.ErrHeld), loads(ctx, l, r), l.Release(ctx))
	case !errors.Is(err, resume.ErrLeaseLost):
		return is("Renew of a lease that has run out", err, resume.ErrLeaseLost)
	}
	changed := r
	changed.Offset = 5
	return errors.Join(
		is("Save of a lease that has run out", l.Save(ctx, changed), resume.ErrLeaseLost),
		l.Release(ctx), keeps(ctx, s.open(), r))
}
