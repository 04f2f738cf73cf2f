// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
)

// A body that can be read once only, such as docker's, has no digest before it
// has ended. What is kept of its upload is therefore found by content: the record
// is under the digest of how the body begins, and holds the digest of a longer
// prefix, which covers every byte that was handed to any connection. A later body
// that begins with the same bytes continues the upload; any other body costs a new
// session.
//
// A record is durable before the bytes that it covers are sent. So the registry
// never holds more than the record covers, whenever this process is killed.
const (
	// prefixHead is how much of a body says under which key its record is, in
	// bytes. Shorter bodies are not kept.
	prefixHead = DefaultKeepFrom
	// prefixStep is how far the record is ahead of what is sent, in bytes.
	prefixStep = 4 << 20
)

// prefixKey says under which key the record of a body with this beginning is.
// What is hashed is no blob, so that no blob has the digest.
func (c *Client) prefixKey(head digest.Digest) Key {
	return c.key(digest.FromString("rpush prefix of an upload\n" + head.String()))
}

// prefixKeeper keeps the record of one body that can be read once only. It is
// safe for concurrent use.
type prefixKeeper struct {
	c *Client

	mu    sync.Mutex
	lease *heldLease // nil once it is released
	r     Record
}

// recallPrefix looks for the record of an upload that began as this body does,
// and makes u continue that upload. It reads as much of the body as it needs.
// Whatever fails, the body goes out as any other.
func (g *passage) recallPrefix(ctx context.Context, u *upload) {
	s, ok := g.body.(*spool)
	store := g.t.store
	if !ok || store == nil || g.tried || g.put() || g.start != 0 || !g.seen.opened || g.length >= 0 && g.length <= prefixHead || !s.hashes() {
		return
	}
	head, ok := s.advance(ctx, prefixHead)
	if !ok {
		return // it is short, or there is no room, or the client has gone
	}
	k := &prefixKeeper{c: g.client}
	key := g.client.prefixKey(head)
	lease, err := reserveRecord(ctx, store, key)
	if err != nil || lease == nil {
		if err != nil && !errors.Is(err, ErrHeld) {
			u.unkept(err)
		}
		return
	}
	k.lease = lease
	k.r = Record{Key: key, Location: g.seen.location.String(), Opened: time.Now().UTC().Truncate(time.Second)}
	g.keeper = k
	s.onAhead(func(size int64, sum digest.Digest) { k.covers(u, size, sum) })

	old, err := lease.load(ctx)
	if errors.Is(err, ErrNoRecord) {
		return
	}
	var at *url.URL
	if err == nil {
		at, err = g.client.locatedPrefix(old, key)
	}
	if err == nil && old.Size > prefixHead {
		sum, ok := s.advance(ctx, old.Size)
		switch {
		case ctx.Err() != nil:
			return // the record stays as it is
		case !ok || sum != old.Prefix:
			err = errors.New("the body goes on in another way")
		}
	} else if err == nil && head != old.Prefix {
		err = errors.New("the body begins in another way")
	}
	if err != nil {
		g.client.log.WithField("error", protocol.Text(err)).Info("an earlier upload is of no use for this body, starting again")
		return // the record is replaced before anything is sent
	}
	k.r = old
	u.sess = g.client.recordedSession(u.subject(), &old, at, old.Size)
	g.onRecall()
	g.client.log.WithField("offset", old.Offset).Info("continuing an earlier upload of a body that begins in the same way")
}

// locatedPrefix returns the location of a record of a prefix.
func (c *Client) locatedPrefix(r Record, k Key) (*url.URL, error) {
	if r.Key != k || !r.sound() || r.Prefix.Validate() != nil || r.Size < prefixHead || r.Expired(time.Now()) {
		return nil, errors.New("it is of another upload, or has expired")
	}
	return c.located(r)
}

// covers notes that bytes up to size may now be sent. If the record cannot be
// kept there must be none: the registry may come to hold more than it covers.
func (k *prefixKeeper) covers(u *upload, size int64, sum digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if size <= k.r.Size && k.r.Prefix != "" {
		return // the earlier upload's record covers it
	}
	k.r.Size, k.r.Prefix = size, sum
	k.save(u)
}

// moved notes where the session stands after the registry said so.
func (k *prefixKeeper) moved(u *upload) {
	s := u.sess
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.r.Location
	k.r.Location, k.r.Offset, k.r.Acked = s.location.String(), min(s.offset.bytes, k.r.Size), min(s.acked, k.r.Size)
	k.r.MinChunk, k.r.MaxChunk, k.r.Part = s.lengths.Min, s.lengths.Max, s.part
	if !s.opened.IsZero() {
		k.r.Opened = s.opened.UTC().Truncate(time.Second)
	}
	if k.r.Location != before && k.r.Prefix != "" {
		k.save(u)
	}
}

// complete notes that the registry holds all of the body, and returns the key of
// the record. The client may end before it commits.
func (k *prefixKeeper) complete(u *upload, at *url.URL) *Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lease == nil || k.r.Prefix == "" {
		return nil
	}
	k.r.Location, k.r.Offset, k.r.Acked = at.String(), k.r.Size, k.r.Size
	k.save(u)
	key := k.r.Key
	return &key
}

// save wants k.mu held.
func (k *prefixKeeper) save(u *upload) {
	if k.lease == nil {
		return
	}
	k.r.Updated = time.Now().UTC().Truncate(time.Second)
	ctx := context.Background() // it has to end, whatever becomes of the request
	switch err := k.lease.save(ctx, k.r); {
	case errors.Is(err, ErrLeaseLost): // the upload ends
	case err != nil:
		u.unkept(err)
		k.release(k.lease.remove(ctx), u)
	}
}

// end gives the record back. done says that there is nothing left to continue.
func (k *prefixKeeper) end(u *upload, done bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lease == nil {
		return
	}
	var err error
	if done {
		err = k.lease.remove(context.Background())
	}
	k.release(err, u)
}

func (k *prefixKeeper) release(err error, u *upload) {
	err = errors.Join(err, k.lease.release(context.Background()))
	k.lease = nil
	if err != nil {
		u.unkept(fmt.Errorf("giving back a record: %w", err))
	}
}

// held is the lease, nil once it is released.
func (k *prefixKeeper) held() *heldLease {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lease
}

// giveUp forgets a lease that was lost.
func (k *prefixKeeper) giveUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lease = nil
}

// hashes makes the spool hash what is read of the body, if it can keep it all.
func (s *spool) hashes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost || s.taken > 0 {
		return false
	}
	s.hash = sha256.New()
	return true
}

// onAhead makes the spool call covers before each byte behind those is handed
// out.
func (s *spool) onAhead(covers func(size int64, sum digest.Digest)) { s.covers = covers }

// advance reads the body up to offset into the spool, and returns the digest of
// that prefix. It is false if the body ends before, or cannot be kept.
func (s *spool) advance(ctx context.Context, offset int64) (digest.Digest, bool) {
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	defer context.AfterFunc(ctx, s.closeSource)() // which alone ends a Read that waits
	return s.fill(offset), s.at() == offset && s.sum() != ""
}

// ahead reads on before what was read is all handed out, and has that covered.
// It reports whether it got anywhere. s.reading has to be held.
func (s *spool) ahead() bool {
	before := s.at()
	sum := s.fill(max(before, s.covered) + prefixStep)
	now := s.at()
	if sum == "" || now == s.covered {
		return false
	}
	s.covers(now, sum)
	s.covered = now
	return true
}

// fill reads up to offset, and returns the digest of all that was read; empty if
// not all of it is kept. It ends at the first bytes that do not fit, which are
// still handed out.
func (s *spool) fill(offset int64) digest.Digest {
	buf := make([]byte, 32<<10)
	for s.fits() && s.at() < offset {
		if _, err := s.more(buf[:min(int64(len(buf)), offset-s.at())]); err != nil {
			break
		}
	}
	s.mu.Lock()
	s.early = false
	s.mu.Unlock()
	return s.sum()
}

// fits reports whether reading ahead makes sense, and announces it.
func (s *spool) fits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.early = !s.lost && s.tail == nil && s.end == nil
	return s.early
}

func (s *spool) at() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

func (s *spool) sum() digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hash == nil || s.lost {
		return ""
	}
	return digest.NewDigest(digest.SHA256, s.hash)
}
