package conntrack

import (
	"testing"

	"github.com/google/nftables/expr"
)

// A map whose key is not known protects only if all that it may do does.
func TestVerdictOfAMap(t *testing.T) {
	v := func(kind expr.VerdictKind, chain string) *nftElement {
		return &nftElement{verdict: &expr.Verdict{Kind: kind, Chain: chain}}
	}
	for _, c := range []struct {
		name string
		may  []*nftElement
		want action
		to   string
		also int
	}{
		{"nothing", nil, pass, "", 0},
		{"the end of an interval", []*nftElement{{last: true}}, pass, "", 0},
		{"drops", []*nftElement{v(expr.VerdictDrop, ""), v(expr.VerdictDrop, "")}, drop, "", 0},
		{"returns", []*nftElement{v(expr.VerdictReturn, "")}, back, "", 0},
		{"one chain", []*nftElement{v(expr.VerdictJump, "a"), v(expr.VerdictJump, "a")}, jump, "a", 0},
		{"two chains", []*nftElement{v(expr.VerdictJump, "a"), v(expr.VerdictGoto, "b")}, accept, "", 2},
		{"drop and return", []*nftElement{v(expr.VerdictDrop, ""), v(expr.VerdictReturn, "")}, accept, "", 0},
		{"drop and jump", []*nftElement{v(expr.VerdictDrop, ""), v(expr.VerdictJump, "a")}, accept, "", 1},
	} {
		var s step
		mapVerdict(c.may, &s)
		if s.action != c.want || s.to != c.to || len(s.also) != c.also {
			t.Errorf("%s: got %+v, want %d %s", c.name, s, c.want, c.to)
		}
	}
}
