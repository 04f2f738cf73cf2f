// SPDX-License-Identifier: Apache-2.0

//go:build linux

package conntracklab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/stray"
	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
)

const mib = 1 << 20

var rpush binary.Rpush

func TestMain(m *testing.M) { os.Exit(binary.Main(m, &rpush)) }

// apart is binary.Rpush.Apart with what every lab is made of.
func apart(t *testing.T, tools ...string) bool {
	t.Helper()
	return rpush.Apart(t, append(tools, "ip", "nft", "registry", "crane")...)
}

func do(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sh runs lines in a namespace.
func sh(t *testing.T, ns, script string) string {
	t.Helper()
	return do(t, "ip", "netns", "exec", ns, "sh", "-ec", script)
}

const (
	port       = 5000
	hostAddr   = "10.77.1.1:5000"
	inner      = "10.77.2.2:5000"
	withDNAT   = "table ip lab {\n chain nat {\n type nat hook prerouting priority dstnat;\n tcp dport 5000 dnat to 10.77.2.2:5000\n }\n}\n"
	repository = "/team/app:"
)

// lab is client - host - registry. The host forwards, and translates nothing
// yet.
type lab struct {
	reg *realreg.Registry
	img ocilayout.Image
	n   int // pushes so far
}

func newLab(t *testing.T) *lab {
	t.Helper()
	binary.Mount(t, "tmpfs", "/var/lib")
	binary.Mount(t, "sysfs", "/sys")
	for _, ns := range []string{"client", "host", "registry"} {
		do(t, "ip", "netns", "add", ns)
		sh(t, ns, "ip link set lo up")
	}
	wire(t, "client", "10.77.1.2/24", "host", "10.77.1.1/24")
	wire(t, "registry", "10.77.2.2/24", "host", "10.77.2.1/24")
	sh(t, "client", "ip route add default via 10.77.1.1")
	sh(t, "registry", "ip route add default via 10.77.2.1")
	sh(t, "host", "sysctl -qw net.ipv4.ip_forward=1")
	l := &lab{img: binary.Layout(t, 1, 12*mib, 6*mib)}
	l.reg = realreg.Start(t, realreg.Options{
		Addr: inner, Through: []string{"ip", "netns", "exec", "registry"},
		Dial: func(_ context.Context, network, address string) (c net.Conn, err error) {
			err = within("registry", func() error {
				c, err = net.DialTimeout(network, address, time.Second)
				return err
			})
			return c, err
		},
	})
	return l
}

// wire joins two namespaces by interfaces that are each named after the other.
func wire(t *testing.T, a, addrA, b, addrB string) {
	t.Helper()
	do(t, "ip", "link", "add", b, "netns", a, "type", "veth", "peer", "name", a, "netns", b)
	sh(t, a, fmt.Sprintf("ip addr add %s dev %s; ip link set %[2]s up", addrA, b))
	sh(t, b, fmt.Sprintf("ip addr add %s dev %s; ip link set %[2]s up", addrB, a))
}

// within runs f in a namespace. The thread goes back afterwards: if it ended,
// so would the processes that it started.
func within(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- func() error {
			own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(own)
			fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			defer func() {
				if err := unix.Setns(own, unix.CLONE_NEWNET); err != nil {
					panic(err)
				}
			}()
			return f()
		}()
	}()
	return <-done
}

// pushed is what came of a push that met stray segments.
type pushed struct {
	binary.Report
	HostResets uint64 `json:"hostResets"`
	Strays     int    `json:"-"` // connections that got three each
	RSTs       uint64 `json:"-"` // that the host sent meanwhile
	Stderr     string `json:"-"`
}

// push sends the image from a namespace, while strays go into its connections.
// It has to arrive.
func (l *lab) push(t *testing.T, from, registry string, s stray.Strays, at string) pushed {
	t.Helper()
	l.n++
	ref := fmt.Sprintf("%s%s%d", registry, repository, l.n)
	// A repository of its own, or the layers would be there already.
	ref = strings.Replace(ref, "/team/", fmt.Sprintf("/team%d/", l.n), 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.Port, s.Count, s.After = port, 3, 2*mib
	hit := make(chan int, 1)
	go func() {
		var n int
		if err := within(at, func() (err error) { n, err = s.Run(ctx); return err }); err != nil {
			t.Errorf("strays: %v", err)
		}
		hit <- n
	}()
	time.Sleep(50 * time.Millisecond) // until the wire is watched; without, fewer strays
	before := rsts(t)
	r := run(t, from, "push", "--plain-http", "--output", "json", "--parallel", "1", "oci:"+l.img.Dir, ref)
	after := rsts(t)
	cancel()
	p := pushed{Strays: <-hit, RSTs: after - before, Stderr: r.stderr}
	if r.exit != 0 {
		t.Fatalf("push: exit %d\n%s", r.exit, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil {
		t.Fatal(err)
	}
	if p.Strays == 0 {
		t.Fatal("no connection got strays")
	}
	dir := filepath.Join(t.TempDir(), "pulled")
	do(t, "ip", "netns", "exec", "registry", realreg.Tool(t, "crane"), "pull", "--insecure", "--format=oci",
		strings.Replace(ref, registry, inner, 1), dir)
	if err := ocilayout.Compare(l.img.Dir, dir); err != nil {
		t.Errorf("what arrived: %v", err)
	}
	return p
}

// rsts is how many the host's own stack has sent, by the kernel's own tool.
func rsts(t *testing.T) (n uint64) {
	t.Helper()
	for line := range strings.Lines(sh(t, "host", "cat /proc/net/snmp")) {
		if f := strings.Fields(line); len(f) > 14 && f[0] == "Tcp:" && f[14] != "OutRsts" {
			fmt.Sscan(f[14], &n)
			return n
		}
	}
	t.Fatal("no counters of TCP")
	return 0
}

// result of one call.
type result struct {
	exit           int
	stdout, stderr string
}

func command(ctx context.Context, ns string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, string(rpush)}, args...)...)
	cmd.Env = []string{"HOME=/nonexistent", "PATH=" + os.Getenv("PATH"), "XDG_CACHE_HOME=/run/cache", "XDG_STATE_HOME=/run/state"}
	return cmd
}

func run(t *testing.T, ns string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return finish(t, command(ctx, ns, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	r := result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	for _, text := range []string{"goroutine ", "panic", "this is a bug"} {
		if strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%v: %s\n%s", cmd.Args, r.stdout, r.stderr)
		}
	}
	return r
}

// report is what the tests read of the doctor's JSON.
type report struct {
	Verdict  string
	Where    string
	Headline string
	Registry struct {
		Own, Hairpin bool
	}
	Mappings   []struct{ To, By string }
	Proxies    []struct{ Program, To string }
	Protection []string
	Guards     []struct {
		Effect, Chain, Rule, By, Behind string
		Packets                         *uint64
	}
	Checks []struct{ Name, Verdict, Finding, Command string }
	Window struct {
		Moved            string
		Invalid, OutRsts uint64
		Dropped          *uint64
	}
	SelfTest struct{ Delayed, Beyond, Error string }
	Fix      struct {
		Steps   []struct{ What, Command string }
		Notes   []string
		Refused []string
		Applied bool
	}
	Advice []string
	Exit   int
}

func (r *report) check(name string) string {
	for _, c := range r.Checks {
		if c.Name == name {
			return c.Verdict
		}
	}
	return ""
}

func (r result) report(t *testing.T) (d report) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.stdout, r.stderr)
	}
	if d.Exit != r.exit {
		t.Errorf("exit %d, the document says %d", r.exit, d.Exit)
	}
	return d
}

// doctor examines the host, which has to exit so.
func doctor(t *testing.T, exit int, args ...string) report {
	t.Helper()
	r := run(t, "host", append([]string{"doctor", "--output", "json"}, args...)...)
	if r.exit != exit {
		t.Errorf("doctor %v: exit %d, want %d\n%s\n%s", args, r.exit, exit, r.stdout, r.stderr)
	}
	return r.report(t)
}

// during watches the host while f runs.
func during(t *testing.T, f func()) (report, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := command(ctx, "host", "doctor", "--output", "json", "--watch", "50s", hostAddr)
	var out bytes.Buffer
	cmd.Stdout = &out
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(errs)
	for lines.Scan() && !strings.Contains(lines.Text(), "measuring") {
	}
	f()
	cmd.Process.Signal(os.Interrupt)
	for lines.Scan() {
	}
	cmd.Wait()
	return result{exit: cmd.ProcessState.ExitCode(), stdout: out.String()}.report(t), cmd.ProcessState.ExitCode()
}

// state is all that a fix may change.
func state(t *testing.T) string {
	t.Helper()
	var kept []string
	for line := range strings.Lines(sh(t, "host", "sysctl -a 2>/dev/null")) {
		if strings.HasPrefix(line, "net.") && !strings.HasPrefix(line, "net.netfilter.nf_conntrack_count") {
			kept = append(kept, line)
		}
	}
	if len(kept) < 100 {
		t.Fatalf("only %d sysctls", len(kept))
	}
	files := do(t, "sh", "-c", "ls -lR /var/lib; ls -l /etc/sysctl.d /etc/modules-load.d /etc/rpush 2>&1 || true")
	return sh(t, "host", "nft -s list ruleset; iptables-legacy-save | grep -v '^#' || true") + strings.Join(kept, "") + files
}

// beyond goes into the first uploads of a push.
var beyond = stray.Strays{Interface: "host", Kind: stray.Beyond, Connections: 4}

// The incident: a push meets resets that the host sends; the doctor sees that
// coming, sees it happen, stops it in either way, and takes that back.
func TestIncident(t *testing.T) {
	if !apart(t) {
		return
	}
	l := newLab(t)
	sh(t, "host", "nft -f - <<'EOF'\n"+withDNAT+"EOF")

	d := doctor(t, 4, "--strict", hostAddr)
	if d.Verdict != "at risk" || d.Where != "here" || len(d.Mappings) != 1 || d.Mappings[0].To != inner {
		t.Errorf("before: got %+v", d)
	}
	doctor(t, 0, hostAddr) // without --strict
	doctor(t, 4, "--strict")
	before := state(t)

	incident := func() {
		t.Helper()
		var p pushed
		d, exit := during(t, func() { p = l.push(t, "client", hostAddr, beyond, "client") })
		t.Logf("%d connections got strays: %d RSTs sent by the host, %d breaks, %d resumes; counted: %+v",
			p.Strays, p.RSTs, p.Breaks, p.Resumes, d.Window)
		if p.Breaks == 0 || p.RSTs == 0 {
			t.Errorf("the push met %d breaks, the host sent %d RSTs, want some", p.Breaks, p.RSTs)
		}
		if exit != 4 || d.Verdict != "evidence" || d.Window.Moved != "resets" || d.check("window") != "evidence" {
			t.Errorf("watched: exit %d, got %+v", exit, d)
		}
	}
	incident()

	for _, fix := range []struct{ remedy, moved string }{{"drop", "dropped"}, {"liberal", "still"}} {
		d = doctor(t, 0, hostAddr, "--fix="+fix.remedy)
		if len(d.Fix.Steps) != 1 || d.Fix.Applied || len(d.Fix.Notes) == 0 {
			t.Errorf("%s: planned %+v", fix.remedy, d.Fix)
		}
		if after := state(t); after != before {
			t.Errorf("%s: a plan changed something:\n%s", fix.remedy, after)
		}
		d = doctor(t, 0, hostAddr, "--fix="+fix.remedy, "--apply", "--strict")
		if !d.Fix.Applied || d.Verdict != "sound" {
			t.Errorf("%s: applied %+v", fix.remedy, d)
		}
		fixed := sh(t, "host", "nft -s list ruleset")
		var p pushed
		d, exit := during(t, func() { p = l.push(t, "client", hostAddr, beyond, "client") })
		t.Logf("%s: %d connections got strays: %d RSTs, %d breaks; counted: %+v", fix.remedy, p.Strays, p.RSTs, p.Breaks, d.Window)
		if p.Breaks != 0 || p.RSTs != 0 {
			t.Errorf("%s: %d breaks, %d RSTs, want none", fix.remedy, p.Breaks, p.RSTs)
		}
		if d.Verdict != "sound" || d.Window.Moved != fix.moved || exit != 130 {
			t.Errorf("%s: watched: exit %d, %+v", fix.remedy, exit, d)
		}
		if n := d.Window.Dropped; fix.remedy == "drop" && (n == nil || *n != uint64(3*p.Strays)) {
			t.Errorf("dropped by the rule: got %v, want %d", n, 3*p.Strays)
		}
		doctor(t, 0, hostAddr, "--strict")
		if d = doctor(t, 0, hostAddr, "--fix="+fix.remedy, "--apply"); len(d.Fix.Steps) != 0 {
			t.Errorf("%s again: got %+v, want nothing to do", fix.remedy, d.Fix)
		}
		if again := sh(t, "host", "nft -s list ruleset"); again != fixed {
			t.Errorf("%s again: got\n%s\nwant\n%s", fix.remedy, again, fixed)
		}
		if d = doctor(t, 0, "--undo"); len(d.Fix.Steps) != 1 || d.Fix.Applied {
			t.Errorf("%s: undo plans %+v", fix.remedy, d.Fix)
		}
		if d = doctor(t, 0, "--undo", "--apply"); !d.Fix.Applied {
			t.Errorf("%s: undone %+v", fix.remedy, d.Fix)
		}
		if after := state(t); after != before {
			t.Errorf("%s: not as before:\n%s\nwas\n%s", fix.remedy, after, before)
		}
	}
	incident() // it is back
}

// What somebody else has edited is not taken back.
func TestUndoRefusesWhatWasEdited(t *testing.T) {
	if !apart(t) {
		return
	}
	newLab(t)
	sh(t, "host", "nft -f - <<'EOF'\n"+withDNAT+"EOF")
	doctor(t, 0, hostAddr, "--fix=drop", "--apply")
	sh(t, "host", "nft add rule inet rpush input tcp dport 22 accept")
	edited := sh(t, "host", "nft -s list ruleset")
	if d := doctor(t, 1, "--undo", "--apply"); len(d.Fix.Refused) != 1 {
		t.Errorf("undo: got %+v", d.Fix)
	}
	doctor(t, 1, hostAddr, "--fix=drop", "--apply")
	if got := sh(t, "host", "nft -s list ruleset"); got != edited {
		t.Errorf("it was touched: got\n%s", got)
	}
	// In another namespace neither.
	if d := run(t, "client", "doctor", "--output", "json", "--undo", "--apply"); d.exit != 1 || len(d.report(t).Fix.Refused) != 1 {
		t.Errorf("elsewhere: got %+v", d)
	}
	sh(t, "host", "nft delete table inet rpush")
	doctor(t, 0, "--undo", "--apply")

	// A table of that name that is not ours.
	sh(t, "host", "nft add table inet rpush")
	doctor(t, 1, hostAddr, "--fix=drop", "--apply")
	sh(t, "host", "nft delete table inet rpush")

	doctor(t, 0, hostAddr, "--fix=liberal", "--apply")
	sh(t, "host", "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=2 || sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0")
	doctor(t, 0, "--undo", "--apply") // it is as it was, or refused
	if _, err := os.Stat("/var/lib/rpush"); !os.IsNotExist(err) {
		t.Errorf("the record is left: %v", err)
	}
	// --persist is for the machine's own namespace.
	doctor(t, 1, hostAddr, "--fix=liberal", "--persist")
}

// Where the drop stands decides, in every kind of rules. What the doctor says
// is held against what the host does.
func TestWhereTheDropStands(t *testing.T) {
	if !apart(t, "iptables-nft", "iptables-legacy") {
		return
	}
	l := newLab(t)
	clear := "nft flush ruleset; for t in filter nat; do iptables-legacy -t $t -F; iptables-legacy -t $t -X; done"
	iptables := func(program string) map[string]string {
		dnat := program + " -t nat -A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 5000 -j DNAT --to-destination " + inner + "\n"
		return map[string]string{
			"none":         dnat,
			"forward only": dnat + program + " -N KUBE-FORWARD; " + program + " -A FORWARD -j KUBE-FORWARD; " + program + " -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
			"after accept": dnat + program + " -A INPUT -p tcp -m multiport --dports 22,5000 -j ACCEPT; " + program + " -A INPUT -m conntrack --ctstate INVALID -j DROP",
			"protects": dnat + program + " -N ufw-before-input; " + program + " -A INPUT -j ufw-before-input; " + program + " -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; " +
				program + " -A ufw-before-input -m state --state INVALID -j DROP; " + program + " -A INPUT -p tcp --dport 5000 -j ACCEPT",
			"partly": dnat + program + " -A INPUT -i eth7 -m conntrack --ctstate INVALID -j DROP",
		}
	}
	nft := func(hook, rules string) string {
		return "nft -f - <<'EOF'\n" + withDNAT + "table inet filter {\n chain c {\n type filter hook " + hook + " priority filter; policy accept;\n" + rules + "\n }\n}\nEOF"
	}
	for _, c := range []struct {
		kind    string
		scripts map[string]string
	}{
		{"nft", map[string]string{
			"none":         nft("input", ""),
			"forward only": nft("forward", "ct state invalid drop"),
			"after accept": nft("input", "tcp dport { 22, 5000 } accept\nct state vmap { established : accept, invalid : drop }"),
			"protects":     nft("input", "ct state vmap { established : accept, related : accept, invalid : drop }\ntcp dport 5000 accept"),
			"partly":       nft("input", "iifname \"eth7\" ct state invalid drop"),
		}},
		{"iptables-nft", iptables("iptables-nft")},
		{"iptables-legacy", iptables("iptables-legacy")},
	} {
		for _, want := range []string{"none", "forward only", "after accept", "partly", "protects"} {
			sh(t, "host", clear)
			sh(t, "host", c.scripts[want])
			exit, verdict := 4, "at risk"
			if want == "protects" {
				exit, verdict = 0, "sound"
			}
			d := doctor(t, exit, "--strict", hostAddr)
			effect, by := "none", ""
			if len(d.Guards) > 0 {
				effect, by = d.Guards[0].Effect, d.Guards[0].By
			}
			p := l.push(t, "client", hostAddr, beyond, "client")
			t.Logf("%s, %s: %d RSTs, %d breaks: %s", c.kind, want, p.RSTs, p.Breaks, d.Headline)
			if effect != want || d.Verdict != verdict || len(d.Mappings) != 1 || d.Mappings[0].To != inner {
				t.Errorf("%s, %s: got %q, %q\n%+v", c.kind, want, effect, d.Verdict, d)
			}
			if c.kind != "nft" && want == "forward only" && by != "kube-proxy" || c.kind != "nft" && want == "protects" && by != "ufw" {
				t.Errorf("%s, %s: by %q", c.kind, want, by)
			}
			if (p.RSTs == 0) != (want == "protects") || (p.Breaks == 0) != (want == "protects") {
				t.Errorf("%s, %s: %d RSTs, %d breaks", c.kind, want, p.RSTs, p.Breaks)
			}
		}
	}
}

// What leaves a chain before its drop leaves the host open, and no part of a
// range that is translated may be missed.
func TestWhatLeavesBeforeTheDrop(t *testing.T) {
	if !apart(t) {
		return
	}
	l := newLab(t)
	for name, rules := range map[string]string{
		"a return":            "chain c {\n IN\n iifname \"client\" return\n ct state invalid drop\n }",
		"a return in a chain": "chain pub {\n ip saddr 10.0.0.0/8 return\n ct state invalid drop\n }\n chain c {\n IN\n jump pub\n }",
		"a goto":              "chain x {\n counter\n }\n chain c {\n IN\n iifname \"client\" goto x\n ct state invalid drop\n }",
		"a map that returns":  "chain c {\n IN\n iifname vmap { \"client\" : return }\n ct state invalid drop\n }",
		"a map of chains":     "chain a {\n counter\n }\n chain b {\n tcp dport 5000 accept\n }\n chain c {\n IN\n iifname vmap { \"eth7\" : jump a, \"client\" : jump b }\n ct state invalid drop\n }",
	} {
		rules = strings.Replace(rules, "IN\n", "type filter hook input priority filter; policy accept;\n", 1)
		sh(t, "host", "nft flush ruleset; nft -f - <<'EOF'\n"+withDNAT+"table ip filter {\n "+rules+"\n}\nEOF")
		d := doctor(t, 4, "--strict", hostAddr)
		p := l.push(t, "client", hostAddr, beyond, "client")
		t.Logf("%s: %d RSTs, %d breaks: %+v", name, p.RSTs, p.Breaks, d.Guards)
		if d.Verdict != "at risk" || len(d.Guards) == 0 || d.Guards[0].Effect != "partly" || p.RSTs == 0 {
			t.Errorf("%s: %d RSTs, got %+v", name, p.RSTs, d)
		}
	}

	for kind, script := range map[string]string{
		"nft":             "nft -f - <<'EOF'\ntable ip nat {\n chain pre {\n type nat hook prerouting priority dstnat;\n tcp dport 5000-5010 dnat to 10.77.2.2\n }\n}\nEOF",
		"nft set":         "nft -f - <<'EOF'\ntable ip nat {\n chain pre {\n type nat hook prerouting priority dstnat;\n tcp dport { 22, 5000-5010 } dnat to 10.77.2.2\n }\n}\nEOF",
		"iptables-nft":    "iptables-nft -t nat -A PREROUTING -p tcp --dport 5000:5010 -j DNAT --to-destination 10.77.2.2",
		"iptables-legacy": "iptables-legacy -t nat -A PREROUTING -p tcp --dport 5000:5010 -j DNAT --to-destination 10.77.2.2",
	} {
		sh(t, "host", "nft flush ruleset; iptables-legacy -t nat -F; "+script)
		doctor(t, 4, "--strict", "10.77.1.1:5005")
		doctor(t, 0, "--fix=drop", "--apply")
		if rule := sh(t, "host", "nft list table inet rpush"); !strings.Contains(rule, "5000-5010") {
			t.Errorf("%s: got %s", kind, rule)
		}
		for _, p := range []string{"5000", "5005", "5010"} {
			doctor(t, 0, "--strict", "10.77.1.1:"+p)
		}
		doctor(t, 0, "--strict")
		doctor(t, 0, "--undo", "--apply")
	}
}

// A host that pushes to itself under an external name: its router sends the
// connection back in.
func TestHairpin(t *testing.T) {
	if !apart(t) {
		return
	}
	l := newLab(t)
	const external = "203.0.113.5:5000"
	do(t, "ip", "netns", "add", "router")
	sh(t, "router", "ip link set lo up; ip addr add 203.0.113.5/32 dev lo; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0")
	wire(t, "router", "10.77.3.254/24", "host", "10.77.3.1/24")
	sh(t, "host", "ip route add default via 10.77.3.254")
	sh(t, "router", "sysctl -qw net.ipv4.conf.host.send_redirects=0")
	sh(t, "router", `nft -f - <<'EOF'
table ip lab {
 chain in { type nat hook prerouting priority dstnat; ip daddr 203.0.113.5 tcp dport 5000 dnat to 10.77.3.1 ; }
 chain out { type nat hook postrouting priority srcnat; ip saddr 10.77.3.1 ip daddr 10.77.3.1 snat to 203.0.113.5 ; }
}
EOF`)
	// Docker's way: only what is for an address of this host.
	sh(t, "host", `nft -f - <<'EOF'
table ip nat {
 chain DOCKER { iifname != "docker0" tcp dport 5000 counter dnat to 10.77.2.2:5000 ; }
 chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local jump DOCKER ; }
 chain OUTPUT { type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER ; }
}
EOF`)
	d := doctor(t, 4, "--strict", external)
	if d.Where != "here" || !d.Registry.Hairpin || d.Registry.Own || len(d.Mappings) == 0 || d.Mappings[0].By != "Docker" {
		t.Errorf("got %+v", d)
	}
	if !strings.Contains(strings.Join(d.Advice, "\n"), inner) {
		t.Errorf("the advice names no way out: %q", d.Advice)
	}
	// One that does not come back in, from a namespace that is not the machine's:
	// it could be translated by the machine.
	if d := doctor(t, 1, "203.0.113.99:5001"); d.Where != "undecided" || !strings.Contains(strings.Join(d.Advice, "\n"), "publishes port 5001") {
		t.Errorf("another: got %+v", d)
	}
	s := stray.Strays{Interface: "host", Kind: stray.Beyond, To: netip.MustParseAddr("10.77.3.1"), Connections: 4}
	p := l.push(t, "host", external, s, "router")
	t.Logf("%d connections got strays, %d RSTs, %d breaks, the report has %d resets of this host", p.Strays, p.RSTs, p.Breaks, p.HostResets)
	if p.Breaks == 0 || p.HostResets == 0 || !strings.Contains(p.Stderr, "rpush: this host sent resets during the push: rpush doctor\n") {
		t.Errorf("%d breaks, %d resets of this host in the report\n%s", p.Breaks, p.HostResets, p.Stderr)
	}
}
