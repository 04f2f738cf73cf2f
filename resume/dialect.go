// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"cmp"
	"sync"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
)

// Class is what a registry, with all that stands before it, has proved about a
// PATCH that breaks. It is decided from behaviour only, and a later proof
// corrects an earlier one.
type Class string

// The classes, with those seen to behave so.
const (
	// Unproved: no PATCH broke yet. All that is left goes in one PATCH.
	Unproved Class = ""
	// Exact registries keep the bytes of a broken PATCH, some rounded down to
	// parts: distribution 3, olareg. All that is left goes in one PATCH, or in
	// chunks if a break costs less with them.
	Exact Class = "exact"
	// Boundary registries keep the session and whole PATCHes only: anything
	// behind a proxy that buffers requests. Chunks bound the loss.
	Boundary Class = "boundary"
	// Fragile registries lose the session when a body breaks, or cannot say
	// where it stands: distribution 2, Harbor, zot, ggcr's registry. Chunks each
	// go on a connection of their own, so short that it has no time to die.
	Fragile Class = "fragile"
	// Monolithic registries refuse a second PATCH: documented of Artifact
	// Registry and GHCR. One PATCH per session.
	Monolithic Class = "monolithic"
)

// Dialect is what was learnt about a registry. The zero value is that nothing
// was. It holds nothing secret.
type Dialect struct {
	Class Class `json:"class,omitempty"`
	// Chunk is about the size of the next chunk in bytes, 0 for all that is left.
	Chunk int64 `json:"chunk,omitempty"`
	// MaxBody is the size in bytes of the largest body to send, after a 413 or a
	// 416 to a whole blob. 0 is any size.
	MaxBody int64 `json:"maxBody,omitempty"`
	// MaxRanged is the same for bodies with a Content-Range. GHCR refuses those
	// above 4 MiB, and takes whole blobs without Content-Range.
	MaxRanged int64 `json:"maxRanged,omitempty"`
	// MaxChunk is the registry's OCI-Chunk-Max-Length in bytes, which bounds all
	// bodies. 0 is any size.
	MaxChunk int64 `json:"maxChunk,omitempty"`
	// MaxTimed is the size in bytes of the largest body to send, after a gateway
	// ended larger ones because they took too long. 0 is any size.
	MaxTimed int64 `json:"maxTimed,omitempty"`
	// PerMinute is how many requests a minute the registry said it allows. 0 is
	// not known.
	PerMinute int `json:"perMinute,omitempty"`
	// Parallel is how many uploads to have open at once, where sessions vanished
	// because of their number. 0 is any number.
	Parallel int `json:"parallel,omitempty"`
	// StatusGET: the offset is answered to GET, not to HEAD.
	StatusGET bool `json:"statusGet,omitempty"`
	// OffByOne: the Range of a status answer ends at the number of bytes held,
	// not at the last byte, as on Quay and Gitea.
	OffByOne bool `json:"offByOne,omitempty"`
	// StuckRange: the Range of an answer to a PATCH does not move after the first
	// one, as on ECR. What was acknowledged counts.
	StuckRange bool `json:"stuckRange,omitempty"`
	// NoStatus: a status request gets 404 although the session lives, as on ECR.
	NoStatus bool `json:"noStatus,omitempty"`
	// NoPutBody: a commit with the whole blob as its body is refused, as on
	// Artifactory 6.
	NoPutBody bool `json:"noPutBody,omitempty"`
}

// Dialects keeps dialects between clients, and between processes if it likes.
// host is scheme://host:port. What it returns is a hint. Methods may be called
// by several goroutines and should be quick.
type Dialects interface {
	Load(host string) (Dialect, bool)
	Save(host string, d Dialect)
}

// MemoryDialects returns Dialects that live as long as the process.
func MemoryDialects() Dialects { return &memoryDialects{m: map[string]Dialect{}} }

type memoryDialects struct {
	mu sync.Mutex
	m  map[string]Dialect
}

func (m *memoryDialects) Load(host string) (Dialect, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.m[host]
	return d, ok
}

func (m *memoryDialects) Save(host string, d Dialect) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.m[host] = d
}

// Sizes in bytes. Chunks are multiples of the parts of object storage where
// they can be: a registry in front of S3 pays for every other size.
const (
	mib        = 1 << 20
	leastChunk = 1 * mib
	mostChunk  = 30 * mib
	leastBody  = 64 << 10
	// partSize is the least size of a part in object storage, but the last.
	partSize = 5 * mib
	// proof is so much that a registry which kept nothing of it keeps only whole
	// PATCHes. Less may have been in buffers on the way.
	proof = 32 * mib
	// cautious is the chunk where a break left nothing, and how much was sent
	// before it is not known.
	cautious = 8 * mib
)

// round makes a chunk size of n bytes.
func round(n int64) int64 {
	n = max(n, leastChunk)
	for _, part := range []int64{10 * mib, 5 * mib} {
		if n >= part {
			return n / part * part
		}
	}
	return n / mib * mib
}

// pacer decides how much goes into one PATCH. One is shared by all blobs of a
// client.
type pacer struct {
	host  string
	store Dialects
	rate  requestRate

	mu      sync.Mutex
	d       Dialect
	hint    Dialect       // what of d is an earlier client's word that nothing has confirmed
	least   int64         // OCI-Chunk-Min-Length
	parts   int64         // the least size of a chunk that commits have been seen to take
	empty   int           // breaks in a row of which nothing was kept
	cost    int64         // bytes that the last break of a body without chunks lost, though a part was kept
	gone    int           // sessions in a row lost by a break
	guessed bool          // MaxBody or MaxRanged come from a 416 that does not say that a body was too large
	doubted bool          // such a limit has been dropped
	trial   int64         // MaxTimed, until a body of this size has got through
	puts    int           // blobs in a row that were refused as the body of a commit, and taken otherwise
	open    int           // uploads that have a session, or are about to
	left    chan struct{} // closed when one of them has ended; nil if nobody waits
	gaps    int           // sessions that vanished, and nothing explained it
	arrived int           // blobs that arrived since
}

func newPacer(host string, store Dialects) *pacer {
	p := &pacer{host: host, store: store}
	if d, ok := store.Load(host); ok {
		p.d = d.valid()
		p.hint = p.d
	}
	return p
}

// valid makes a dialect from anywhere usable.
func (d Dialect) valid() Dialect {
	switch d.Class {
	case Unproved, Exact, Boundary, Fragile, Monolithic:
	default:
		return Dialect{}
	}
	if d.Chunk != 0 {
		d.Chunk = limit(d.Chunk)
	}
	if d.MaxBody != 0 {
		d.MaxBody = max(d.MaxBody, leastBody)
	}
	if d.MaxRanged != 0 {
		d.MaxRanged = max(d.MaxRanged, leastBody)
	}
	if d.MaxTimed != 0 {
		d.MaxTimed = limit(d.MaxTimed)
	}
	if d.Parallel < 0 || d.Parallel > mostParallel {
		d.Parallel = 0
	}
	if d.PerMinute != 0 {
		d.PerMinute = max(d.PerMinute, leastRate)
	}
	if d.MaxChunk != 0 {
		d.MaxChunk = max(d.MaxChunk, leastBody)
	}
	return d
}

func (p *pacer) dialect() Dialect {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.d
}

// next is how much of the bytes left to send in one PATCH, and whether that
// needs a connection of its own. whole: if the PATCH takes all that is left, it
// goes without Content-Range.
func (p *pacer) next(left int64, whole bool) (n int64, fresh bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = left
	if p.d.Chunk > 0 {
		n = min(n, max(round(p.d.Chunk), p.least, p.parts))
	}
	if p.d.MaxBody > 0 {
		n = min(n, max(p.d.MaxBody, p.least))
	}
	if most := cmp.Or(p.trial, p.d.MaxTimed); most > 0 && p.d.Class != Monolithic {
		n = min(n, max(round(most), p.least))
	}
	if most := p.d.MaxChunk; most > 0 && n > most {
		n = max(min(round(most), most), p.least)
	}
	if p.d.MaxRanged > 0 && (!whole || n < left) {
		n = min(n, max(p.d.MaxRanged, p.least))
	}
	return n, p.d.Class == Fragile && p.d.Chunk > 0
}

// learn changes the dialect and keeps what was learnt if it is another class.
func (p *pacer) learn(f func()) {
	p.mu.Lock()
	before := p.d
	f()
	after := p.d
	if before.Class != after.Class || before.Chunk != after.Chunk {
		p.hint.Class, p.hint.Chunk = Unproved, 0
	}
	if before.MaxBody != after.MaxBody || before.MaxRanged != after.MaxRanged || before.MaxChunk != after.MaxChunk {
		p.hint.MaxBody, p.hint.MaxRanged, p.hint.MaxChunk = 0, 0, 0
	}
	if before.MaxTimed != after.MaxTimed {
		p.hint.MaxTimed = 0
	}
	p.mu.Unlock()
	before.Chunk = after.Chunk // moves all the time; kept by save
	if before != after {
		p.store.Save(p.host, after)
	}
}

// save keeps what was learnt. A chunk size without a proof is for this upload
// alone.
func (p *pacer) save() {
	d := p.dialect()
	if d.Class == Unproved {
		d.Chunk = 0
	}
	if d != (Dialect{}) {
		p.store.Save(p.host, d)
	}
}

// mistrust drops what an earlier client had learnt: it has led to a failure that
// nothing else explains. It reports whether there was anything to drop.
func (p *pacer) mistrust() bool {
	p.mu.Lock()
	h := p.hint
	p.hint = Dialect{}
	if h.Chunk == 0 {
		h.Class = Unproved // a class alone changes nothing in what is sent
	} else {
		p.d.Class, p.d.Chunk = Unproved, 0
	}
	if h.MaxBody > 0 || h.MaxRanged > 0 || h.MaxChunk > 0 {
		p.d.MaxBody, p.d.MaxRanged, p.d.MaxChunk = 0, 0, 0
	}
	if h.MaxTimed > 0 {
		p.d.MaxTimed = 0
	}
	p.d.StatusGET = p.d.StatusGET && !h.StatusGET
	p.d.OffByOne = p.d.OffByOne && !h.OffByOne
	p.d.StuckRange = p.d.StuckRange && !h.StuckRange
	p.d.NoStatus = p.d.NoStatus && !h.NoStatus
	p.d.NoPutBody = p.d.NoPutBody && !h.NoPutBody
	h.Parallel, h.PerMinute = 0, 0 // they make nothing fail
	d := p.d
	p.mu.Unlock()
	if h == (Dialect{}) {
		return false
	}
	p.store.Save(p.host, d)
	return true
}

// doubt drops a limit on bodies that was guessed from a 416 and leads to a failure:
// the 416 may have had another cause. That happens once. It wants p.mu held.
func (p *pacer) doubt() bool {
	if !p.guessed || p.doubted {
		return false
	}
	p.guessed, p.doubted = false, true
	p.d.MaxBody, p.d.MaxRanged = 0, 0
	return true
}

// smallParts: the registry fails commits of sessions that took chunks below
// partSize. It is false if larger chunks cannot be the answer.
func (p *pacer) smallParts() bool {
	if p.mistrust() {
		return true
	}
	doubted := false
	p.learn(func() { doubted = p.doubt() })
	p.mu.Lock()
	defer p.mu.Unlock()
	if doubted {
		p.parts = partSize
		return true
	}
	larger := p.parts < partSize && p.d.Chunk > 0 && p.d.Chunk < partSize && (p.d.MaxBody == 0 || p.d.MaxBody >= partSize)
	if larger {
		p.parts, p.d.Chunk = partSize, partSize
	}
	return larger
}

// acknowledged: a PATCH was answered well. Chunks grow slowly, so that a link
// that breaks by volume is not tried out too often.
func (p *pacer) acknowledged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.empty, p.gone = 0, 0
	if (p.d.Class == Boundary || p.d.Class == Exact) && p.d.Chunk > 0 {
		p.d.Chunk = min(p.d.Chunk+p.d.Chunk/8, mostChunk)
	}
	if p.d.Class == Exact && p.d.Chunk == mostChunk {
		p.d.Chunk = 0 // the line carries what is left
	}
}

// costly is the share of what a connection carries before it breaks that may be
// lost with it before chunks are tried: a sixteenth.
const costly = 16

// keptPart: the registry held a part of a broken PATCH, all but lost bytes. The
// connection had carried survived bytes. A registry that rounds down to parts,
// as distribution does on S3, loses less of a chunk than of all that is left;
// chunks are kept only while that is so.
func (p *pacer) keptPart(lost, survived int64) {
	p.learn(func() {
		p.empty, p.gone = 0, 0
		switch d := &p.d; {
		case d.Chunk == 0:
			p.cost = lost
			// Less may only have been in buffers on the way.
			if lost > survived/costly && lost >= 2*partSize {
				d.Chunk = part(min(survived/4, lost), survived)
			}
		case p.cost == 0 && lost <= survived/costly, p.cost > 0 && lost >= p.cost:
			d.Chunk = 0
		default:
			d.Chunk = part(min(d.Chunk, survived/4), survived)
		}
		p.d.Class = Exact
	})
}

// keptNothing: a PATCH broke after handed bytes of its body and survived bytes
// on its connection, and the session stands where it stood before. Chunks of a
// quarter of what a connection survives lose an eighth to each break.
func (p *pacer) keptNothing(handed, survived int64) {
	p.learn(func() {
		p.empty++
		switch {
		case p.d.Class == Boundary && p.d.Chunk > 0:
			p.d.Chunk = part(min(p.d.Chunk/2, survived/4), survived)
		case p.d.Class == Exact && p.d.Chunk > 0:
			// The chunk may not have filled a part.
			p.d.Chunk = part(min(p.d.Chunk, survived/4), survived)
		case handed >= proof || p.empty > 1 && handed > 0:
			p.d.Class, p.d.Chunk = Boundary, part(survived/4, survived)
		}
	})
}

// stoodStill: processes that ended, so many in a row, left the upload where
// they had found it. How much each had sent nobody knows; one that had sent
// nothing proves nothing, but chunks cost little.
func (p *pacer) stoodStill(processes int) {
	p.learn(func() {
		switch {
		case p.d.Class == Boundary && p.d.Chunk > 0:
			p.d.Chunk = limit(p.d.Chunk / 2)
		case p.d.Class == Unproved:
			p.d.Chunk = limit(cautious >> min(processes-1, 8))
			if processes > 1 {
				p.d.Class = Boundary
			}
		}
	})
	p.save() // this process may end in the same way
}

// wentOn: the registry held n bytes more than when a process that ended had
// asked last. Chunks are whole MiB, and their ends prove nothing.
func (p *pacer) wentOn(n int64) {
	if d := p.dialect(); d.Class == Unproved && d.MaxBody == 0 && n%mib != 0 {
		p.keptPart(0, 0)
	}
}

// limit keeps a chunk size within its bounds.
func limit(n int64) int64 { return min(max(n, leastChunk), mostChunk) }

// part is limit for chunks that a connection can carry which survived so many
// bytes. Object storage takes no smaller parts than partSize: ECR fails the
// commit, and distribution on S3 loses its place.
func part(n, survived int64) int64 {
	if survived >= partSize {
		n = max(n, partSize)
	}
	return limit(n)
}

// lost: a PATCH got no answer, and the session is gone. A body that was sent
// whole proves less than one that broke: the answer to a small one, or to a chunk
// through a proxy that buffers, may be lost by chance.
func (p *pacer) lost(c cut) {
	survived := c.survived
	p.learn(func() {
		p.gone++
		switch {
		case c.whole && p.gone == 1 && (p.d.Class == Boundary || c.handed < 2*partSize):
		case p.d.Class == Exact && p.gone == 1:
			// It has done better; a restart explains one loss.
		case p.d.Class == Monolithic:
		case p.d.Class == Fragile && p.gone > maxGone:
			p.d.Chunk = 0 // no better than in one PATCH
		case p.d.Class == Fragile && p.d.Chunk > 0:
			p.d.Chunk = part(p.d.Chunk/2, survived)
		default:
			p.d.Class, p.d.Chunk = Fragile, part(survived/2, survived)
		}
	})
}

// maxGone is how many sessions in a row may be lost in chunks before they go
// in one PATCH again.
const maxGone = 4

// fruitless: an upload failed although chunks were sent. They cost more than
// they gain.
func (p *pacer) fruitless() {
	p.mu.Lock()
	p.d.Chunk = 0
	p.mu.Unlock()
	p.save()
}

// turn is how long the next request has to wait for its turn, where the registry
// limits how many it takes in a minute.
func (p *pacer) turn(now time.Time) time.Duration {
	known := 0
	switch d := p.dialect(); {
	case d.PerMinute > 0:
		known = max(d.PerMinute-d.PerMinute/10, 1)
	case d.MaxRanged > 0:
		known = chunkRate
	}
	return p.rate.take(now, known)
}

// tooMany: the registry refused a request because of their number. allowed is
// what it said about that, 0 if nothing. Larger chunks are fewer.
func (p *pacer) tooMany(now time.Time, wait time.Duration, allowed int) {
	first := p.rate.refused(now, wait)
	p.learn(func() {
		if allowed > 0 {
			p.d.PerMinute, p.hint.PerMinute = max(allowed, leastRate), 0
		}
		if first && p.d.Chunk > 0 && p.d.Class != Fragile {
			p.d.Chunk = limit(2 * p.d.Chunk)
		}
	})
}

// refusedMore: a session that took one PATCH refuses another.
func (p *pacer) refusedMore() {
	p.learn(func() {
		p.d.Class, p.d.Chunk = Monolithic, 0
		p.doubt() // a blob has to go in one PATCH
	})
}

// tooLarge: the registry refused a body of n bytes for its size. ranged: it had
// a Content-Range. certain: the answer says that it was the size. It is false if
// there is nothing smaller to try.
func (p *pacer) tooLarge(n int64, ranged, certain bool) bool {
	half := n / 2
	if half > leastChunk {
		half = round(half)
	}
	half = max(half, leastBody)
	smaller := false
	p.learn(func() {
		most := &p.d.MaxBody
		if ranged {
			most = &p.d.MaxRanged
		}
		if *most > 0 {
			half = min(half, *most)
		}
		if smaller = max(half, p.least) < n; smaller {
			*most = half
			p.guessed = p.guessed || !certain
		}
	})
	return smaller
}

func (p *pacer) answersGET() { p.learn(func() { p.d.StatusGET, p.hint.StatusGET = true, false }) }

// answersStatus: a status request was answered with a Range.
func (p *pacer) answersStatus() { p.learn(func() { p.d.NoStatus = false }) }

// countsAlone: a session went on by our own count, against the Range. noStatus:
// a status request had got 404.
func (p *pacer) countsAlone(noStatus bool) {
	p.learn(func() {
		p.d.StuckRange, p.hint.StuckRange = true, false
		if noStatus {
			p.d.NoStatus, p.hint.NoStatus = true, false
		}
	})
}

func (p *pacer) endsAtCount() { p.learn(func() { p.d.OffByOne, p.hint.OffByOne = true, false }) }

// takesPut: a commit with a body was answered well.
func (p *pacer) takesPut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.puts = 0
}

// refusesPut: a blob that was refused as the body of a commit arrived otherwise.
// One may have been refused because its session was lost.
func (p *pacer) refusesPut() {
	p.learn(func() {
		if p.puts++; p.puts > 1 {
			p.d.NoPutBody, p.hint.NoPutBody = true, false
		}
	})
}

// announced notes what the registry says about the sizes of chunks when it opens
// a session.
func (p *pacer) announced(l protocol.ChunkLengths) {
	p.learn(func() { p.least, p.d.MaxChunk, p.hint.MaxChunk = l.Min, l.Max, 0 })
}
