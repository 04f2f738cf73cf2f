// SPDX-License-Identifier: Apache-2.0

// Package redisstore keeps the records of open upload sessions in Redis. A push
// that ended on one machine continues on any other that uses the same Redis.
package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/rpush-go/rpush/resume"
)

const (
	version = 1
	// maxValue is how long a stored value may be, in bytes. Locations of some
	// registries are long.
	maxValue = 64 << 10
	// maxListed is how many records List returns.
	maxListed = 100_000
	// leastLease and mostLease bound Options.LeaseFor.
	leastLease, mostLease = time.Second, time.Hour
)

// Options say how a Store uses Redis. The zero value is good.
type Options struct {
	// Prefix is what the names of all keys begin with. The default is "rpush:".
	// Nothing in a name is secret: registry, repository and digest are hashed.
	Prefix string
	// Key encrypts what is stored (AES-256-GCM), KeySize bytes. Without it, who can
	// read the Redis can read upload locations, which let their owner continue an
	// upload. All who share records need the same key. A value that was stored with
	// another key, or without one, counts for nothing.
	Key []byte
	// Timeout bounds one operation. The default is 5 seconds.
	Timeout time.Duration
	// LeaseFor is how long this process keeps the right to a record that it does not
	// renew, from a second to an hour; so long others wait for it if its machine is
	// gone. It renews four times as often. The default is resume.LeaseFor. What is
	// shorter than Redis may be away makes uploads stop then. Processes may have
	// different ones.
	LeaseFor time.Duration
	// Holder is how List names this process to others. The default is the name of
	// the host, and the process id.
	Holder string
}

// Store is a resume.Store in Redis. It is safe for concurrent use.
//
// The right to a record is a key that expires after Options.LeaseFor unless its
// holder renews it. So a push that continues one that was killed on another
// machine waits for up to that time. Redis changes a record only for who has the
// right to it. Nothing depends on the clocks of the machines.
//
// If Redis cannot be reached, Reserve fails, and the upload goes on without a
// record. Further calls fail at once for ten seconds, so that a push with many
// layers does not wait for each.
//
// Redis replicates asynchronously. After a failover that loses a lease, two
// processes may believe to have it, until one of them renews it: a quarter of
// Options.LeaseFor at most. If Redis is emptied, who uploads a blob keeps the right
// to its record, and stores it again.
type Store struct {
	redis redis.UniversalClient
	o     Options
	seal  *sealer

	failed atomic.Pointer[failure]
}

// failure is that Redis could not be reached.
type failure struct {
	err error
	at  time.Time
}

// retryAfter is how long Redis is not asked after it could not be reached.
const retryAfter = 10 * time.Second

// New returns a Store that uses a client of the caller, who closes it. The client
// honours the deadlines of contexts only if it was made with
// ContextTimeoutEnabled. It is an error if Options are out of bounds.
func New(client redis.UniversalClient, o Options) (*Store, error) {
	if o.Prefix == "" {
		o.Prefix = "rpush:"
	}
	if strings.ContainsAny(o.Prefix, "{}*?[]\\") {
		return nil, fmt.Errorf("redisstore: the prefix %q contains a brace or a character that has a meaning in patterns", o.Prefix)
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Timeout < 0 {
		return nil, errors.New("redisstore: the timeout is negative")
	}
	if o.LeaseFor == 0 {
		o.LeaseFor = resume.LeaseFor
	}
	if o.LeaseFor < leastLease || o.LeaseFor > mostLease {
		return nil, fmt.Errorf("redisstore: a lease of %s is not between %s and %s", o.LeaseFor, leastLease, mostLease)
	}
	if o.Holder == "" {
		host, _ := os.Hostname()
		o.Holder = fmt.Sprintf("%s, process %d", host, os.Getpid())
	}
	s, err := newSealer(o.Key)
	if err != nil {
		return nil, fmt.Errorf("redisstore: %w", err)
	}
	o.Key = nil
	return &Store{redis: client, o: o, seal: s}, nil
}

// The scripts change a record and its lease in one step. KEYS are the names of
// lease and record, ARGV[1] is the value of the caller's lease, and ARGV[2] how
// many milliseconds a lease lasts.
//
// A lease that is gone together with its record was lost with all of Redis, or
// somebody took it over and has already finished. In both cases nobody else writes to
// the session of the caller, who gets the lease again.
var (
	reserve = script(`
if holder and holder ~= ARGV[1] then return 0 end -- our own: the answer to the first try was lost
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)
	renew = script(mine + `
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)
	save = script(mine + `
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1`)
	remove = script(mine + `
redis.call('DEL', KEYS[2])
return 1`)
	load = script(mine + `
return redis.call('GET', KEYS[2]) or 1`)
	release = script(`
if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1`)
	forget = script(`
if not holder then redis.call('DEL', KEYS[2]) end
return 1`)
)

// mine ends a script with 0 if the lease is lost.
const mine = `
if not holder and redis.call('EXISTS', KEYS[2]) == 0 then
	redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
	holder = ARGV[1]
end
if holder ~= ARGV[1] then return 0 end`

func script(s string) *redis.Script {
	return redis.NewScript("local holder = redis.call('GET', KEYS[1])" + s)
}

// recordValue is a record as it is stored.
type recordValue struct {
	Version int `json:"version"`
	resume.Record
}

// leaseValue is a lease as it is stored. ID makes it another one than all before.
type leaseValue struct {
	ID     string    `json:"id"`
	Holder string    `json:"holder"`
	Since  time.Time `json:"since"`
}

// name is what the names of the keys of an upload begin with. The braces keep
// them on one node of a cluster.
func (s *Store) name(k resume.Key) string {
	h := sha256.Sum256([]byte(k.Registry + "\n" + k.Repository + "\n" + string(k.Digest)))
	return s.o.Prefix + "upload:{" + hex.EncodeToString(h[:16]) + "}"
}

const (
	leaseSuffix  = ":lease"
	recordSuffix = ":record"
)

// Reserve implements resume.Store.
func (s *Store) Reserve(ctx context.Context, k resume.Key) (resume.Lease, error) {
	if err := s.away(); err != nil {
		return nil, err
	}
	id, err := json.Marshal(leaseValue{ID: random(), Holder: s.o.Holder, Since: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return nil, err
	}
	l := &lease{s: s, key: k, name: s.name(k), id: string(id)}
	if _, err := l.run(ctx, reserve, resume.ErrHeld); err != nil {
		return nil, err
	}
	return l, nil
}

// Forget implements resume.Store.
func (s *Store) Forget(ctx context.Context, k resume.Key) error {
	if err := s.away(); err != nil {
		return err
	}
	_, err := (&lease{s: s, name: s.name(k)}).run(ctx, forget, nil)
	return err
}

// away returns why Redis could not be reached a moment ago.
func (s *Store) away() error {
	if f := s.failed.Load(); f != nil && time.Since(f.at) < retryAfter {
		return f.err
	}
	return nil
}

// note takes note of whether Redis could be reached, and says that an error is
// its.
func (s *Store) note(ctx context.Context, err error) error {
	var said redis.Error
	if err == nil || errors.As(err, &said) {
		s.failed.Store(nil)
	} else if ctx.Err() == nil {
		s.failed.Store(&failure{fmt.Errorf("redis: %w", err), time.Now()})
	}
	if err != nil && !strings.HasPrefix(err.Error(), "redis") {
		err = fmt.Errorf("redis: %w", err)
	}
	return err
}

// lease is a resume.Lease.
type lease struct {
	s    *Store
	key  resume.Key
	name string
	id   string // the value of the key in Redis
	last []byte // the record as it is stored, empty if there is none
}

// run runs a script, which refuses with 0. The result is the string that it
// returns, if it returns one.
func (l *lease) run(ctx context.Context, script *redis.Script, refused error, args ...any) (string, error) {
	within, cancel := context.WithTimeout(ctx, l.s.o.Timeout)
	defer cancel()
	args = append([]any{l.id, l.s.keptFor().Milliseconds()}, args...)
	got, err := script.Run(within, l.s.redis, []string{l.name + leaseSuffix, l.name + recordSuffix}, args...).Result()
	if err := l.s.note(ctx, err); err != nil {
		return "", err
	}
	if got == int64(0) {
		return "", refused
	}
	text, _ := got.(string)
	return text, nil
}

// Lasts implements resume.TimedLease.
func (l *lease) Lasts() time.Duration { return l.s.o.LeaseFor }

// keptFor is how long Redis keeps a lease after its holder renewed it: somewhat
// longer than the holder believes, for what is still on the line when it ends.
func (s *Store) keptFor() time.Duration { return s.o.LeaseFor + min(5*time.Second, s.o.LeaseFor/8) }

// Load implements resume.Lease.
func (l *lease) Load(ctx context.Context) (resume.Record, error) {
	text, err := l.run(ctx, load, resume.ErrLeaseLost)
	if err != nil {
		return resume.Record{}, err
	}
	if text == "" {
		return resume.Record{}, resume.ErrNoRecord
	}
	r, err := l.s.decode(l.name, []byte(text))
	if err == nil && r.Key != l.key {
		err = errors.New("the record in Redis is that of another blob")
	}
	if err != nil {
		return resume.Record{}, err
	}
	l.last = []byte(text)
	return r, nil
}

// decode reads a record, which is foreign input.
func (s *Store) decode(name string, b []byte) (resume.Record, error) {
	if len(b) > maxValue {
		return resume.Record{}, errors.New("the record in Redis is too large")
	}
	plain, err := s.seal.open(name, b)
	if err != nil {
		return resume.Record{}, fmt.Errorf("the record in Redis cannot be read: %w", err)
	}
	var v recordValue
	if json.Unmarshal(plain, &v) != nil { // the error would quote it
		return resume.Record{}, errors.New("the record in Redis is damaged")
	}
	if v.Version != version {
		return resume.Record{}, fmt.Errorf("the record in Redis is of version %d, not %d", v.Version, version)
	}
	return v.Record, nil
}

// Save implements resume.Lease.
func (l *lease) Save(ctx context.Context, r resume.Record) error {
	b, err := json.Marshal(recordValue{version, r})
	if err != nil {
		return err
	}
	b = l.s.seal.seal(l.name, b)
	if len(b) > maxValue {
		return errors.New("the record is too large for Redis")
	}
	if _, err := l.run(ctx, save, resume.ErrLeaseLost, b, recordFor); err != nil {
		return err
	}
	l.last = b
	return nil
}

// recordFor is after how many milliseconds Redis deletes a record, which is of no
// use then.
const recordFor = int64(resume.RecordsFor / time.Millisecond)

// Remove implements resume.Lease.
func (l *lease) Remove(ctx context.Context) error {
	_, err := l.run(ctx, remove, resume.ErrLeaseLost)
	if err == nil {
		l.last = nil
	}
	return err
}

// Renew implements resume.Lease.
func (l *lease) Renew(ctx context.Context) error {
	_, err := l.run(ctx, renew, resume.ErrLeaseLost, l.last, recordFor)
	return err
}

// Release implements resume.Lease.
func (l *lease) Release(ctx context.Context) error {
	_, err := l.run(ctx, release, nil)
	return err
}

// Session is an upload session of which a record is kept.
type Session struct {
	resume.Record
	// Holder is who uploads the blob at this moment, as its Options.Holder says;
	// empty if nobody does.
	Holder string
}

// List returns what is kept in Redis, the oldest first, at most 100,000. What is
// no record, or cannot be read with the store's key, is left out.
func (s *Store) List(ctx context.Context) ([]Session, error) {
	var (
		mu  sync.Mutex // the nodes of a cluster are asked side by side
		all []Session
	)
	err := s.eachNode(ctx, func(ctx context.Context, node redis.Cmdable) error {
		keys := node.Scan(ctx, 0, s.o.Prefix+"upload:{*}"+recordSuffix, 1000).Iterator()
		for keys.Next(ctx) {
			one, ok := s.session(ctx, strings.TrimSuffix(keys.Val(), recordSuffix))
			if !ok {
				continue
			}
			mu.Lock()
			full := len(all) == maxListed
			if !full {
				all = append(all, one)
			}
			mu.Unlock()
			if full {
				return nil
			}
		}
		return keys.Err()
	})
	if err = s.note(ctx, err); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Session) int { return a.Opened.Compare(b.Opened) })
	return all, nil
}

// session reads the record and the lease with a name.
func (s *Store) session(ctx context.Context, name string) (Session, bool) {
	b, err := s.redis.Get(ctx, name+recordSuffix).Bytes()
	if err != nil {
		return Session{}, false
	}
	r, err := s.decode(name, b)
	if err != nil || s.name(r.Key) != name {
		return Session{}, false
	}
	one := Session{Record: r}
	if held, err := s.redis.Get(ctx, name+leaseSuffix).Bytes(); err == nil && len(held) <= maxValue {
		var l leaseValue
		if json.Unmarshal(held, &l) == nil {
			one.Holder = l.Holder
		}
	}
	return one, true
}

// eachNode calls f for each node that keeps keys.
func (s *Store) eachNode(ctx context.Context, f func(context.Context, redis.Cmdable) error) error {
	if c, ok := s.redis.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return f(ctx, node) })
	}
	return f(ctx, s.redis)
}
