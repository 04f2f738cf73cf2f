// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// dies makes a style whose client ends after n bytes.
func (s style) dies(n int) style {
	whole := s.body
	s.body = func(p *passing, req *http.Request, data []byte) {
		whole(p, req, data)
		req.Body.Close()
		req.Body = p.watch(io.MultiReader(bytes.NewReader(data[:n]), failing{errors.New("the client is gone")}))
	}
	return s
}

// received is how many bytes of bodies the registry has received so far.
func (p *passing) received() (n int64) {
	for _, r := range p.reg.Requests() {
		n += r.Body
	}
	return n
}

var onceOnly = []style{
	{"PATCH, spool", true, bodyOnce},
	{"PATCH, length unknown", true, bodyUnknown},
	{"PUT, spool", false, bodyOnce},
}

// A client that is killed and sends the same layer again from its first byte
// sends the registry only what is missing, also through another process.
func TestContinueByContent(t *testing.T) {
	data := randomBytes(1, 12*mib)
	for _, s := range onceOnly {
		for _, died := range few([]int{mib - 1, mib, mib + 1, 5 * mib, 7*mib + 3, len(data) - 1}) {
			t.Run(fmt.Sprintf("%s/%d", s.name, died), func(t *testing.T) {
				o := resume.TransportOptions{Store: resume.MemoryStore()}
				onTransport(t, scripted.Options{}, &o, func(p *passing) {
					if err := p.upload(p.t.Context(), s.dies(died), data); err == nil {
						p.t.Fatal("the dying client's upload succeeded")
					}
					time.Sleep(time.Minute)
					before := p.received()
					p.rt = newTransport(p.t, p.base, resume.TransportOptions{Store: o.Store, SpoolDir: p.dir})
					if err := p.upload(p.t.Context(), s, data); err != nil {
						p.t.Fatal(err)
					}
					again := p.received() - int64(len(data))
					t.Logf("%d bytes arrived from the dying client, %d from the next", before, p.received()-before)
					if died > mib && again > 0 {
						t.Errorf("%d bytes were sent twice", again)
					}
					p.rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
				})
			})
		}
	}
}

// Another body with the same beginning is another upload.
func TestContentDiffers(t *testing.T) {
	for _, s := range onceOnly[:2] {
		for _, same := range few([]int{0, mib, mib + 1, 5 * mib, 7 * mib, 9*mib - 1}) {
			t.Run(fmt.Sprintf("%s/%d", s.name, same), func(t *testing.T) {
				data := randomBytes(1, 12*mib)
				other := bytes.Clone(data)
				copy(other[same:], randomBytes(2, len(data)-same))
				o := resume.TransportOptions{Store: resume.MemoryStore()}
				onTransport(t, scripted.Options{}, &o, func(p *passing) {
					if err := p.upload(p.t.Context(), s.dies(9*mib), data); err == nil {
						p.t.Fatal("the dying client's upload succeeded")
					}
					time.Sleep(time.Minute)
					for _, body := range [][]byte{other, data[:2*mib], data} {
						if err := p.upload(p.t.Context(), s, body); err != nil {
							t.Errorf("a body of %d bytes, the first %d of which are known: %v", len(body), same, err)
						}
					}
				})
			})
		}
	}
}

// A session that the registry has forgotten costs no more than a new one.
func TestContentOfLostSession(t *testing.T) {
	data := randomBytes(1, 6*mib)
	for _, s := range onceOnly {
		o := resume.TransportOptions{Store: resume.MemoryStore()}
		onTransport(t, scripted.Options{Store: scripted.Fragile}, &o, func(p *passing) {
			for range 2 {
				if err := p.upload(p.t.Context(), s.dies(5*mib), data); err == nil {
					p.t.Fatal("the dying client's upload succeeded")
				}
				time.Sleep(time.Minute)
			}
			if err := p.upload(p.t.Context(), s, data); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		})
	}
}

// Nothing is left of what has been committed, refused, or cannot be kept.
func TestContentIsForgotten(t *testing.T) {
	data := randomBytes(1, 6*mib)
	for _, s := range onceOnly {
		dir := t.TempDir()
		o := resume.TransportOptions{Store: resume.NewFileStore(dir)}
		onTransport(t, scripted.Options{}, &o, func(p *passing) {
			if err := p.upload(p.t.Context(), s, data); err != nil {
				t.Error(err)
			}
		})
		if all, err := resume.NewFileStore(dir).Records(); err != nil || len(all) != 0 {
			t.Errorf("%s: %v, %v", s.name, all, err)
		}
	}
}

// Bodies that do not fit into the spool go out, and are not kept.
func TestContentTooLarge(t *testing.T) {
	data := randomBytes(1, 8*mib)
	for _, s := range onceOnly[:2] {
		for _, limit := range few([]int64{-1, 1000, mib, 3 * mib, 6*mib + 5}) {
			o := resume.TransportOptions{Store: resume.MemoryStore(), SpoolLimit: limit}
			onTransport(t, scripted.Options{}, &o, func(p *passing) {
				p.upload(p.t.Context(), s.dies(7*mib), data)
				time.Sleep(time.Minute)
				for range 2 { // one failure may show that it cannot be continued
					err := p.upload(p.t.Context(), s, data)
					if err == nil {
						return
					}
					t.Logf("%s, limit %d: %v", s.name, limit, err)
					time.Sleep(time.Minute)
				}
				t.Errorf("%s, limit %d: does not arrive", s.name, limit)
			})
		}
	}
}

// Breaks on the way, a client that is killed, another process: whatever happens,
// the blob arrives as it is.
func TestContentThroughBreaks(t *testing.T) {
	data := randomBytes(1, 16*mib)
	for _, seed := range few([]uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := onceOnly[r.IntN(len(onceOnly))]
		store := resume.MemoryStore()
		o := resume.TransportOptions{Store: store}
		breaks := rand.New(rand.NewPCG(seed, 2))
		var mu sync.Mutex // the registry has several requests at once
		var after int64
		ro := scripted.Options{Intercept: func(q scripted.Request) scripted.Action {
			if q.Kind == scripted.Patch || q.Kind == scripted.Put {
				mu.Lock()
				defer mu.Unlock()
				if after++; after%2 == 1 {
					return scripted.Action{BreakBody: true, BodyLimit: 1 + breaks.Int64N(4*mib)}
				}
			}
			return scripted.Action{}
		}}
		onTransport(t, ro, &o, func(p *passing) {
			var err error
			for range 6 {
				ctx, cancel := context.WithTimeout(p.t.Context(), time.Hour)
				p.upload(ctx, s.dies(1+r.IntN(len(data)-1)), data)
				cancel()
				time.Sleep(time.Minute)
			}
			if err = p.upload(p.t.Context(), s, data); err != nil {
				t.Errorf("seed %d, %s: %v", seed, s.name, err)
			}
		})
	}
}

// A client that may push but not read is not asked for more than it may.
func TestContentOfClientThatMayNotRead(t *testing.T) {
	data := randomBytes(1, 3*mib)
	deny := func(q scripted.Request) scripted.Action {
		if q.Kind == scripted.HeadBlob {
			return scripted.Action{Before: http.StatusForbidden}
		}
		return scripted.Action{}
	}
	for _, s := range onceOnly {
		onTransport(t, scripted.Options{Intercept: deny}, &resume.TransportOptions{Store: resume.MemoryStore()}, func(p *passing) {
			if err := p.upload(p.t.Context(), s, data); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		})
	}
}
