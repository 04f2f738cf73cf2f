package conntrack

import (
	"fmt"
	"strings"
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

func natRules(t *testing.T, lines ...string) *ruleset {
	t.Helper()
	set := &ruleset{}
	dump := "*nat\n:PREROUTING ACCEPT [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	if err := xtRules([]byte(dump), false, set); err != nil {
		t.Fatal(err)
	}
	return set
}

// Without a registry every port is looked at, also those that are named only
// as part of a range.
func TestTranslatedRanges(t *testing.T) {
	const to = " -j DNAT --to-destination 10.77.2.2"
	var many []string
	for i := range maxPorts {
		many = append(many, fmt.Sprintf("-A PREROUTING -p tcp -m tcp --dport %d%s", 10000+2*i, to))
	}
	for _, c := range []struct {
		name  string
		rules []string
		want  string
		cut   bool
	}{
		{"one", []string{"-A PREROUTING -p tcp -m tcp --dport 5000" + to}, "5000", false},
		{"a range", []string{"-A PREROUTING -p tcp -m tcp --dport 5000:5010" + to}, "5000-5010", false},
		{"up to the last", []string{"-A PREROUTING -p tcp -m tcp --dport 32768:65535" + to}, "32768-65535", false},
		{"several", []string{"-A PREROUTING -p tcp -m multiport --dports 22,5000:5010" + to}, "22, 5000-5010", false},
		{"all", []string{"-A PREROUTING -p tcp" + to}, "0", false},
		{"all but one", []string{"-A PREROUTING -p tcp -m tcp ! --dport 22" + to}, "1-21, 23-65535", false},
		{"one that is accepted before", []string{"-A PREROUTING -p tcp -m tcp --dport 5005 -j ACCEPT", "-A PREROUTING -p tcp -m tcp --dport 5000:5010" + to}, "5000-5004, 5006-5010", false},
		{"loopback only", []string{"-A PREROUTING -d 127.0.0.1/32 -p tcp -m tcp --dport 5000" + to, "-A PREROUTING -d 127.0.0.0/8 -p tcp -m tcp --dport 5001" + to}, "", false},
		{"all but loopback", []string{"-A PREROUTING ! -d 127.0.0.0/8 -p tcp -m tcp --dport 5000" + to}, "5000", false},
		{"400", many[:400], "", false},
		{"too many", many, "", true},
	} {
		all, cut := mappings(natRules(t, c.rules...), nil, nil)
		var got []PortRange
		for _, m := range all {
			got = append(got, m.ports())
		}
		if len(c.rules) >= 400 {
			if cut != c.cut || !c.cut && len(all) != len(c.rules) {
				t.Errorf("%s: got %d of %d, %t", c.name, len(all), len(c.rules), cut)
			}
		} else if joinPorts(got) != c.want || cut != c.cut {
			t.Errorf("%s: got %s, %t, want %s", c.name, joinPorts(got), cut, c.want)
		}
	}
}

// A range is protected where each of its ports is.
func TestRangeIsJudgedWhole(t *testing.T) {
	const drop = "-A INPUT -m conntrack --ctstate INVALID -j DROP"
	for _, c := range []struct {
		rules []string
		open  int
	}{
		{[]string{drop}, 0},
		{[]string{"-A INPUT -p tcp -m tcp --dport 5005 -j ACCEPT", drop}, 1},
		{[]string{"-A INPUT -p tcp -m tcp --dport 5011 -j ACCEPT", drop}, 0},
		{[]string{"-A INPUT -p tcp -m tcp --dport 5000:5009 -m conntrack --ctstate INVALID -j DROP"}, 1},
		{[]string{"-A INPUT -p tcp -m tcp --dport 5000:5010 -m conntrack --ctstate INVALID -j DROP"}, 0},
	} {
		j := guardsOf(legacyRules(t, c.rules...), []Mapping{{Port: 5000, Last: 5010}}, nil)
		if len(j.open) != c.open {
			t.Errorf("%q: got %+v", c.rules, j)
		}
	}
}

// Of an address that comes from outside only one thing is known: it is no
// loopback address. What an order says about it is not.
func TestCompareUnknownAddress(t *testing.T) {
	r := register{what: "daddr", kind: addrValue}
	loopback := []byte{127, 0, 0, 0}
	for op, want := range map[expr.CmpOp]tri{
		expr.CmpOpEq: no, expr.CmpOpNeq: yes,
		expr.CmpOpLt: maybe, expr.CmpOpLte: maybe, expr.CmpOpGt: maybe, expr.CmpOpGte: maybe,
	} {
		if got := compare(op, r, loopback, packet{outside: true}); got != want {
			t.Errorf("compare(%v) = %v, want %v", op, got, want)
		}
	}
}
