package conntrack

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		name, text string
		invalid    uint64
		ok         bool
	}{
		{"two CPUs", "entries invalid drop\n01 0a 00\n01 05 01\n", 15, true},
		{"columns in another order", "invalid searched\n7 1\n", 7, true},
		{"hexadecimal of eight digits", "entries invalid\n00000001 ffffffff\n", math.MaxUint32, true},
		{"empty", "", 0, false},
		{"no CPU", "entries invalid\n", 0, false},
		{"no such column", "entries found\n1 2\n", 0, false},
		{"too few values", "entries invalid\n1\n", 0, false},
		{"no number", "entries invalid\n1 x\n", 0, false},
	} {
		var got Counters
		err := parseStat([]byte(c.text), &got)
		if (err == nil) != c.ok || c.ok && got.Invalid != c.invalid {
			t.Errorf("%s: got %+v, %v", c.name, got, err)
		}
		if err != nil && !errors.Is(err, errTable) {
			t.Errorf("%s: %v is no errTable", c.name, err)
		}
	}
}

func TestParsePairs(t *testing.T) {
	got, err := parsePairs([]byte("Ip: A\nIp: 1\nTcp: MaxConn OutRsts\nTcp: -1 5\n"), "Tcp:")
	if err != nil || got["OutRsts"] != 5 || got["MaxConn"] != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "Tcp: A\n", "Tcp: A B\nTcp: 1\n", "Tcp: A\nTcp: x\n"} {
		if got, err := parsePairs([]byte(text), "Tcp:"); err == nil {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for s, want := range map[string]bool{
		"5.10.0-28-amd64": true, "6.0.19": true, "6.1.0": false, "6.18.44-fc-v669": false, "7.0-rc1": false, "4.18.0-553.el8_10.x86_64": true,
	} {
		if r, ok := parseRelease(s); !ok || r.before(forgiving) != want {
			t.Errorf("%s: got %v, %t, want before 6.1: %t", s, r, ok, want)
		}
	}
	for _, s := range []string{"", "six", "-1.2", "6", "6."} {
		if r, ok := parseRelease(s); ok {
			t.Errorf("%q: got %v", s, r)
		}
	}
}

func TestMoved(t *testing.T) {
	for _, c := range []struct {
		name string
		// INVALID, RSTs sent, own connections reset, wrong checksums, dropped by a rule
		invalid, rsts, estab, csum, dropped uint64
		want                                Moved
	}{
		{"nothing", 0, 0, 0, 0, 0, Still},
		{"knocks on closed ports", 0, 9, 0, 0, 0, Still},
		{"three strays", 6, 3, 0, 0, 0, Resets},
		{"one stray", 2, 1, 0, 0, 0, Resets},
		{"strays and one knock", 20, 11, 0, 0, 0, Resets},
		{"strays to this host's own connections", 6, 4, 1, 0, 0, Resets},
		{"one stray to this host's own connection", 2, 2, 1, 0, 0, Resets},
		{"dropped", 3, 0, 0, 0, 0, Dropped},
		{"dropped by the rule, and knocks", 4, 2, 0, 0, 4, Dropped},
		{"wrong checksums", 3, 2, 0, 3, 0, Dropped},
		{"dropped, and a scan", 4, 400, 0, 0, 0, Mixed},
		{"dropped, and others reset", 4, 10, 10, 0, 0, Mixed},
		{"many dropped, one knock", 100, 1, 0, 0, 0, Mixed},
		{"one INVALID, one RST", 1, 1, 0, 0, 0, Mixed},
	} {
		d := Counters{Invalid: c.invalid, OutRsts: c.rsts, EstabResets: c.estab, InCsumErrors: c.csum, Tracked: true}
		if got := moved(d, c.dropped); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	if got := moved(Counters{OutRsts: 5}, 0); got != NotCounted {
		t.Errorf("no conntrack: got %s", got)
	}
	// A counter that began anew is no change.
	if d := (Counters{Invalid: 1}).minus(Counters{Invalid: 5}); d.Invalid != 0 {
		t.Errorf("got %d", d.Invalid)
	}
}

func legacyRules(t *testing.T, lines ...string) *ruleset {
	t.Helper()
	set := &ruleset{}
	dump := "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	if err := xtRules([]byte(dump), false, set); err != nil {
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
		want  Effect
	}{
		{"none", nil, ""},
		{"plain", []string{drop}, Protects},
		{"with a count", []string{"[12:3456] " + drop}, Protects},
		{"state", []string{"-A INPUT -m state --state INVALID,NEW -j DROP"}, Protects},
		{"not established", []string{"-A INPUT -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"}, Protects},
		{"behind an accept", []string{"-A INPUT -p tcp -m tcp --dport 5000 -j ACCEPT", drop}, AfterAccept},
		{"behind an accept of another port", []string{"-A INPUT -p tcp -m tcp --dport 5001 -j ACCEPT", drop}, Protects},
		{"behind an accept of udp", []string{"-A INPUT -p udp -j ACCEPT", drop}, Protects},
		{"behind an accept of what is established", []string{"-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", drop}, Protects},
		{"behind an accept of loopback", []string{"-A INPUT -i lo -j ACCEPT", drop}, Protects},
		{"behind an accept of an interface", []string{"-A INPUT -i eth1 -j ACCEPT", drop}, Partly},
		{"behind an accept of a source", []string{"-A INPUT -s 10.0.0.0/8 -p tcp -j ACCEPT", drop}, Partly},
		{"behind an accept of translated ones", []string{"-A INPUT -m conntrack --ctstatus DNAT -j ACCEPT", drop}, Protects},
		{"of a source", []string{"-A INPUT -s 10.0.0.0/8 -m conntrack --ctstate INVALID -j DROP"}, Partly},
		{"of a source, then all", []string{"-A INPUT -s 10.0.0.0/8 -m conntrack --ctstate INVALID -j DROP", drop}, Protects},
		{"of another port", []string{"-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"of a range of ports", []string{"-A INPUT -p tcp -m multiport --dports 22,4000:6000 -m conntrack --ctstate INVALID -j DROP"}, Protects},
		{"of no port but", []string{"-A INPUT -p tcp -m tcp ! --dport 5000 -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"in FORWARD", []string{"-A FORWARD -m conntrack --ctstate INVALID -j DROP"}, ForwardOnly},
		{"in a chain", []string{"-A INPUT -j a", "-A a -m conntrack --ctstate INVALID -j DROP"}, Protects},
		{"in a chain that returns first", []string{"-A INPUT -j a", "-A a -p tcp -j RETURN", "-A a -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"in a chain under a condition", []string{"-A INPUT -i eth1 -j a", "-A a -m conntrack --ctstate INVALID -j DROP"}, Partly},
		{"a jump on the state", []string{"-A INPUT -m conntrack --ctstate INVALID -j a", "-A a -j LOG --log-prefix \"bad \\\" packet: \"", "-A a -j DROP"}, Protects},
		{"behind an accept in a chain", []string{"-A INPUT -j a", "-A a -p tcp --dport 5000 -j ACCEPT", drop}, AfterAccept},
		{"goto comes back to the caller's end", []string{"-A INPUT -g a", drop}, ""},
		{"behind a return of an interface", []string{"-A INPUT -i eth1 -j RETURN", drop}, Partly},
		{"behind a return of an interface, in a chain", []string{"-A INPUT -j a", "-A a -s 10.0.0.0/8 -j RETURN", "-A a -m conntrack --ctstate INVALID -j DROP"}, Partly},
		{"in the caller of a chain that returns", []string{"-A INPUT -j a", "-A a -s 10.0.0.0/8 -j RETURN", drop}, Protects},
		{"behind a return of loopback", []string{"-A INPUT -i lo -j RETURN", drop}, Protects},
		{"behind a goto of an interface", []string{"-A INPUT -i eth1 -g a", drop}, Partly},
		{"behind a goto of an interface, that drops as well", []string{"-A INPUT -i eth1 -g a", drop, "-A a -m conntrack --ctstate INVALID -j DROP"}, Partly},
		{"a circle", []string{"-A INPUT -j a", "-A a -j b", "-A b -j a", drop}, ""},
		{"a rejection", []string{"-A INPUT -m conntrack --ctstate INVALID -j REJECT --reject-with tcp-reset"}, Answers},
		{"logged only", []string{"-A INPUT -m conntrack --ctstate INVALID -j LOG"}, ""},
		{"something unknown", []string{"-A INPUT -m quota --quota 500 -m conntrack --ctstate INVALID -j DROP"}, Partly},
		{"a short comment", []string{`-A INPUT -m comment --comment -s -m conntrack --ctstate INVALID -j DROP`}, Protects},
		{"a comment", []string{`-A INPUT -m comment --comment "-s 10.0.0.0/8 \"x" -m conntrack --ctstate INVALID -j DROP`}, Protects},
	} {
		j := legacyRules(t, c.rules...).judge(packet{port: 5000, local: yes, to: netip.MustParseAddr("10.77.1.1")})
		var got Effect
		if len(j.guards) > 0 {
			got = j.guards[0].Effect
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q: %+v", c.name, got, c.want, j.guards)
		}
		if c.name == "a circle" && !j.endless {
			t.Errorf("a circle was not noticed")
		}
	}
	// The policy is a drop as well.
	set := &ruleset{}
	dump := "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
	if err := xtRules([]byte(dump), false, set); err != nil {
		t.Fatal(err)
	}
	if got := set.judge(packet{port: 5000, local: yes}).effect(); got != Protects {
		t.Errorf("policy: got %q", got)
	}
	if got := set.judge(packet{port: 22, local: yes}).effect(); got != "" {
		t.Errorf("policy, an open port: got %q", got)
	}
	if got := set.judge(packet{port: 5000, local: yes, v6: true}).effect(); got != "" {
		t.Errorf("IPv6 is protected by rules of IPv4: %q", got)
	}
}

func TestPortRange(t *testing.T) {
	for s, ok := range map[string]bool{"5000": true, "5000-5010": true, "": false, "0": false, "5-4": false, "1-65536": false, "1;flush": false, "-1": false, "5-": false} {
		var r PortRange
		if err := r.UnmarshalText([]byte(s)); (err == nil) != ok || ok && r.String() != s {
			t.Errorf("%q: got %v, %v", s, r, err)
		}
	}
	if got := joinPorts(union([]PortRange{{5001, 5001}, {5000, 5000}}, []PortRange{{7000, 7010}, {7005, 7020}, {5000, 5000}})); got != "5000, 5001, 7000-7020" {
		t.Errorf("got %s", got)
	}
	if got := dropScript([]PortRange{{5000, 5010}}); !strings.Contains(got, "tcp dport { 5000-5010 } ct") {
		t.Errorf("got %s", got)
	}
}

func TestOwner(t *testing.T) {
	for want, c := range map[string]chain{
		"kube-proxy": {name: "KUBE-FORWARD"}, "Calico": {name: "cali-fw-eth0"}, "ufw": {name: "ufw-before-input"},
		"firewalld": {table: "firewalld", name: "filter_INPUT"}, "Docker": {name: "DOCKER"}, "rpush": {table: tableName, name: "input"}, "": {name: "INPUT"},
	} {
		if got := owner(&c); got != want {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}

func TestNotSaved(t *testing.T) {
	for _, dump := range []string{
		"-A INPUT -j DROP\n", "*filter\n-A INPUT -j DROP\nCOMMIT\n", "*filter\n:INPUT ACCEPT [0:0]\n", "*filter\n:\nCOMMIT\n",
		"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment \"open\nCOMMIT\n", "<html>",
	} {
		if err := xtRules([]byte(dump), false, &ruleset{}); !errors.Is(err, errNotSave) {
			t.Errorf("%q: got %v", dump, err)
		}
	}
}

func FuzzXtables(f *testing.F) {
	files, _ := filepath.Glob("testdata/linux-*/*.legacy.txt")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("*filter\n:INPUT DROP [0:0]\n-A INPUT ! -p tcp -m x --dports 1:2,3 \"a b\" -g c\nCOMMIT"))
	f.Fuzz(func(t *testing.T, b []byte) {
		set := &ruleset{}
		if xtRules(b, false, set) != nil {
			return
		}
		for _, p := range []packet{{port: 5000, local: yes}, {port: 5000, to: netip.MustParseAddr("10.0.0.1")}} {
			set.judge(p)
			set.translations(p)
			set.untracked(p)
		}
	})
}

func FuzzTables(f *testing.F) {
	for _, pattern := range []string{statFile, snmpFile, netstatFile} {
		files, _ := filepath.Glob(filepath.Join("testdata/linux-*", pattern))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Counters
		if err := parseStat(b, &c); (err == nil) != c.Tracked {
			t.Errorf("got %+v, %v", c, err)
		}
		for _, prefix := range []string{"Tcp:", "TcpExt:"} {
			if all, err := parsePairs(b, prefix); (err == nil) != (all != nil) {
				t.Errorf("got %v, %v", all, err)
			}
		}
		parseRelease(string(b))
	})
}
