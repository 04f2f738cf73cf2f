// SPDX-License-Identifier: Apache-2.0

package manifest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rpush-go/rpush/internal/manifest"
)

// node is a manifest or a blob of a made-up image.
type node struct {
	d          v1.Descriptor
	isManifest bool
	children   []node
}

func hash(i int) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064x", i)} }

func blob(i int, size int64) node {
	return node{d: v1.Descriptor{Digest: hash(i), Size: size}}
}

func doc(i int, size int64, children ...node) node {
	return node{d: v1.Descriptor{Digest: hash(i), Size: size}, isManifest: true, children: children}
}

// steps notes the steps of a walk.
type steps struct {
	log    []string
	onStep func()
}

func (s *steps) Describe(_ context.Context, n node) (v1.Descriptor, bool, error) {
	return n.d, n.isManifest, nil
}

func (s *steps) Enter(_ context.Context, n node, depth int) ([]node, error) {
	if s.onStep != nil {
		s.onStep()
	}
	s.log = append(s.log, fmt.Sprintf("+%s.%d", strings.TrimLeft(n.d.Digest.Hex, "0"), depth))
	return n.children, nil
}

func (s *steps) Leave(_ context.Context, n node, children []node) error {
	s.log = append(s.log, fmt.Sprintf("-%s/%d", strings.TrimLeft(n.d.Digest.Hex, "0"), len(children)))
	return nil
}

func TestWalk(t *testing.T) {
	image := doc(1, 5, blob(7, 70), blob(8, 80))
	for _, c := range []struct {
		name  string
		roots []node
		want  string
		err   string
	}{
		{"an image", []node{image}, "+1.0 +7.1 +8.1 -1/2", ""},
		{"an index of one image twice", []node{doc(2, 5, image, image)}, "+2.0 +1.1 +7.2 +8.2 -1/2 -2/2", ""},
		{"twice", []node{image, doc(2, 5, image)}, "+1.0 +7.1 +8.1 -1/2 +2.0 -2/1", ""},
		{"as a manifest and as a blob", []node{doc(2, 5, image, blob(1, 5))}, "+2.0 +1.1 +7.2 +8.2 -1/2 +1.1 -2/2", ""},
		{"two sizes", []node{image, blob(7, 71)}, "+1.0 +7.1 +8.1 -1/2", "70 bytes and 71 bytes"},
		{"two sizes of a manifest", []node{image, doc(1, 6)}, "+1.0 +7.1 +8.1 -1/2", "5 bytes and 6 bytes"},
		{"a large blob", []node{blob(3, 1<<40)}, "+3.0", ""},
		{"a large manifest", []node{doc(3, manifest.MaxSize+1)}, "", "more than 4194304"},
		{"a negative size", []node{blob(3, -1)}, "", "size -1"},
		{"no digest", []node{{d: v1.Descriptor{MediaType: "m"}}}, "", `type "m" has no digest`},
	} {
		s := &steps{}
		w := manifest.Walker[node]{Tree: s}
		var err error
		for _, root := range c.roots {
			if err == nil {
				err = w.Walk(t.Context(), root)
			}
		}
		if got := strings.Join(s.log, " "); got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %s, %v, want %s, %q", c.name, got, err, c.want, c.err)
		}
	}
}

func TestWalkIsBounded(t *testing.T) {
	walk := func(root node) error {
		w := manifest.Walker[node]{Tree: &steps{}}
		return w.Walk(t.Context(), root)
	}
	list := func(n int, one func(int) node) node {
		root := doc(0xffffff, 1)
		for i := range n {
			root.children = append(root.children, one(i+1))
		}
		return root
	}
	deep := func(n int) node {
		root := doc(1, 1)
		for i := range n {
			root = doc(i+2, 1, root)
		}
		return root
	}
	const full = manifest.MaxTotal/manifest.MaxSize - 1
	for _, c := range []struct {
		name string
		root node
		want string
	}{
		{"the most blobs", list(manifest.MaxVisits-1, func(i int) node { return blob(i, 1) }), ""},
		{"too many blobs", list(manifest.MaxVisits, func(i int) node { return blob(i, 1) }), "more than 8192"},
		{"large manifests", list(full, func(i int) node { return doc(i, manifest.MaxSize) }), ""},
		{"too many large manifests", list(full+1, func(i int) node { return doc(i, manifest.MaxSize) }), "8388608 bytes together"},
		{"the deepest", deep(manifest.MaxDepth), ""},
		{"too deep", deep(manifest.MaxDepth + 1), "nested deeper than 16"},
	} {
		if err := walk(c.root); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestWalkEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	s := &steps{onStep: func() { cancel(enough) }}
	w := manifest.Walker[node]{Tree: s}
	if err := w.Walk(ctx, doc(1, 1, blob(2, 1))); !errors.Is(err, enough) || len(s.log) != 1 {
		t.Errorf("got %v after %q", err, s.log)
	}
}
