// SPDX-License-Identifier: Apache-2.0

package rules_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/xtables"
	"github.com/rpush-go/rpush/internal/testgear/memory"
)

func legacyRules(t *testing.T, lines ...string) *rules.Set {
	t.Helper()
	set := &rules.Set{}
	dump := "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	if err := xtables.Parse([]byte(dump), false, set); err != nil {
		t.Fatal(err)
	}
	return set
}

// How the place, the conditions and the company of a drop decide.
func TestJudge(t *testing.T) {
	const drop = "-A INPUT -m conntrack --ctstate INVALID -j DROP"
	for _, c := range []struct {
		name  string
		rules []string
		want  rules.Effect
	}{
		{"none", nil, ""},
		{"plain", []string{drop}, rules.Protects},
		{"with a count", []string{"[12:3456] " + drop}, rules.Protects},
		{"state", []string{"-A INPUT -m state --state INVALID,NEW -j DROP"}, rules.Protects},
		{"not established", []string{"-A INPUT -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"}, rules.Protects},
		{"behind an accept", []string{"-A INPUT -p tcp -m tcp --dport 5000 -j ACCEPT", drop}, rules.AfterAccept},
		{"behind an accept of another port", []string{"-A INPUT -p tcp -m tcp --dport 5001 -j ACCEPT", drop}, rules.Protects},
		{"behind an accept of udp", []string{"-A INPUT -p udp -j ACCEPT", drop}, rules.Protects},
		{"behind an accept of what is established", []string{"-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", drop}, rules.Protects},
		{"behind an accept of loopback", []string{"-A INPUT -i lo -j ACCEPT", drop}, rules.Protects},
		{"behind an accept of an interface", []string{"-A INPUT -i eth1 -j ACCEPT", drop}, rules.Partly},
		{"behind an accept of a source", []string{"-A INPUT -s 10.0.0.0/8 -p tcp -j ACCEPT", drop}, rules.Partly},
		{"behind an accept of translated ones", []string{"-A INPUT -m conntrack --ctstatus DNAT -j ACCEPT", drop}, rules.Protects},
		{"of a source", []string{"-A INPUT -s 10.0.0.0/8 -m conntrack --ctstate INVALID -j DROP"}, rules.Partly},
		{"of a source, then all", []string{"-A INPUT -s 10.0.0.0/8 -m conntrack --ctstate INVALID -j DROP", drop}, rules.Protects},
		{"of another port", []string{"-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"of a range of ports", []string{"-A INPUT -p tcp -m multiport --dports 22,4000:6000 -m conntrack --ctstate INVALID -j DROP"}, rules.Protects},
		{"of no port but", []string{"-A INPUT -p tcp -m tcp ! --dport 5000 -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"in FORWARD", []string{"-A FORWARD -m conntrack --ctstate INVALID -j DROP"}, rules.ForwardOnly},
		{"in a chain", []string{"-A INPUT -j a", "-A a -m conntrack --ctstate INVALID -j DROP"}, rules.Protects},
		{"in a chain that returns first", []string{"-A INPUT -j a", "-A a -p tcp -j RETURN", "-A a -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"in a chain under a condition", []string{"-A INPUT -i eth1 -j a", "-A a -m conntrack --ctstate INVALID -j DROP"}, rules.Partly},
		{"a jump on the state", []string{"-A INPUT -m conntrack --ctstate INVALID -j a", "-A a -j LOG --log-prefix \"bad \\\" packet: \"", "-A a -j DROP"}, rules.Protects},
		{"behind an accept in a chain", []string{"-A INPUT -j a", "-A a -p tcp --dport 5000 -j ACCEPT", drop}, rules.AfterAccept},
		{"goto comes back to the caller's end", []string{"-A INPUT -g a", drop}, ""},
		{"behind a return of an interface", []string{"-A INPUT -i eth1 -j RETURN", drop}, rules.Partly},
		{"behind a return of an interface, in a chain", []string{"-A INPUT -j a", "-A a -s 10.0.0.0/8 -j RETURN", "-A a -m conntrack --ctstate INVALID -j DROP"}, rules.Partly},
		{"in the caller of a chain that returns", []string{"-A INPUT -j a", "-A a -s 10.0.0.0/8 -j RETURN", drop}, rules.Protects},
		{"behind a return of loopback", []string{"-A INPUT -i lo -j RETURN", drop}, rules.Protects},
		{"behind a goto of an interface", []string{"-A INPUT -i eth1 -g a", drop}, rules.Partly},
		{"behind a goto of an interface, that drops as well", []string{"-A INPUT -i eth1 -g a", drop, "-A a -m conntrack --ctstate INVALID -j DROP"}, rules.Partly},
		{"a circle", []string{"-A INPUT -j a", "-A a -j b", "-A b -j a", drop}, ""},
		{"a rejection", []string{"-A INPUT -m conntrack --ctstate INVALID -j REJECT --reject-with tcp-reset"}, rules.Answers},
		{"logged only", []string{"-A INPUT -m conntrack --ctstate INVALID -j LOG"}, ""},
		{"something unknown", []string{"-A INPUT -m quota --quota 500 -m conntrack --ctstate INVALID -j DROP"}, rules.Partly},
		{"a short comment", []string{`-A INPUT -m comment --comment -s -m conntrack --ctstate INVALID -j DROP`}, rules.Protects},
		{"a comment", []string{`-A INPUT -m comment --comment "-s 10.0.0.0/8 \"x" -m conntrack --ctstate INVALID -j DROP`}, rules.Protects},
	} {
		j := legacyRules(t, c.rules...).Judge(rules.Packet{Port: 5000, IsLocal: rules.Yes, To: netip.MustParseAddr("10.77.1.1")})
		var got rules.Effect
		if len(j.Guards) > 0 {
			got = j.Guards[0].Effect
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q: %+v", c.name, got, c.want, j.Guards)
		}
		if c.name == "a circle" && !j.IsEndless {
			t.Errorf("a circle was not noticed")
		}
	}
	// The policy is a drop as well.
	set := &rules.Set{}
	dump := "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
	if err := xtables.Parse([]byte(dump), false, set); err != nil {
		t.Fatal(err)
	}
	if got := set.Judge(rules.Packet{Port: 5000, IsLocal: rules.Yes}).Effect(); got != rules.Protects {
		t.Errorf("policy: got %q", got)
	}
	if got := set.Judge(rules.Packet{Port: 22, IsLocal: rules.Yes}).Effect(); got != "" {
		t.Errorf("policy, an open port: got %q", got)
	}
	if got := set.Judge(rules.Packet{Port: 5000, IsLocal: rules.Yes, IsV6: true}).Effect(); got != "" {
		t.Errorf("IPv6 is protected by rules of IPv4: %q", got)
	}
}

func natRules(t *testing.T, lines ...string) *rules.Set {
	t.Helper()
	set := &rules.Set{}
	dump := "*nat\n:PREROUTING ACCEPT [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	if err := xtables.Parse([]byte(dump), false, set); err != nil {
		t.Fatal(err)
	}
	return set
}

// Without a registry every port is looked at, also those that are named only
// as part of a range.
func TestTranslatedRanges(t *testing.T) {
	const to = " -j DNAT --to-destination 10.77.2.2"
	var many []string
	for i := range rules.MaxPorts {
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
		all, cut := natRules(t, c.rules...).Mappings([]rules.Packet{{IsLocal: rules.Yes, IsFromOutside: true}, {IsV6: true, IsLocal: rules.Yes, IsFromOutside: true}})
		var got []rules.PortRange
		for _, m := range all {
			got = append(got, m.Range())
		}
		if len(c.rules) >= 400 {
			if cut != c.cut || !c.cut && len(all) != len(c.rules) {
				t.Errorf("%s: got %d of %d, %t", c.name, len(all), len(c.rules), cut)
			}
		} else if rules.JoinPorts(got) != c.want || cut != c.cut {
			t.Errorf("%s: got %s, %t, want %s", c.name, rules.JoinPorts(got), cut, c.want)
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
		j := legacyRules(t, c.rules...).JudgeMappings([]rules.Mapping{{Port: 5000, Last: 5010}}, func(bool) netip.Addr { return netip.Addr{} })
		if len(j.Open) != c.open {
			t.Errorf("%q: got %+v", c.rules, j)
		}
	}
}

// Many accepts that may come first are not copied for each rule behind them.
func TestManyAccepts(t *testing.T) {
	lines := make([]string, 20_000)
	for i := range lines {
		lines[i] = fmt.Sprintf("-A INPUT -s 10.0.%d.%d/32 -j ACCEPT", i/256, i%256)
	}
	set := legacyRules(t, append(lines, "-A INPUT -m conntrack --ctstate INVALID -j DROP")...)
	used := memory.Allocated(func() {
		j := set.Judge(rules.Packet{IsLocal: rules.Yes, Port: 5000})
		if j.IsEndless || j.Effect() != rules.Partly {
			t.Errorf("got %+v", j)
		}
	})
	if used > 256<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
}
