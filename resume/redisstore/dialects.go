// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/rpush-go/rpush/resume"
)

// dialectsFor is how long what was learnt about a host is believed: registries
// are upgraded, proxies reconfigured.
const dialectsFor = 7 * 24 * time.Hour

// Dialects returns resume.Dialects in the same Redis: what one machine learns
// about a registry, all use. Entries expire after a week. An entry that cannot be
// read is as good as none, and one that cannot be kept is no error: these are
// hints.
func (s *Store) Dialects() resume.Dialects { return dialects{s} }

type dialects struct{ s *Store }

type dialectValue struct {
	Version int `json:"version"`
	resume.Dialect
}

func (d dialects) name(host string) string {
	h := sha256.Sum256([]byte(host))
	return d.s.o.Prefix + "dialect:{" + hex.EncodeToString(h[:16]) + "}"
}

// Load implements resume.Dialects.
func (d dialects) Load(host string) (resume.Dialect, bool) {
	if d.s.away() != nil {
		return resume.Dialect{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), d.s.o.Timeout)
	defer cancel()
	name := d.name(host)
	b, err := d.s.redis.Get(ctx, name).Bytes()
	if err != nil || len(b) > maxValue {
		return resume.Dialect{}, false
	}
	plain, err := d.s.seal.open(name, b)
	var v dialectValue
	if err != nil || json.Unmarshal(plain, &v) != nil || v.Version != version {
		return resume.Dialect{}, false
	}
	return v.Dialect, true
}

// Save implements resume.Dialects.
func (d dialects) Save(host string, learnt resume.Dialect) {
	if d.s.away() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), d.s.o.Timeout)
	defer cancel()
	b, err := json.Marshal(dialectValue{version, learnt})
	if err == nil {
		name := d.name(host)
		err = d.s.redis.Set(ctx, name, d.s.seal.seal(name, b), dialectsFor).Err()
		_ = d.s.note(context.Background(), err) // a hint that is not kept is no loss
	}
}
