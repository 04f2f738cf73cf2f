// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/nft"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/selftest"
)

// recorded is a machine as TestRecord wrote it down.
func recorded(t testing.TB, dir, rules string) *machine {
	t.Helper()
	m := &machine{
		Host:      host.Host{Root: dir, IsRoot: true},
		addresses: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.77.1.1")}, nil },
		resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.77.1.1")}, nil
		},
		trace: func(context.Context, netip.AddrPort, []netip.Addr) (traced, error) { return traced{}, nil },
		nft:   func() (*nft.Dump, error) { return load(t, filepath.Join(dir, rules+".nft.json")), nil },
		legacy: func(_ context.Context, v6 bool) ([]byte, error) {
			if v6 {
				return nil, errors.New("none was recorded")
			}
			return os.ReadFile(filepath.Join(dir, rules+".legacy.txt"))
		},
	}
	return m
}

func kernels(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/linux-*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("nothing recorded: %v", err)
	}
	return dirs
}

// with copies a recording, so that a test can change it.
func with(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		write(t, filepath.Join(to, name), []byte(text))
	}
	return to
}

func legacyTables(t *testing.T, dir, rules string) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, rules+".legacy.txt")); errors.Is(err, fs.ErrNotExist) {
		return dir
	}
	return with(t, dir, map[string]string{"proc/net/ip_tables_names": "nat\nfilter\n"})
}

func TestRecordedRules(t *testing.T) {
	for _, dir := range kernels(t) {
		for _, want := range []struct {
			rules   string
			effect  rules.Effect
			verdict Verdict
			by, to  string
		}{
			{"nft-vmap", rules.Protects, Sound, "", "10.77.2.2:5000"},
			{"nft-after-accept", rules.AfterAccept, AtRisk, "", "10.77.2.2:5000"},
			{"nft-forward", rules.ForwardOnly, AtRisk, "", "10.77.2.2:5000"},
			{"nft-prerouting", rules.Protects, Sound, "", "10.77.2.2:5000"},
			{"nft-raw", "", AtRisk, "", "10.77.2.2:5000"},
			{"nft-source", rules.Partly, AtRisk, "", "10.77.2.2:5000"},
			{"nft-limit", rules.Partly, AtRisk, "", "10.77.2.2:5000"},
			{"nft-policy", rules.Protects, Sound, "", "10.77.2.2:5000"},
			{"firewalld", rules.Protects, Sound, "firewalld", ""},
			{"iptables-nft-ufw", rules.Protects, Sound, "ufw", "172.17.0.2:5000"},
			{"iptables-nft-kube", rules.ForwardOnly, AtRisk, "kube-proxy", "172.17.0.2:5000"},
			{"iptables-nft-after-accept", rules.AfterAccept, AtRisk, "", "172.17.0.2:5000"},
			{"iptables-legacy-ufw", rules.Protects, Sound, "ufw", "172.17.0.2:5000"},
			{"iptables-legacy-kube", rules.ForwardOnly, AtRisk, "kube-proxy", "172.17.0.2:5000"},
			{"iptables-legacy-after-accept", rules.AfterAccept, AtRisk, "", "172.17.0.2:5000"},
		} {
			m := recorded(t, legacyTables(t, dir, want.rules), want.rules)
			for _, reg := range []*Registry{nil, {"registry.example", 5000}} {
				r := m.examine(t.Context(), reg)
				var g rules.Guard
				if len(r.Guards) > 0 {
					g = r.Guards[0]
				}
				if g.Effect != want.effect || g.By != want.by || r.Verdict != want.verdict || r.Where != Here {
					t.Errorf("%s, %s, %v: got %s here %q, %+v, want %s, %q by %q", dir, want.rules, reg, r.Verdict, r.Where, r.Guards, want.verdict, want.effect, want.by)
				}
				if len(r.Mappings) != 1 || r.Mappings[0].Port != 5000 || want.to != "" && r.Mappings[0].To != want.to {
					t.Errorf("%s, %s: translations %+v, want port 5000 to %s", dir, want.rules, r.Mappings, want.to)
				}
			}
			// Another port is not translated.
			if r := m.examine(t.Context(), &Registry{"registry.example", 5001}); r.Verdict != NotApplicable || r.Where != Untranslated && r.Where != Undecided {
				if r.Verdict != Unknown || r.Where != Undecided { // recorded in a namespace of its own
					t.Errorf("%s, %s, port 5001: got %s, %s", dir, want.rules, r.Verdict, r.Where)
				}
			}
		}
	}
}

// Whatever is read has to make sense on every kernel.
func TestRecordedTables(t *testing.T) {
	for _, dir := range kernels(t) {
		c, err := host.Host{Root: dir}.Counters()
		if err != nil || !c.Tracked {
			t.Errorf("%s: got %+v, %v", dir, c, err)
		}
		r := recorded(t, dir, "nft-vmap").examine(t.Context(), nil)
		for _, c := range r.Checks {
			if c.Verdict == Unknown || c.Verdict == NotApplicable && c.Name != "ignore_invalid_rst" {
				t.Errorf("%s: %+v", dir, c)
			}
		}
		var s selftest.Result
		b, err := os.ReadFile(filepath.Join(dir, "selftest.json"))
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		v, ok := host.ParseRelease(r.Kernel)
		want := selftest.Survived
		if v.Before(forgiving) {
			want = selftest.WasReset
		}
		if err != nil || !ok || s.Delayed != want || s.Beyond != selftest.WasReset {
			t.Errorf("%s, %s: the self-test said %+v, %v; want delayed %s", dir, r.Kernel, s, err, want)
		}
	}
}

const someKernel = "testdata/linux-6.18"

// What cannot be read is unknown.
func TestUnreadable(t *testing.T) {
	reg := &Registry{"10.77.1.1", 5000}
	m := recorded(t, someKernel, "nft-vmap")
	m.nft = func() (*nft.Dump, error) { return nil, unix.EPERM }
	m.IsRoot = false
	r := m.examine(t.Context(), reg)
	if r.Verdict != Unknown || r.Where != Undecided || verdictOf(r, "rules") != Unknown || verdictOf(r, "be_liberal") != Unknown {
		t.Errorf("no rights: got %s, %s, %+v", r.Verdict, r.Where, r.Checks)
	}

	// Legacy tables without their program: what nft has still counts.
	m = recorded(t, with(t, someKernel, map[string]string{"proc/net/ip_tables_names": "filter\n"}), "nft-vmap")
	if r = m.examine(t.Context(), reg); r.Verdict != Sound || r.Where != Here {
		t.Errorf("protected, and legacy unread: got %s, %s, %+v", r.Verdict, r.Where, r.Checks)
	}
	m = recorded(t, m.Root, "nft-forward")
	if r = m.examine(t.Context(), reg); r.Verdict != Unknown || r.Where != Here || verdictOf(r, "rules") != Unknown {
		t.Errorf("open, and legacy unread: got %s, %s, %+v", r.Verdict, r.Where, r.Checks)
	}

	// A name that cannot be resolved.
	m = recorded(t, someKernel, "nft-vmap")
	m.resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if r = m.examine(t.Context(), &Registry{"nowhere.example", 5000}); r.Verdict != Unknown || !strings.Contains(r.Registry.Error, "no such host") {
		t.Errorf("no such host: got %s, %+v", r.Verdict, r.Registry)
	}
}

func verdictOf(r *Report, check string) Verdict {
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == check })
	if i < 0 {
		return ""
	}
	return r.Checks[i].Verdict
}

func TestSettings(t *testing.T) {
	const key = "proc/sys/net/netfilter/nf_conntrack_"
	reg := &Registry{"10.77.1.1", 5000}
	for _, c := range []struct {
		name    string
		files   map[string]string
		check   string
		verdict Verdict
		all     Verdict
	}{
		{"liberal", map[string]string{key + "tcp_be_liberal": "1\n"}, "be_liberal", Sound, Sound},
		{"strict", nil, "be_liberal", AtRisk, AtRisk},
		{"no number", map[string]string{key + "tcp_be_liberal": "?\n"}, "be_liberal", Unknown, AtRisk},
		{"old kernel", map[string]string{"proc/sys/kernel/osrelease": "5.15.0-91-generic\n"}, "kernel", AtRisk, AtRisk},
		{"no kernel", map[string]string{"proc/sys/kernel/osrelease": "\x1b[2J\n"}, "kernel", Unknown, AtRisk},
		{"full", map[string]string{key + "count": "250000\n", key + "max": "262144\n"}, "table", AtRisk, AtRisk},
		{"not loose", map[string]string{key + "tcp_loose": "0\n"}, "loose", AtRisk, AtRisk},
		{"short", map[string]string{key + "tcp_timeout_established": "60\n"}, "timeouts", AtRisk, AtRisk},
		{"torn table", map[string]string{host.StatFile: "entries invalid\n00 00 00\n"}, "since boot", Unknown, AtRisk},
		{"liberal and full", map[string]string{key + "tcp_be_liberal": "1", key + "count": "9", key + "max": "10"}, "table", AtRisk, AtRisk},
	} {
		r := recorded(t, with(t, someKernel, c.files), "nft-forward").examine(t.Context(), reg)
		if got := verdictOf(r, c.check); got != c.verdict || r.Verdict != c.all {
			t.Errorf("%s: %s is %q, want %q; all is %q, want %q", c.name, c.check, got, c.verdict, r.Verdict, c.all)
		}
	}
	// The key's old place.
	dir := with(t, someKernel, map[string]string{host.OldSysctls + "tcp_be_liberal": "1\n"})
	if err := os.Remove(filepath.Join(dir, key+"tcp_be_liberal")); err != nil {
		t.Fatal(err)
	}
	if r := recorded(t, dir, "nft-forward").examine(t.Context(), reg); r.Verdict != Sound {
		t.Errorf("the old place: got %s", r.Verdict)
	}
}

func TestHairpinIsProved(t *testing.T) {
	m := recorded(t, someKernel, "iptables-nft-kube")
	reg := &Registry{"203.0.113.5", 5000}
	m.trace = func(context.Context, netip.AddrPort, []netip.Addr) (traced, error) { return traced{back: true}, nil }
	if r := m.examine(t.Context(), reg); r.Where != Here || !r.Registry.Hairpin {
		t.Errorf("it came back: got %s, %+v", r.Where, r.Registry)
	}
	m.trace = func(context.Context, netip.AddrPort, []netip.Addr) (traced, error) { return traced{}, unix.EPERM }
	if r := m.examine(t.Context(), reg); r.Where != Undecided || r.Verdict != Unknown {
		t.Errorf("it was not seen: got %s, %s", r.Where, r.Verdict)
	}
}

func TestDockerProxy(t *testing.T) {
	line := func(args ...string) []byte { return []byte(strings.Join(args, "\x00") + "\x00") }
	p, port, ok := parseProxy(line("/usr/bin/docker-proxy", "-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "5000",
		"-container-ip", "172.17.0.2", "-container-port", "5001", "-use-listen-fd"))
	if !ok || port != 5000 || p.Address != "0.0.0.0:5000" || p.To != "172.17.0.2:5001" {
		t.Errorf("got %+v, %d, %t", p, port, ok)
	}
	for _, b := range [][]byte{nil, line("docker-proxy"), line("docker-proxy", "-host-port", "99999", "-proto", "tcp"),
		line("/x/other", "-proto", "tcp", "-host-port", "5000"), line("docker-proxy", "-proto", "udp", "-host-port", "5000")} {
		if _, _, ok := parseProxy(b); ok {
			t.Errorf("%q was taken for a proxy", b)
		}
	}
}

// kube-proxy's nftables mode looks up address, protocol and port at once.
func TestKeysOfSeveralValues(t *testing.T) {
	m := recorded(t, someKernel, "kube-nft")
	if r := m.examine(t.Context(), &Registry{"10.77.1.1", 5000}); r.Where != Here || r.Verdict != Sound || len(r.Mappings) != 1 || r.Mappings[0].To != "10.77.2.2:5000" || r.Mappings[0].By != "kube-proxy" {
		t.Errorf("the service: got %s, %s, %+v, %+v", r.Where, r.Verdict, r.Mappings, r.Guards)
	}
	for _, reg := range []Registry{{"10.77.1.1", 5001}, {"10.77.1.9", 5000}, {"203.0.113.7", 443}} {
		if r := m.examine(t.Context(), &reg); len(r.Mappings) != 0 {
			t.Errorf("%+v: got %+v", reg, r.Mappings)
		}
	}
	// Without a registry the ports of the keys are looked at.
	if r := m.examine(t.Context(), nil); len(r.Mappings) != 1 || r.Mappings[0].Port != 5000 {
		t.Errorf("any: got %+v", r.Mappings)
	}
}

// Where a bound was reached nothing is called sound.
func TestTooManyPortsAreUnknown(t *testing.T) {
	m := recorded(t, with(t, someKernel, map[string]string{"proc/net/ip_tables_names": "nat\n"}), "nft-vmap")
	m.legacy = func(context.Context, bool) ([]byte, error) {
		b := []byte("*nat\n:PREROUTING ACCEPT [0:0]\n")
		for i := range rules.MaxPorts {
			b = fmt.Appendf(b, "-A PREROUTING -p tcp -m tcp --dport %d -j DNAT --to-destination 10.77.2.2\n", 10000+2*i)
		}
		return append(b, "COMMIT\n"...), nil
	}
	r := m.examine(t.Context(), nil)
	if r.Verdict != Unknown || verdictOf(r, "rules") != Unknown {
		t.Errorf("got %s, %s", r.Verdict, verdictOf(r, "rules"))
	}
}

// A table that was not printed is unknown, not absent.
func TestTableThatWasNotPrinted(t *testing.T) {
	for _, dump := range []string{"", "# Generated by iptables-save\n", "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"} {
		m := recorded(t, with(t, someKernel, map[string]string{"proc/net/ip_tables_names": "nat\nfilter\n"}), "nft-forward")
		m.legacy = func(context.Context, bool) ([]byte, error) { return []byte(dump), nil }
		if r := m.examine(t.Context(), &Registry{"10.77.1.1", 5000}); r.Verdict != Unknown || verdictOf(r, "rules") != Unknown {
			t.Errorf("%q: got %s, %s", dump, r.Verdict, verdictOf(r, "rules"))
		}
	}
}

func load(t testing.TB, path string) *nft.Dump {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d nft.Dump
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}
