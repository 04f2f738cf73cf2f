// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// RecordsFor is how long a record is good for, from the opening of its upload
// session: registries commonly purge sessions after 72 hours.
const RecordsFor = 70 * time.Hour

// Key says what an upload is to deliver, and where to.
type Key struct {
	// Registry is scheme://host:port, the port spelled out.
	Registry string `json:"registry"`
	// Repository is its name within the registry.
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
}

// Record is what is kept of an open upload session. It is a hint: the registry
// is asked before a byte is sent.
type Record struct {
	Key
	// Reference is what was being pushed, for people.
	Reference string `json:"reference,omitempty"`
	// Location is the newest upload location. It may carry a signed state or a
	// credential: it must not be logged or be readable by others.
	Location string `json:"location"`
	// Size of the blob, Offset that the registry said last, and the end of the
	// last request that it acknowledged, in bytes.
	Size   int64 `json:"size"`
	Offset int64 `json:"offset"`
	Acked  int64 `json:"acked,omitempty"`
	// Prefix, unless empty, is the digest of the first Size bytes of a body whose
	// own digest was not known when it was sent, on a transport of NewTransport.
	// The record's Digest is made of how the body begins then, and Size covers all
	// that was sent of it.
	Prefix digest.Digest `json:"prefix,omitempty"`
	// MinChunk is the registry's OCI-Chunk-Min-Length in bytes, said when the
	// session was opened.
	MinChunk int64 `json:"minChunk,omitempty"`
	// MaxChunk is its OCI-Chunk-Max-Length. With it, Part is the size in bytes that
	// all chunks of the session have but the last, 0 before the first.
	MaxChunk int64 `json:"maxChunk,omitempty"`
	Part     int64 `json:"part,omitempty"`
	// Idle counts the processes in a row that found the upload where the one
	// before them had left it.
	Idle   int       `json:"idle,omitempty"`
	Opened time.Time `json:"opened"`
	// Updated is when the record was written.
	Updated time.Time `json:"updated"`
}

// String leaves the location out.
func (r Record) String() string {
	return fmt.Sprintf("%s of %s, %d of %d bytes", r.Digest, r.Name(), r.Offset, r.Size)
}

// Name is the repository with its registry, as a reference has it.
func (k Key) Name() string {
	scheme, host, _ := strings.Cut(k.Registry, "://")
	if port := map[string]string{"https": ":443", "http": ":80"}[scheme]; port != "" {
		host = strings.TrimSuffix(host, port)
	}
	return host + "/" + k.Repository
}

// GoString is String, so that no way of printing shows the location.
func (r Record) GoString() string { return r.String() }

// Expired reports whether the registry has probably purged the session, or the
// record is from the future.
func (r Record) Expired(now time.Time) bool {
	age := now.Sub(r.Opened)
	return age > RecordsFor || age < -RecordsFor
}

// valid reports whether the record is about a blob of this size.
func (r Record) valid(k Key, size int64) bool {
	return r.sound() && r.Key == k && r.Size == size
}

// sound reports whether a record can have been written by this package.
func (r Record) sound() bool {
	if r.Digest.Validate() != nil || r.Location == "" {
		return false
	}
	if scheme, _, _ := strings.Cut(r.Registry, "://"); scheme != "http" && scheme != "https" {
		return false
	}
	if _, err := name.NewRepository(r.Name(), name.WeakValidation); err != nil {
		return false
	}
	return 0 <= r.Offset && r.Offset <= r.Size && 0 <= r.Acked && r.Acked <= r.Size &&
		0 <= r.MinChunk && r.MinChunk <= 1<<30 && 0 <= r.MaxChunk && 0 <= r.Part && r.Part <= r.Size && 0 <= r.Idle && r.Idle <= maxIdle
}

// maxIdle bounds Record.Idle.
const maxIdle = 1000

// Store keeps the records of open upload sessions, so that the next process
// continues them, and ensures that a session has one writer. A Store may be shared
// by machines, across a network. Several goroutines call its methods at once. If a
// method fails with another error than ErrHeld or ErrLeaseLost, the upload goes on
// and is not kept.
//
// Hours may pass between two calls: a large blob is a single request. A method
// returns soon after its context has ended. Errors must not contain a
// Record.Location. Package storetest tests whether a Store does what is said here.
type Store interface {
	// Reserve gives the caller alone the record of k, until Release, the end of the
	// process, or the end of the lease. It does not wait: if another caller has the
	// record, in this process or in any that shares the store, the error is ErrHeld.
	// A nil Lease without an error means that nothing is kept of this upload.
	Reserve(ctx context.Context, k Key) (Lease, error)
	// Forget removes the record of a blob that has arrived, if there is one and
	// nobody has it. If somebody has it, it stays, and the error is nil or ErrHeld.
	Forget(ctx context.Context, k Key) error
}

// How long a Lease lasts, unless it is a TimedLease.
const (
	// LeaseFor is how long a store must leave a lease to its holder after Reserve
	// and after each Renew that succeeded. The holder counts from the beginning of
	// that call, and stops sending when the time is over. A store that learns in
	// another way that a holder has gone may give the record away earlier.
	LeaseFor = 2 * time.Minute
	// LeaseRenewEvery is how often the holder calls Renew.
	LeaseRenewEvery = 30 * time.Second
)

// Lease is the right to one record. Its methods are not called concurrently. Load,
// Save, Remove and Renew return ErrLeaseLost if somebody else has reserved the
// record since, or may have: then they change nothing, and the holder sends
// nothing more.
type Lease interface {
	// Load returns the record; ErrNoRecord if there is none.
	Load(ctx context.Context) (Record, error)
	// Save replaces the record. When it returns nil the new one survives the end
	// of the process and of the machine; until then the old one does.
	Save(ctx context.Context, r Record) error
	// Remove takes the record away, if there is one.
	Remove(ctx context.Context) error
	// Renew extends the lease, by LeaseFor at least. It is called every
	// LeaseRenewEvery as long as the lease is held. Any other error than
	// ErrLeaseLost is tried again.
	Renew(ctx context.Context) error
	// Release ends the lease and leaves the record as it is. It is called once,
	// also for a lease that was lost, which it must not take from its new holder.
	// Its context goes on after that of the upload has ended, for some seconds.
	Release(ctx context.Context) error
}

// TimedLease is a Lease that lasts for another time than LeaseFor.
type TimedLease interface {
	Lease
	// Lasts returns how long the lease lasts, more than 0, and always the same. What
	// the documentation says of LeaseFor holds for it; Renew is called four times
	// as often.
	Lasts() time.Duration
}

// The errors of a Store that mean something to an upload.
var (
	ErrHeld     = errors.New("another push is uploading the same blob to the same repository")
	ErrNoRecord = errors.New("no record")
	// ErrLeaseLost: the record is another push's now. The upload stops before the
	// next byte, and waits for that push as it does for ErrHeld. Then it asks for
	// the blob, and continues if the blob is not there.
	ErrLeaseLost = errors.New("another push has taken over the upload of the same blob")
)

// NoStore returns a Store that keeps nothing.
func NoStore() Store { return noStore{} }

type noStore struct{}

func (noStore) Reserve(context.Context, Key) (Lease, error) { return nil, nil }
func (noStore) Forget(context.Context, Key) error           { return nil }

// MemoryStore returns a Store that lives as long as the process: an upload that
// ended is continued by a later one of the same process.
func MemoryStore() Store {
	return &memoryStore{records: map[Key]Record{}, held: map[Key]bool{}}
}

type memoryStore struct {
	mu      sync.Mutex
	records map[Key]Record
	held    map[Key]bool
}

func (m *memoryStore) Reserve(_ context.Context, k Key) (Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[k] {
		return nil, ErrHeld
	}
	m.held[k] = true
	return &memoryLease{m, k}, nil
}

func (m *memoryStore) Forget(_ context.Context, k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held[k] {
		delete(m.records, k)
	}
	return nil
}

type memoryLease struct {
	m *memoryStore
	k Key
}

func (l *memoryLease) Load(context.Context) (Record, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	r, ok := l.m.records[l.k]
	if !ok {
		return Record{}, ErrNoRecord
	}
	return r, nil
}

func (l *memoryLease) Save(_ context.Context, r Record) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(l.m.records, func(_ Key, r Record) bool { return r.Expired(now) })
	l.m.records[l.k] = r
	return nil
}

func (l *memoryLease) Remove(context.Context) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.records, l.k)
	return nil
}

func (l *memoryLease) Renew(context.Context) error { return nil }

func (l *memoryLease) Release(context.Context) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.held, l.k)
	return nil
}

// byAge sorts records, those that were opened first in front.
func byAge(all []Record) {
	slices.SortFunc(all, func(a, b Record) int { return a.Opened.Compare(b.Opened) })
}
