// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
	"github.com/rpush-go/rpush/resume/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a store in the Redis at addr.
func open(t *testing.T, addr string, o Options) *Store {
	t.Helper()
	s, err := Open("redis://"+addr, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var key = resume.Key{Registry: "https://registry.example:443", Repository: "team/app", Digest: digest.FromString("a layer")}

func record(k resume.Key) resume.Record {
	return resume.Record{
		Key: k, Location: "https://registry.example/v2/team/app/blobs/uploads/1?_state=secret", Size: 100, Offset: 50, Acked: 60,
		Opened: time.Now().UTC().Truncate(time.Second), Updated: time.Now().UTC().Truncate(time.Second),
	}
}

// The suite that every store has to pass, with a key and without.
func TestStore(t *testing.T) {
	for name, secret := range map[string][]byte{"clear": nil, "encrypted": bytes.Repeat([]byte{7}, KeySize)} {
		t.Run(name, func(t *testing.T) {
			addr := realreg.StartRedis(t)
			raw := redis.NewClient(&redis.Options{Addr: addr})
			t.Cleanup(func() { raw.Close() })
			storetest.Run(t, storetest.Options{
				New: func(t *testing.T) func() resume.Store {
					if err := raw.FlushAll(t.Context()).Err(); err != nil {
						t.Fatal(err)
					}
					return func() resume.Store { return open(t, addr, Options{Key: secret}) }
				},
				TakeOver: func(t *testing.T, k resume.Key) {
					if err := raw.Del(t.Context(), open(t, addr, Options{}).name(k)+leaseSuffix).Err(); err != nil {
						t.Fatal(err)
					}
				},
			})
		})
	}
}

// reserved gets the right to the record of k.
func reserved(t *testing.T, s *Store, k resume.Key) resume.Lease {
	t.Helper()
	l, err := s.Reserve(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Whoever reads the values in Redis learns nothing from them if there is a key,
// and whoever writes them cannot pass one off for another.
func TestEncryption(t *testing.T) {
	addr := realreg.StartRedis(t)
	raw := redis.NewClient(&redis.Options{Addr: addr})
	defer raw.Close()
	secret := open(t, addr, Options{Key: bytes.Repeat([]byte{7}, KeySize)})
	other := key
	other.Digest = digest.FromString("another layer")
	for _, k := range []resume.Key{key, other} {
		l := reserved(t, secret, k)
		if err := l.Save(t.Context(), record(k)); err != nil {
			t.Fatal(err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	secret.Dialects().Save("registry.example", resume.Dialect{Class: resume.Exact})

	keys, err := raw.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 3 {
		t.Fatalf("%d keys, %v; want two records and a dialect", len(keys), err)
	}
	for _, k := range keys {
		v, err := raw.Get(t.Context(), k).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"registry.example", "team/app", "uploads", "_state", "exact", key.Digest.Encoded()} {
			if strings.Contains(v, word) || strings.Contains(k, word) {
				t.Errorf("%q is in the key or the value of %s", word, k)
			}
		}
		if ttl := raw.PTTL(t.Context(), k).Val(); ttl <= 0 {
			t.Errorf("%s never expires", k)
		}
	}
	if got, err := reserved(t, secret, key).Load(t.Context()); err != nil || got != record(key) {
		t.Errorf("Load: %v, %v", got, err)
	}

	swapped, err := raw.Get(t.Context(), secret.name(other)+recordSuffix).Result()
	if err != nil {
		t.Fatal(err)
	}
	plain := `{"version":1,"registry":"https://registry.example:443","location":"https://evil.example/"}`
	for what, v := range map[string]string{"the record of another blob": swapped, "a record in clear": plain, "garbage": "\x01garbage"} {
		if err := raw.Set(t.Context(), secret.name(key)+recordSuffix, v, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		raw.Del(t.Context(), secret.name(key)+leaseSuffix)
		if _, err := reserved(t, secret, key).Load(t.Context()); err == nil || errors.Is(err, resume.ErrNoRecord) || strings.Contains(err.Error(), "evil") {
			t.Errorf("%s was taken for the record: %v", what, err)
		}
	}
	if d, ok := secret.Dialects().Load("registry.example"); !ok || d.Class != resume.Exact {
		t.Errorf("dialect %v, %t", d, ok)
	}
	if d, ok := open(t, addr, Options{Key: bytes.Repeat([]byte{8}, KeySize)}).Dialects().Load("registry.example"); ok {
		t.Errorf("a dialect was read with another key: %v", d)
	}
}

// Someone else's lease ends ours, whatever we still believe.
func TestTakenOver(t *testing.T) {
	addr := realreg.StartRedis(t)
	raw := redis.NewClient(&redis.Options{Addr: addr})
	defer raw.Close()
	a, b := open(t, addr, Options{Holder: "agent a"}), open(t, addr, Options{Holder: "agent b"})
	first := reserved(t, a, key)
	if err := first.Save(t.Context(), record(key)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Reserve(t.Context(), key); !errors.Is(err, resume.ErrHeld) {
		t.Fatalf("Reserve of what is held: %v", err)
	}
	all, err := b.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Holder != "agent a" || all[0].Record != record(key) {
		t.Fatalf("List: %v, %v", all, err)
	}
	raw.Del(t.Context(), a.name(key)+leaseSuffix) // it expires
	second := reserved(t, b, key)
	later := record(key)
	later.Offset = 70
	if err := second.Save(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if err := first.Save(t.Context(), record(key)); !errors.Is(err, resume.ErrLeaseLost) {
		t.Errorf("Save after the lease: %v", err)
	}
	if err := first.Remove(t.Context()); !errors.Is(err, resume.ErrLeaseLost) {
		t.Errorf("Remove after the lease: %v", err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("Release after the lease: %v", err)
	}
	if err := a.Forget(t.Context(), key); err != nil {
		t.Errorf("Forget of what another has: %v", err)
	}
	if got, err := second.Load(t.Context()); err != nil || got != later {
		t.Errorf("the second holder's record became %v, %v", got, err)
	}
}

// Whoever uploads a blob when Redis loses everything keeps the right to it.
func TestEmptied(t *testing.T) {
	addr := realreg.StartRedis(t)
	raw := redis.NewClient(&redis.Options{Addr: addr})
	defer raw.Close()
	s := open(t, addr, Options{})
	for what, call := range map[string]func(resume.Lease) error{
		"Renew": func(l resume.Lease) error { return l.Renew(t.Context()) },
		"Save":  func(l resume.Lease) error { return l.Save(t.Context(), record(key)) },
	} {
		l := reserved(t, s, key)
		if err := l.Save(t.Context(), record(key)); err != nil {
			t.Fatal(err)
		}
		if err := raw.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if err := call(l); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := s.Reserve(t.Context(), key); !errors.Is(err, resume.ErrHeld) {
			t.Errorf("Reserve after %s: %v", what, err)
		}
		if got, err := l.Load(t.Context()); err != nil || got != record(key) {
			t.Errorf("Load after %s: %v, %v", what, got, err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A Redis that does not answer is asked once, not for every layer.
func TestAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	s := open(t, addr, Options{})
	_, first := s.Reserve(t.Context(), key)
	if first == nil || !strings.Contains(first.Error(), "redis") {
		t.Fatalf("Reserve without a Redis: %v", first)
	}
	if _, err := s.Reserve(t.Context(), key); err != s.failed.Load().err {
		t.Errorf("the second Reserve asked again: %v", err)
	}
	if _, err := s.Reserve(t.Context(), key); errors.Is(err, resume.ErrHeld) {
		t.Errorf("a Redis that is away means held: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s = open(t, addr, Options{})
	if _, err := s.Reserve(ended, key); err == nil || s.failed.Load() != nil {
		t.Errorf("a call that was cancelled counts as a failure of Redis: %v", err)
	}
}

func TestOpen(t *testing.T) {
	for url, good := range map[string]bool{
		"redis://localhost":                                               true,
		"redis://user:pass@localhost:6379/3":                              true,
		"rediss://localhost":                                              true,
		"unix:///run/redis.sock?db=1":                                     true,
		"redis://sentinel:26379?master_name=main&addr=other:26379":        true,
		"redis://node:6379?addr=other:6379":                               true,
		"redis://localhost?lease=10s":                                     true,
		"redis://localhost?lease=10s&dial_timeout=1s":                     true,
		"redis://localhost?lease=10":                                      false,
		"redis://localhost?lease=10ms":                                    false,
		"redis://localhost?lease=2h":                                      false,
		"redis://localhost?lease=":                                        false,
		"http://localhost":                                                false,
		"localhost:6379":                                                  false,
		"redis://":                                                        false,
		"redis://user:secret@localhost:notaport":                          false,
		"redis://user:secret@localhost:6379/notadb":                       false,
		"redis://user:secret@localhost:6379?unknown_parameter=1":          false,
		"redis://user:secret@localhost:6379?master_name=m&dial_timeout=x": false,
		"": false,
	} {
		s, err := Open(url, nil, Options{})
		if (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error quotes the password: %v", err)
		}
		if s != nil {
			s.Close()
		}
	}
	for name, o := range map[string]Options{
		"short key":      {Key: []byte("short")},
		"timeout":        {Timeout: -1},
		"pattern prefix": {Prefix: "ci*"},
	} {
		if s, err := Open("redis://localhost", nil, o); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
