// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rpush-go/rpush/resume"
)

func TestMemoryStore(t *testing.T) {
	Run(t, Options{New: func(*testing.T) func() resume.Store {
		s := resume.MemoryStore()
		return func() resume.Store { return s }
	}})
}

func TestFileStore(t *testing.T) {
	var dir string
	o := Options{New: func(t *testing.T) func() resume.Store {
		dir = t.TempDir()
		return func() resume.Store { return resume.NewFileStore(dir) }
	}}
	if runtime.GOOS != "windows" { // which does not remove open files
		o.TakeOver = func(t *testing.T, _ resume.Key) {
			locks, err := filepath.Glob(filepath.Join(dir, "*", "*.lock"))
			if err != nil || len(locks) != 1 {
				t.Fatalf("lock files %v, %v", locks, err)
			}
			if err := os.Remove(locks[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	Run(t, o)
}

// network is a store as programs have it on another machine: leases are numbered
// there, and end unless they are renewed. What is wrong makes it a bad one.
type network struct {
	wrong string

	mu      sync.Mutex
	number  int
	holders map[resume.Key]int // by number
	records map[resume.Key]resume.Record
	checked int        // calls of Reserve
	all     *sync.Cond // many have checked
}

func newNetwork(wrong string) *network {
	n := &network{wrong: wrong, holders: map[resume.Key]int{}, records: map[resume.Key]resume.Record{}}
	n.all = sync.NewCond(&n.mu)
	return n
}

func (n *network) is(wrong string) bool { return n.wrong == wrong }

// at is the key as it is stored.
func (n *network) at(k resume.Key) resume.Key {
	switch {
	case n.is("no registry"):
		k.Registry = ""
	case n.is("no repository"):
		k.Repository = strings.NewReplacer("/", "-", "_", "-").Replace(k.Repository)
	case n.is("no digest"):
		k.Digest = ""
	}
	return k
}

// process is the store as one process has it.
type process struct {
	*network
	held map[resume.Key]bool
}

func (n *network) open() resume.Store {
	return &process{n, map[resume.Key]bool{}}
}

func (n *network) takeOver(k resume.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.holders, n.at(k))
}

func (p *process) Reserve(ctx context.Context, k resume.Key) (resume.Lease, error) {
	p.mu.Lock()
	at := p.at(k)
	taken := p.holders[at] != 0
	if p.is("within a process") {
		taken = p.held[k]
	}
	if p.is("reserves twice") {
		taken = false
	}
	if p.is("checks, then sets") { // here all check before one sets
		if p.checked++; p.checked%many == 0 {
			p.all.Broadcast()
		} else {
			for round := (p.checked - 1) / many; p.checked < (round+1)*many; {
				p.all.Wait()
			}
		}
	}
	defer p.mu.Unlock()
	if taken {
		if p.is("own error") {
			return nil, errors.New("locked")
		}
		if p.is("a failed reserve releases") {
			delete(p.holders, at)
		}
		return nil, resume.ErrHeld
	}
	p.number++
	p.holders[at], p.held[k] = p.number, true
	if ctx.Err() != nil {
		if !p.is("holds without a lease") {
			delete(p.holders, at)
			p.held[k] = false
		}
		return nil, ctx.Err()
	}
	if p.is("keeps nothing") {
		return nil, nil
	}
	if p.is("forgets on reserve") {
		delete(p.records, at)
	}
	return &lease{p, k, p.number}, nil
}

func (p *process) Forget(_ context.Context, k resume.Key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at(k)
	switch {
	case p.is("forgets what is held"), p.holders[at] == 0 && !p.is("does not forget"):
		delete(p.records, at)
	}
	if p.is("forgetting releases") {
		delete(p.holders, at)
	}
	return nil
}

type lease struct {
	*process
	k      resume.Key
	number int
}

// do calls f if the lease is held.
func (l *lease) do(f func(at resume.Key)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holders[l.at(l.k)] != l.number && !l.is("no fence") && !l.is("reserves twice") && !l.is("within a process") && !l.is("checks, then sets") {
		if l.is("own error for lost") {
			return errors.New("not yours")
		}
		return resume.ErrLeaseLost
	}
	f(l.at(l.k))
	return nil
}

func (l *lease) Load(context.Context) (r resume.Record, err error) {
	ok := false
	err = l.do(func(at resume.Key) { r, ok = l.records[at] })
	switch {
	case err == nil && !ok && l.is("zero record"):
	case err == nil && !ok:
		err = resume.ErrNoRecord
	}
	return r, err
}

func (l *lease) Save(_ context.Context, r resume.Record) error {
	return l.do(func(at resume.Key) {
		old, had := l.records[at]
		switch {
		case l.is("no prefix"):
			r.Prefix = ""
		case l.is("short locations"):
			r.Location = r.Location[:min(len(r.Location), 4096)]
		case l.is("merges") && had && r.Part == 0:
			r.Part = old.Part
		case l.is("saves once") && had:
			r = old
		case l.is("local time"):
			r.Opened = r.Opened.Add(1e9)
		}
		l.records[at] = r
	})
}

func (l *lease) Remove(context.Context) error {
	return l.do(func(at resume.Key) {
		if !l.is("does not remove") {
			delete(l.records, at)
		}
		if l.is("removes all") {
			clear(l.records)
		}
	})
}

func (l *lease) Renew(context.Context) error {
	return l.do(func(at resume.Key) {
		switch {
		case l.is("renewal releases"):
			delete(l.holders, at)
		case l.is("renewal forgets"):
			delete(l.records, at)
		}
	})
}

func (l *lease) Release(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.at(l.k)
	if l.is("releases the record") {
		delete(l.records, at)
	}
	if l.is("does not release") {
		return nil
	}
	l.held[l.k] = false
	if l.holders[at] == l.number || l.is("releases others") {
		delete(l.holders, at)
	}
	return nil
}

func TestNetworkStore(t *testing.T) {
	var n *network
	Run(t, Options{
		New: func(*testing.T) func() resume.Store {
			n = newNetwork("")
			return n.open
		},
		TakeOver: func(_ *testing.T, k resume.Key) { n.takeOver(k) },
	})
}

// Each mistake that a store can make fails the test that is for it.
func TestFindsMistakes(t *testing.T) {
	for wrong, by := range map[string]string{
		"keeps nothing":             "Empty",
		"zero record":               "Empty",
		"no prefix":                 "SaveAndLoad",
		"merges":                    "SaveAndLoad",
		"saves once":                "SaveAndLoad",
		"local time":                "SaveAndLoad",
		"short locations":           "LongLocation",
		"no registry":               "KeysAreApart",
		"no repository":             "KeysAreApart",
		"no digest":                 "KeysAreApart",
		"reserves twice":            "OneHolder",
		"within a process":          "OneHolder",
		"own error":                 "OneHolder",
		"a failed reserve releases": "OneHolder",
		"checks, then sets":         "OneHolderOfMany",
		"releases the record":       "ReleaseKeepsTheRecord",
		"forgets on reserve":        "ReleaseKeepsTheRecord",
		"does not release":          "ReleaseKeepsTheRecord",
		"does not remove":           "Remove",
		"removes all":               "Remove",
		"does not forget":           "Forget",
		"forgets what is held":      "ForgetWhatIsHeld",
		"forgetting releases":       "ForgetWhatIsHeld",
		"renewal releases":          "Renew",
		"renewal forgets":           "Renew",
		"holds without a lease":     "EndedContext",
		"no fence":                  "LostLease",
		"own error for lost":        "LostLease",
		"releases others":           "LostLeaseIsReleased",
	} {
		t.Run(wrong, func(t *testing.T) {
			i := slices.IndexFunc(properties, func(p property) bool { return p.name == by })
			n := newNetwork(wrong)
			err := properties[i].test(t.Context(), &subject{open: n.open, takeOver: n.takeOver})
			if err == nil {
				t.Errorf("%s passes a store that is wrong: %s", by, wrong)
			}
		})
	}
}
