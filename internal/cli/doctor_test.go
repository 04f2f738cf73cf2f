// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/internal/conntrack/remedy"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/selftest"
)

func TestParseRegistry(t *testing.T) {
	for _, c := range []struct {
		arg   string
		plain bool
		want  string // empty: an error
	}{
		{"registry.example/team/app:1", false, "registry.example 443"},
		{"registry.example/team/app:1", true, "registry.example 80"},
		{"docker://registry.example:5000/app", false, "registry.example 5000"},
		{"registry.example:5000", false, "registry.example 5000"},
		{"registry.example", false, "registry.example 443"},
		{"registry.example/", false, "registry.example 443"},
		{"localhost:5000", false, "localhost 5000"},
		{"localhost", true, "localhost 80"},
		{"192.0.2.1:5000/app", false, "192.0.2.1 5000"},
		{"192.0.2.1", false, "192.0.2.1 443"},
		{"[2001:db8::1]:5000/app", false, "2001:db8::1 5000"},
		{"app", false, "index.docker.io 443"},
		{"app:latest", false, "index.docker.io 443"},
		{"team/app", false, "index.docker.io 443"},
		{"registry.example:99999/app", false, ""},
		{"registry.example:0", false, ""},
		{"10.0.0.1:70000", false, ""},
		{"registry.example:70000", false, ""},
		{"localhost:70000", false, ""},
		{"my.app:latest", false, "index.docker.io 443"},
		{"app:70000", false, "index.docker.io 443"},
		{"/", false, ""},
		{"/app", false, ""},
		{":5000", false, ""},
		{":5000/app", false, ""},
		{"Not A Reference", false, ""},
		{"", false, ""},
	} {
		r, err := parseRegistry(c.arg, c.plain)
		got := ""
		if err == nil {
			got = fmt.Sprint(r.Host, " ", r.Port)
		}
		if got != c.want {
			t.Errorf("%q: got %q, %v, want %q", c.arg, got, err, c.want)
		}
	}
}

func TestDoctorUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  string
		want string
	}{
		{[]string{"a", "b"}, "", `unexpected argument "b"`},
		{[]string{"--output", "xml"}, "", "neither text nor json"},
		{[]string{"--watch", "-1s"}, "", "negative"},
		{[]string{"--watch", "soon"}, "", "invalid"},
		{[]string{"--fix=iptables"}, "", "neither drop nor liberal"},
		{[]string{"--fix=drop", "--undo"}, "", "contradict"},
		{[]string{"--apply"}, "", "--apply needs"},
		{nil, "RPUSH_APPLY=true", "--apply needs"},
		{nil, "RPUSH_WATCH=x", "RPUSH_WATCH"},
		{[]string{"--persist", "--undo"}, "", "--persist needs"},
		{[]string{"--for-admin", "--selftest"}, "", "does nothing else"},
		{[]string{"--undo", "--watch", "1s"}, "", "measures nothing"},
		{[]string{"-q", "-v"}, "", "contradict"},
		{[]string{"Not A Reference"}, "", "is no reference"},
		{[]string{"10.0.0.1:70000"}, "", "is no reference"},
		{[]string{"/"}, "", "is no reference"},
		{[]string{":5000"}, "", "is no reference"},
		{[]string{"--persist"}, "", "--persist needs"},
	} {
		r := newRig(t, nil)
		if k, v, ok := strings.Cut(c.env, "="); ok {
			r.env[k] = v
		}
		if code := r.main(append([]string{"doctor"}, c.args...)); code != exitUsage || !strings.Contains(r.stderr.String(), c.want) || r.stdout.String() != "" {
			t.Errorf("%v %s: exit %d, stdout %q, stderr %q", c.args, c.env, code, r.stdout.String(), r.stderr.String())
		}
	}
	// A flag wins over a variable that contradicts it.
	r := newRig(t, nil)
	r.env["RPUSH_QUIET"] = "true"
	if code := r.main([]string{"doctor", "-v", "--for-admin"}); code != exitOK {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}

func TestForAdmin(t *testing.T) {
	for arg, want := range map[string][]string{
		"registry.example:5000": {"Uploads to registry.example:5000", "tcp dport 5000 ct state invalid counter drop", "be_liberal=1", "nft delete table inet rpush_manual\n", "conntrack -S"},
		"":                      {"Uploads to the registry", "tcp dport PORT"},
	} {
		r := newRig(t, nil)
		args := []string{"doctor", "--for-admin"}
		if arg != "" {
			args = append(args, arg)
		}
		code := r.main(args)
		page := r.stdout.String()
		for _, w := range want {
			if code != exitOK || !strings.Contains(page, w) {
				t.Errorf("%q: exit %d, %q is missing:\n%s", arg, code, w, page)
			}
		}
		if strings.ContainsAny(page, "{}") && strings.Contains(page, "{port}") {
			t.Errorf("%q: something is not filled in:\n%s", arg, page)
		}
		for line := range strings.Lines(page) {
			if len(line) > 100 {
				t.Errorf("%q: a line of %d columns: %s", arg, len(line), line)
			}
		}
	}
}

// The verb behind the self-test changes nothing when somebody calls it.
func TestSelfTestVerbAlone(t *testing.T) {
	r := newRig(t, nil)
	if code := r.main([]string{selftest.Command}); code != exitUsage || r.stdout.String() != "" {
		t.Errorf("exit %d, %q", code, r.stdout.String())
	}
}

// On any machine, with any rights, there is an answer and no change.
func TestDoctorAnswers(t *testing.T) {
	for _, args := range [][]string{nil, {"203.0.113.7:5999"}, {"--output", "json"}, {"--output", "json", "--watch", "1ms"}, {"localhost:5999"}, {"--fix=drop", "203.0.113.7:5999"}, {"--undo"}} {
		r := newRig(t, nil)
		code := r.main(append([]string{"doctor"}, args...))
		if code != exitOK && code != exitPermanent {
			t.Errorf("%v: exit %d\n%s%s", args, code, r.stdout.String(), r.stderr.String())
		}
		if runtime.GOOS != "linux" && len(args) == 0 && (code != exitOK || !strings.Contains(r.stdout.String(), "look at the Linux host or VM that publishes the registry's port")) {
			t.Errorf("%v: exit %d\n%s", args, code, r.stdout.String())
		}
		if r.stdout.String() == "" && r.stderr.String() == "" {
			t.Errorf("%v: no answer", args)
		}
		if len(args) > 0 && args[0] == "--output" {
			var d struct {
				Verdict, Headline string
				Exit              int
			}
			if err := json.Unmarshal([]byte(r.stdout.String()), &d); err != nil || d.Verdict == "" || d.Headline == "" || d.Exit != code {
				t.Errorf("%v: exit %d, %v\n%s", args, code, err, r.stdout.String())
			}
		}
	}
}

func sample(verdict conntrack.Verdict, where conntrack.Where) *conntrack.Report {
	r := &conntrack.Report{
		Verdict: verdict, Where: where, System: "linux", Kernel: "6.18.44",
		Registry: &conntrack.Target{Host: "registry.example", Port: 5000, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Own: true},
	}
	if where == conntrack.Here {
		r.Mappings = []rules.Mapping{{Port: 5000, To: "172.17.0.2:5000", By: "Docker"}}
	}
	for _, n := range []string{"rules", "be_liberal", "kernel", "loose", "ignore_invalid_rst", "log_invalid", "table", "timeouts", "namespace", "privileges", "since boot", "translation"} {
		r.Checks = append(r.Checks, conntrack.Check{Name: n, Verdict: conntrack.Sound, Finding: "found", Command: "look"})
	}
	r.Checks[0].Verdict, r.Checks[0].Details = verdict, []string{"a", "b", "c", "d\x1b[2J", "e"}
	return r
}

func TestDoctorVerdicts(t *testing.T) {
	for _, c := range []struct {
		verdict      conntrack.Verdict
		where        conntrack.Where
		change       func(*conntrack.Report)
		exit, strict int
		says, advice string
	}{
		{conntrack.Sound, conntrack.Here, func(r *conntrack.Report) { r.Protection = []string{"inet rpush input: x"} }, 0, 0, "INVALID packets are dropped", "change nothing"},
		{conntrack.Sound, conntrack.Here, func(r *conntrack.Report) { r.Protection = []string{"nf_conntrack_tcp_be_liberal"} }, 0, 0, "be_liberal keeps", "change nothing"},
		{conntrack.AtRisk, conntrack.Here, nil, 0, 4, "a stray packet beyond the window makes this host reset", "change nothing before"},
		{conntrack.AtRisk, conntrack.Here, func(r *conntrack.Report) { r.SelfTest = &selftest.Result{Delayed: selftest.WasReset} }, 0, 4, "a delayed or stray packet", "--fix=drop"},
		{conntrack.Evidence, conntrack.Here, func(r *conntrack.Report) { r.Window = &conntrack.Window{Invalid: 6, OutRsts: 3} }, 4, 4, "3 RSTs for 6 INVALID", "--fix=drop"},
		{conntrack.Evidence, conntrack.Elsewhere, func(r *conntrack.Report) { r.Window = &conntrack.Window{Invalid: 6, OutRsts: 3} }, 4, 4, "3 RSTs for 6 INVALID", "--for-admin"},
		{conntrack.NotApplicable, conntrack.Elsewhere, nil, 0, 0, "does not NAT registry.example:5000: run this on the host that publishes port 5000", "--for-admin"},
		{conntrack.NotApplicable, conntrack.Untranslated, nil, 0, 0, "its port is not translated", ""},
		{conntrack.NotApplicable, conntrack.NotLinux, func(r *conntrack.Report) { r.System = "darwin" }, 0, 0, "not applicable here, on darwin", "--for-admin"},
		{conntrack.AtRisk, conntrack.Here, func(r *conntrack.Report) {
			r.Checks = append(r.Checks, conntrack.Check{Name: "window", Verdict: conntrack.Unknown, Finding: "nothing can be measured: x", Command: "look"})
		}, 1, 1, "is translated here", ""},
		{conntrack.NotApplicable, conntrack.Untranslated, func(r *conntrack.Report) {
			r.Checks = append(r.Checks, conntrack.Check{Name: "window", Verdict: conntrack.Unknown, Command: "look"})
		}, 0, 0, "its port is not translated", ""},
		{conntrack.Unknown, conntrack.Undecided, nil, 1, 1, "could not", "sudo rpush doctor registry.example:5000"},
		{conntrack.Unknown, conntrack.Undecided, func(r *conntrack.Report) {
			r.Container = "Docker"
			r.Checks[8].Verdict = conntrack.Unknown
		}, 1, 1, "within a container", "--net=host"},
		{conntrack.Unknown, conntrack.Undecided, func(r *conntrack.Report) { r.Registry.Error = "no such host" }, 1, 1, "address of registry.example is not known", "give an address"},
	} {
		r := sample(c.verdict, c.where)
		if c.change != nil {
			c.change(r)
		}
		o := &doctorOptions{}
		reg := &conntrack.Registry{Host: "registry.example", Port: 5000}
		d := &doctorDocument{Report: r, Headline: headline(r), Advice: advice(r, o, reg)}
		a := newRig(t, nil)
		if got := a.doctorExit(o, d, nil); got != c.exit {
			t.Errorf("%s, %s: exit %d, want %d", c.verdict, c.where, got, c.exit)
		}
		if got := a.doctorExit(&doctorOptions{strict: true}, d, nil); got != c.strict {
			t.Errorf("%s, %s: --strict: exit %d, want %d", c.verdict, c.where, got, c.strict)
		}
		text := doctorWords(d, false, false, false)
		if !strings.Contains(d.Headline, c.says) || !strings.Contains(strings.Join(d.Advice, "\n"), c.advice) {
			t.Errorf("%s, %s: got %q\n%q", c.verdict, c.where, d.Headline, d.Advice)
		}
		if n := strings.Count(text, "\n"); n > 24 || strings.Contains(text, "\x1b") {
			t.Errorf("%s, %s: %d lines:\n%s", c.verdict, c.where, n, text)
		}
		if !strings.HasPrefix(text, string(c.verdict)) {
			t.Errorf("the headline is not first:\n%s", text)
		}
		if colour := doctorWords(d, false, true, true); strings.Contains(colour, "\x1b[2J") || c.verdict != conntrack.NotApplicable && !strings.Contains(colour, "\x1b[") {
			t.Errorf("%s: colours: %q", c.verdict, colour)
		}
		if v := doctorWords(d, true, false, false); strings.Count(v, "$ look") != len(r.Checks) || !strings.Contains(v, " e\n") {
			t.Errorf("%s: verbose:\n%s", c.verdict, v)
		}
	}
	a := newRig(t, nil)
	if got := a.doctorExit(&doctorOptions{}, &doctorDocument{Report: sample(conntrack.Sound, conntrack.Here)}, fs.ErrPermission); got != exitPermanent {
		t.Errorf("a fix that failed: exit %d", got)
	}
	refused := &doctorDocument{Report: sample(conntrack.Sound, conntrack.Here), Fix: &remedy.Plan{Refused: []string{"x"}}}
	if got := a.doctorExit(&doctorOptions{undo: true}, refused, nil); got != exitPermanent {
		t.Errorf("a refused undo: exit %d", got)
	}
}

// On a terminal no line is wider than it; elsewhere a finding is one line.
func TestDoctorWraps(t *testing.T) {
	r := sample(conntrack.AtRisk, conntrack.Here)
	long := strings.TrimSpace(strings.Repeat("a finding of many words, ", 12))
	r.Checks[0].Finding, r.Checks[0].Details = long, []string{long}
	d := &doctorDocument{Report: r, Headline: long, Advice: []string{long}}
	text := doctorWords(d, false, false, true)
	for line := range strings.Lines(text) {
		if len(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}
	if got := strings.Count(strings.Join(strings.Fields(text), " "), long); got != 4 {
		t.Errorf("%d of 4 texts are whole:\n%s", got, text)
	}
	if text := doctorWords(d, false, false, false); strings.Count(text, long+"\n") != 4 {
		t.Errorf("not on a terminal:\n%s", text)
	}
}

// A plan can be fed to a shell: what is not a command is a comment.
func TestPlanIsAScript(t *testing.T) {
	p := &remedy.Plan{
		Notes: []string{"note"}, Refused: []string{"this"},
		Steps: []remedy.Step{{What: "do it", Command: "nft -f - <<'EOF'\nx\nEOF"}, {What: "forget it"}},
	}
	got := planWords(p, &doctorOptions{})
	want := "# note\n# refused: this\n# do it\nnft -f - <<'EOF'\nx\nEOF\n# forget it\n# nothing was changed: --apply makes these changes\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOtherProtection(t *testing.T) {
	liberal := []string{"nf_conntrack_tcp_be_liberal"}
	rule := []string{"ip filter INPUT: ct state invalid drop"}
	ours := []rules.Guard{{Effect: rules.Protects, By: "rpush"}}
	for _, c := range []struct {
		remedy     remedy.Kind
		protection []string
		guards     []rules.Guard
		want       bool
	}{
		{remedy.Drop, nil, nil, false},
		{remedy.Drop, rule, nil, true},
		{remedy.Drop, rule, ours, false},
		{remedy.Drop, liberal, nil, true},
		{remedy.Liberal, liberal, nil, false},
		{remedy.Liberal, rule, ours, true},
	} {
		r := &conntrack.Report{Protection: c.protection, Guards: c.guards}
		if got := otherProtection(r, c.remedy); (got != "") != c.want {
			t.Errorf("%s with %q: got %q", c.remedy, c.protection, got)
		}
	}
}
