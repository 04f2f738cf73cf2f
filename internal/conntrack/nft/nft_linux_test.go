// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables/expr"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// A map whose key is not known protects only if all that it may do does.
func TestVerdictOfAMap(t *testing.T) {
	v := func(kind expr.VerdictKind, chain string) *element {
		return &element{verdict: &expr.Verdict{Kind: kind, Chain: chain}}
	}
	for _, c := range []struct {
		name string
		may  []*element
		want rules.Action
		to   string
		also int
	}{
		{"nothing", nil, rules.Pass, "", 0},
		{"the end of an interval", []*element{{last: true}}, rules.Pass, "", 0},
		{"drops", []*element{v(expr.VerdictDrop, ""), v(expr.VerdictDrop, "")}, rules.Drop, "", 0},
		{"returns", []*element{v(expr.VerdictReturn, "")}, rules.Return, "", 0},
		{"one chain", []*element{v(expr.VerdictJump, "a"), v(expr.VerdictJump, "a")}, rules.Jump, "a", 0},
		{"two chains", []*element{v(expr.VerdictJump, "a"), v(expr.VerdictGoto, "b")}, rules.Accept, "", 2},
		{"drop and return", []*element{v(expr.VerdictDrop, ""), v(expr.VerdictReturn, "")}, rules.Accept, "", 0},
		{"drop and jump", []*element{v(expr.VerdictDrop, ""), v(expr.VerdictJump, "a")}, rules.Accept, "", 1},
	} {
		var s rules.Step
		mapVerdict(c.may, &s)
		if s.Action != c.want || s.To != c.to || len(s.Also) != c.also {
			t.Errorf("%s: got %+v, want %d %s", c.name, s, c.want, c.to)
		}
	}
}

// Of an address that comes from outside only one thing is known: it is no
// loopback address. What an order says about it is not.
func TestCompareUnknownAddress(t *testing.T) {
	r := register{what: "daddr", kind: addrValue}
	loopback := []byte{127, 0, 0, 0}
	for op, want := range map[expr.CmpOp]rules.Truth{
		expr.CmpOpEq: rules.No, expr.CmpOpNeq: rules.Yes,
		expr.CmpOpLt: rules.Maybe, expr.CmpOpLte: rules.Maybe, expr.CmpOpGt: rules.Maybe, expr.CmpOpGte: rules.Maybe,
	} {
		if got := compare(op, r, loopback, rules.Packet{IsFromOutside: true}); got != want {
			t.Errorf("compare(%v) = %v, want %v", op, got, want)
		}
	}
}

func load(t testing.TB, path string) *Dump {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d Dump
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// A condition that is not understood must not be lost: the rule would look as
// if it always applied.
func TestUnknownConditionsAreKept(t *testing.T) {
	set := &rules.Set{}
	if err := Parse(load(t, someKernel+"/nft-limit.nft.json"), set); err != nil {
		t.Fatal(err)
	}
	j := set.Judge(rules.Packet{Port: 5000, IsLocal: rules.Yes})
	if len(j.Guards) != 1 || j.Guards[0].Effect != rules.Partly || len(j.Guards[0].If) == 0 {
		t.Errorf("got %+v", j.Guards)
	}
}

const someKernel = "../testdata/linux-6.18"

func FuzzNFT(f *testing.F) {
	files, _ := filepath.Glob("../testdata/linux-*/*.nft.json")
	for _, file := range files {
		d := load(f, file)
		for _, list := range [][]Message{d.Chains, d.Rules, d.Sets, d.Elements} {
			for _, m := range list {
				f.Add(m.Family, m.Data)
			}
		}
	}
	base := load(f, someKernel+"/nft-vmap.nft.json")
	f.Fuzz(func(t *testing.T, family byte, data []byte) {
		m := Message{family, data}
		d := &Dump{
			Chains: append(slices.Clone(base.Chains), m), Rules: append(slices.Clone(base.Rules), m),
			Sets: append(slices.Clone(base.Sets), m), Elements: append(slices.Clone(base.Elements), m),
		}
		set := &rules.Set{}
		if err := Parse(d, set); err != nil {
			return
		}
		all, _ := set.Mappings([]rules.Packet{{IsLocal: rules.Yes, IsFromOutside: true}, {IsV6: true, IsLocal: rules.Yes, IsFromOutside: true}})
		set.JudgeMappings(all, func(bool) netip.Addr { return netip.Addr{} })
	})
}
