// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/rpush-go/rpush/resume"
)

// store is a resume.Store in a bbolt database, which one process has open at a
// time: that settles who may write between processes. Within this one held
// does.
type store struct {
	db *bbolt.DB

	mu   sync.Mutex
	held map[resume.Key]bool
}

var sessions = []byte("sessions")

// open makes the database readable by its owner alone: records carry upload
// locations, which can be capabilities.
func open(path string) (*store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(sessions)
		return err
	})
	if err != nil {
		db.Close() //nolint:errcheck // the first error counts
		return nil, err
	}
	return &store{db: db, held: map[resume.Key]bool{}}, nil
}

func (s *store) Close() error { return s.db.Close() }

func (s *store) Reserve(_ context.Context, k resume.Key) (resume.Lease, error) {
	id, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[k] {
		return nil, resume.ErrHeld
	}
	s.held[k] = true
	return &lease{s: s, k: k, id: id}, nil
}

func (s *store) Forget(_ context.Context, k resume.Key) error {
	id, err := json.Marshal(k)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[k] {
		return nil
	}
	return s.remove(id)
}

func (s *store) remove(id []byte) error {
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(sessions).Delete(id) })
}

type lease struct {
	s  *store
	k  resume.Key
	id []byte
}

func (l *lease) Load(context.Context) (r resume.Record, err error) {
	err = l.s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(sessions).Get(l.id)
		if b == nil {
			return resume.ErrNoRecord
		}
		return json.Unmarshal(b, &r)
	})
	return r, err
}

// Save is durable once it returns: bbolt syncs every transaction.
func (l *lease) Save(_ context.Context, r resume.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return l.s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(sessions).Put(l.id, b) })
}

func (l *lease) Remove(context.Context) error { return l.s.remove(l.id) }

// Renew has nothing to do: nobody else has the database open.
func (l *lease) Renew(context.Context) error { return nil }

func (l *lease) Release(context.Context) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.held, l.k)
	return nil
}
