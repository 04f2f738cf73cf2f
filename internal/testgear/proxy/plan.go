// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what a fault does to a connection.
type Kind int

const (
	// None leaves the connection alone.
	None Kind = iota
	// ResetClient sends RST to the client and FIN to the registry, which
	// therefore still gets every byte that was forwarded.
	ResetClient
	// ResetBoth sends RST both ways at once; what is in flight is lost.
	ResetBoth
	// Cut sends FIN both ways. What the client still sends is thrown away.
	Cut
	// Stall forwards nothing more in either direction and leaves both sockets
	// open, for Fault.For or until Proxy.Close; then both sides get RST.
	Stall
	// LoseAnswer goes on forwarding upstream, but the next bytes of the
	// registry are thrown away and the client is reset in their place (as by
	// ResetClient). With Fault.For the reset comes at the latest that long
	// after the trigger.
	LoseAnswer
)

func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case ResetClient:
		return "reset client"
	case ResetBoth:
		return "reset both"
	case Cut:
		return "cut"
	case Stall:
		return "stall"
	case LoseAnswer:
		return "lose answer"
	}
	return "unknown"
}

// Fault is what happens to one connection, once. The first trigger that is met
// fires it; with no trigger set it fires as the connection is accepted.
type Fault struct {
	Kind   Kind
	At     int64         // after exactly so many bytes forwarded to the registry
	AtDown int64         // after exactly so many bytes forwarded to the client
	Age    time.Duration // so long after the connection was accepted
	For    time.Duration // how long Stall and LoseAnswer last; 0 is without limit

	total *meter // counts At over all connections instead of this one
	gate  *gate  // how many more faults may fire
}

// Plan gives the fault of a connection, numbered from 0 in the order accepted.
// It is called from one goroutine.
type Plan func(conn int) Fault

// Every makes every connection meet f after n upstream bytes of its own. With
// parallel connections and small requests this is what "every connection is
// reset after n bytes" means; for a count over the whole link see EveryTotal.
func Every(n int64, f Fault) Plan {
	f.At = n
	return func(int) Fault { return f }
}

// EveryTotal makes f strike each n upstream bytes counted over all connections
// of the proxy; it hits the connection that forwarded the last of them.
func EveryTotal(n int64, f Fault) Plan {
	f.At, f.total = 0, &meter{every: n, left: n}
	return func(int) Fault { return f }
}

// Seeded makes every connection meet f after an exponentially distributed
// number of upstream bytes with the given mean. The distance depends only on
// the seed and the number of the connection.
func Seeded(seed uint64, mean int64, f Fault) Plan {
	return func(conn int) Fault {
		g := f
		r := rand.New(rand.NewPCG(seed, uint64(conn)))
		g.At = 1 + int64(r.ExpFloat64()*float64(mean))
		return g
	}
}

// First lets only the first k faults of the plan fire, counted as they fire:
// a connection that ends before its trigger uses none up.
func First(k int, plan Plan) Plan {
	left := &gate{}
	left.left.Store(int64(k))
	return func(conn int) Fault {
		f := plan(conn)
		if f.gate == nil {
			f.gate = left
		} else {
			f.gate = &gate{inner: f.gate, outer: left}
		}
		return f
	}
}

type gate struct {
	left         atomic.Int64
	inner, outer *gate
}

func (g *gate) pass() bool {
	switch {
	case g == nil:
		return true
	case g.inner != nil:
		return g.inner.pass() && g.outer.pass()
	}
	return g.left.Add(-1) >= 0
}

type meter struct {
	mu          sync.Mutex
	every, left int64
}

// take claims up to n bytes and says whether the fault is due after them.
func (m *meter) take(n int) (int, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := min(int64(n), m.left)
	if m.left -= k; m.left > 0 {
		return int(k), false
	}
	m.left = m.every
	return int(k), true
}
