// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/tempfile"
)

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
func (zeros) Close() error               { return nil }

// Bodies of other clients pass through a tail or a spool. testdata/bench.txt has
// what these cost; see CONTRIBUTING.md.

func BenchmarkTail(b *testing.B) {
	buf := make([]byte, 32<<10)
	r := newTail(zeros{}, 0).open(0)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSpool(b *testing.B) {
	buf := make([]byte, 32<<10)
	o := tempfile.Options{Dir: b.TempDir(), Quota: tempfile.NewQuota(1 << 20)} // then it only passes through
	s := newSpool(zeros{}, -1, o)
	defer s.close()
	r, err := s.open(context.Background(), 0)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// A record is saved before the first byte that follows a new location.
func BenchmarkFileStoreSave(b *testing.B) {
	k := Key{Registry: "https://reg.test:443", Repository: "team/app", Digest: digest.FromString("a")}
	l, err := NewFileStore(b.TempDir()).Reserve(b.Context(), k)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Release(context.Background())
	now := time.Now().UTC().Truncate(time.Second)
	r := Record{Key: k, Location: "https://reg.test/v2/team/app/blobs/uploads/1", Size: 1 << 30, Opened: now, Updated: now}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Save(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}
