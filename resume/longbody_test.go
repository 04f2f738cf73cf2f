// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

var gatewayStatuses = []int{http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout, 524}

// A gateway that ends long bodies does not get the same body again and again.
// What got through, cut down to a quarter, is the size of the chunks from then
// on, and the next push begins with it.
func TestGatewayEndsLongBodies(t *testing.T) {
	for _, status := range few(gatewayStatuses) {
		for _, whole := range []bool{false, true} {
			for name, store := range map[string]scripted.Store{"boundary": scripted.Boundary, "fragile": scripted.Fragile} {
				if store == scripted.Fragile && whole {
					continue
				}
				t.Run(fmt.Sprintf("%d/%s/whole=%v", status, name, whole), func(t *testing.T) {
					ds := resume.MemoryDialects()
					o := scripted.Options{Store: store, EndsBodies: status, EndsAt: 11 * mib, EndsWhole: whole, EndsAfter: 50 * time.Second}
					inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
						l.net.Latency = latency
						l.delivers(content(22 * mib))
						ended := 0
						for _, p := range l.patches() {
							if p.Status == status {
								ended++
							}
						}
						if ended != 1 {
							t.Errorf("%d bodies were ended, want 1", ended)
						}
						if d, _ := ds.Load(host); d.MaxTimed < 5*mib || d.MaxTimed > 11*mib || d.Class != resume.Unproved {
							t.Errorf("learnt %+v", d)
						}
					})
					inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
						l.net.Latency = latency
						if res := l.delivers(content(22 * mib)); res.Breaks+res.Restarts != 0 {
							t.Errorf("the next blob: %+v", res)
						}
						size := l.patches()[0].Length
						for _, p := range l.patches() {
							if end := max(p.Start, 0) + p.Length; p.Start < 0 || p.Length != size && end != 22*mib {
								t.Errorf("a chunk of %d at %d, want %d", p.Length, p.Start, size)
							}
						}
					})
				})
			}
		}
	}
}

// What the registry kept of the body is not sent again, and nothing needs to be
// learnt.
func TestGatewayEndsBodiesThatAreKept(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{EndsBodies: http.StatusGatewayTimeout, EndsAt: 11 * mib, EndsAfter: 50 * time.Second}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		res := l.delivers(content(22 * mib))
		if res.Restarts != 0 || l.received() != 22*mib {
			t.Errorf("result %+v, %d bytes received", res, l.received())
		}
		if d, _ := ds.Load(host); d.MaxTimed != 0 {
			t.Errorf("learnt %+v", d)
		}
	})
}

// A gateway that answers at once stands before a registry that is down: only a
// second answer to a large body counts, and never one to a small body.
func TestGatewayAnswersAtOnce(t *testing.T) {
	for size, learnt := range map[int]bool{5 * mib: false, 40 * mib: true} {
		ds := resume.MemoryDialects()
		o := scripted.Options{Store: scripted.Boundary, Intercept: func(r scripted.Request) scripted.Action {
			if r.Kind == scripted.Patch && r.Seq <= 2 {
				return scripted.Action{EndBody: http.StatusBadGateway}
			}
			return scripted.Action{}
		}}
		inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
			l.net.Latency = latency
			l.delivers(content(size))
			if n := l.patches()[1].Length; n != int64(size) {
				t.Errorf("%d bytes after one answer, want all %d", n, size)
			}
			if d, _ := ds.Load(host); (d.MaxTimed > 0) != learnt {
				t.Errorf("learnt %+v from a body of %d bytes", d, size)
			}
		})
	}
	// Down for long: nothing is learnt before something gets through.
	ds := resume.MemoryDialects()
	o := scripted.Options{Intercept: func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Patch {
			return scripted.Action{EndBody: http.StatusBadGateway, DelayBefore: 30 * time.Second}
		}
		return scripted.Action{}
	}, Store: scripted.Boundary}
	inLab(t, o, resume.Options{Dialects: ds, RetryFor: 3 * time.Minute}, func(l *lab) {
		l.net.Latency = latency
		l.fails(blobOf(content(30*mib)), resume.ErrInterrupted)
		if d, _ := ds.Load(host); d.MaxTimed != 0 {
			t.Errorf("learnt %+v", d)
		}
	})
}

// A registry that takes one PATCH per session gets one, whatever the gateway.
func TestGatewayAndOnePatch(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{Class: resume.Monolithic, MaxTimed: 5 * mib})
	inLab(t, scripted.Options{OnePatch: true}, resume.Options{Dialects: ds}, func(l *lab) {
		l.delivers(content(20 * mib))
		if n := len(l.patches()); n != 1 {
			t.Errorf("%d PATCHes, want 1", n)
		}
	})
}

// What was taken for a registry of one PATCH per session gets chunks if a gateway
// does not let that one through.
func TestGatewayCorrectsOnePatch(t *testing.T) {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{Class: resume.Monolithic})
	o := scripted.Options{Store: scripted.Boundary, EndsBodies: 524, EndsAt: 11 * mib, EndsWhole: true, EndsAfter: 100 * time.Second}
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.delivers(content(22 * mib))
		learns(t, ds, resume.Unproved)
	})
}

// The same where nobody says where a session stands.
func TestGatewayWithoutStatus(t *testing.T) {
	for _, store := range []scripted.Store{scripted.Boundary, scripted.Fragile} {
		ds := resume.MemoryDialects()
		ds.Save(host, resume.Dialect{StuckRange: true, NoStatus: true})
		o := scripted.Options{
			Store: store, Status: scripted.MissingStatus, OneLocation: true,
			EndsBodies: http.StatusGatewayTimeout, EndsAt: 2 * mib, EndsWhole: true, EndsAfter: 50 * time.Second,
		}
		inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
			l.net.Latency = latency
			l.delivers(content(4 * mib))
			if n := l.received(); n > 3*4*mib {
				t.Errorf("%d bytes received", n)
			}
		})
	}
}
