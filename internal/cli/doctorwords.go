// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rpush-go/rpush/internal/conntrack"
	"github.com/rpush-go/rpush/internal/conntrack/remedy"
)

// What rpush doctor says to a human.

const (
	doctorShort       = "find out whether this host resets pushes, and how to stop that"
	tooManyForDoctor  = "unexpected argument %q: rpush doctor [REFERENCE]"
	notMeasured       = "nothing can be measured: %v"
	selfTestWords     = "reproducing the resets in separate network namespaces, for some seconds"
	notToldNotApplied = "nothing is applied: could not find out whether this machine translates the port"
	nothingToFix      = "nothing is translated on this machine, so there is nothing to fix here"
	alreadyProtected  = "nothing to do: this host is already protected by %s"
	alreadyFixed      = "nothing to do: the fix is already in place"
	hostResetsLine    = "this host sent resets during the push: rpush doctor"
)

const doctorHelp = `Find out whether this host resets the pushes that it translates (NAT) to a
registry, whether it did, and how to stop it. Run it on the host that publishes
the registry's port. Nothing is changed without --apply.

  rpush doctor [REFERENCE]
`

const doctorTail = `
Every flag has a variable: RPUSH_WATCH for --watch. A flag wins.
Exit codes: 0 sound, at risk or not applicable; 4 evidence that this host resets
pushes, with --strict also at risk; 1 could not tell, or a fix failed; 2 wrong
usage. docs/conntrack.md explains the details.
`

func doctorHelpText(groups []flagGroup) string {
	var b strings.Builder
	b.WriteString(doctorHelp)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s\n%s", g.title, g.FlagUsagesWrapped(80))
	}
	b.WriteString(doctorTail)
	return b.String()
}

func watchWords(d time.Duration) string {
	return fmt.Sprintf("measuring for %s: push now; a signal ends it sooner", d)
}

// targetWords names the registry, or what is translated.
func targetWords(r *conntrack.Report) string {
	t := r.Registry
	switch ports := r.Ports(); {
	case t == nil && len(ports) == 1:
		return "port " + ports[0].String()
	case t == nil:
		return "a port"
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
}

// headline is the answer in one line.
func headline(r *conntrack.Report) string {
	what := targetWords(r)
	switch r.Where {
	case conntrack.NotLinux:
		where := "the registry's port"
		if r.Registry != nil {
			where = "port " + strconv.Itoa(r.Registry.Port) + " of " + r.Registry.Host
		}
		return "not applicable here, on " + r.System + ": look at the Linux host or VM that publishes " + where
	case conntrack.Elsewhere:
		if r.Verdict != conntrack.Evidence {
			return fmt.Sprintf("this machine does not NAT %s: run this on the host that publishes port %d", what, r.Registry.Port)
		}
	case conntrack.Untranslated:
		if r.Verdict != conntrack.Evidence && r.Registry != nil {
			return fmt.Sprintf("%s is this machine, and its port is not translated: it resets no push this way", what)
		}
		if r.Verdict != conntrack.Evidence {
			return "this machine translates no TCP port: name the registry, or run this on the host that publishes its port"
		}
	}
	switch r.Verdict {
	case conntrack.Evidence:
		return fmt.Sprintf("this host reset connections: %d RSTs for %d INVALID packets in %.0f s", r.Window.OutRsts, r.Window.Invalid, r.Window.Seconds)
	case conntrack.Unknown:
		return undecidedWords(r, what)
	case conntrack.AtRisk:
		if len(r.Protection) > 0 {
			return fmt.Sprintf("%s is translated here and protected, but see below", what)
		}
		if r.Old() {
			return fmt.Sprintf("%s is translated here: a delayed or stray packet makes this host reset the upload", what)
		}
		return fmt.Sprintf("%s is translated here: a stray packet beyond the window makes this host reset the upload", what)
	}
	if len(r.Protection) == 0 {
		return fmt.Sprintf("%s is translated here, and this kernel resets nothing", what)
	}
	how := "INVALID packets are dropped"
	if slices.ContainsFunc(r.Protection, func(p string) bool { return !strings.Contains(p, ":") }) {
		how = "be_liberal keeps packets from being INVALID"
	}
	return fmt.Sprintf("%s is translated here, and %s", what, how)
}

func undecidedWords(r *conntrack.Report, what string) string {
	switch t := r.Registry; {
	case t != nil && t.Error != "":
		return "could not tell: the address of " + t.Host + " is not known"
	case r.Where == conntrack.Here:
		return fmt.Sprintf("%s is translated here; whether INVALID packets are dropped could not be read", what)
	case apart(r) && r.Container != "":
		return "could not tell from within a container: the rules that count are the machine's"
	case apart(r):
		return "could not tell from a network namespace of its own: the rules that count are the machine's"
	case t != nil && !t.Own:
		return fmt.Sprintf("%s is another machine; whether this one translates it could not be read", what)
	}
	return "could not tell: the rules could not be read"
}

// apart holds where this is, or may be, a network namespace other than the
// machine's.
func apart(r *conntrack.Report) bool {
	return slices.ContainsFunc(r.Checks, func(c conntrack.Check) bool {
		return c.Name == "namespace" && c.Verdict == conntrack.Unknown
	})
}

// advice is what to do, most useful first.
func advice(r *conntrack.Report, o *doctorOptions, reg *conntrack.Registry) []string {
	call := "rpush doctor"
	if reg != nil {
		call += " " + net.JoinHostPort(reg.Host, strconv.Itoa(reg.Port))
	}
	all := []string{}
	add := func(s string) { all = append(all, s) }
	switch {
	case r.Where == conntrack.Elsewhere, r.Where == conntrack.NotLinux:
		add(call + " --for-admin prints a page for whoever runs that host")
	case r.Where == conntrack.Undecided && apart(r):
		add("on the machine itself: sudo " + call + "; or in the container's place: nsenter -t 1 -n, docker run --net=host --cap-add NET_ADMIN")
	case r.Where == conntrack.Undecided && r.Registry != nil && r.Registry.Error != "":
		add("check the name, or give an address instead")
	case r.Verdict == conntrack.Unknown:
		add("reading the rules needs root: sudo " + call)
	}
	if r.Registry != nil && !r.Registry.Own && r.Where == conntrack.Undecided && r.Registry.Error == "" {
		add(fmt.Sprintf("run this on the host that publishes port %d of %s", r.Registry.Port, r.Registry.Host))
	}
	if r.Where != conntrack.Here && r.Verdict != conntrack.Evidence {
		return all
	}
	exposed := len(r.Protection) == 0
	switch {
	case r.Verdict == conntrack.Evidence:
		add("sudo " + call + " --fix=drop shows a rule that stops it; --apply sets the rule, --undo removes it")
		add("if the rules are not yours to change: --fix=liberal, a sysctl for all connections")
	case r.Verdict == conntrack.Sound:
		add("change nothing")
	case r.Verdict == conntrack.AtRisk && exposed && r.Old():
		add("sudo " + call + " --fix=drop shows a rule that stops it; --apply sets the rule, --undo removes it")
		add(call + " --selftest says what this very kernel does")
	case r.Verdict == conntrack.AtRisk && exposed:
		add("such packets are rare: change nothing before " + call + " --watch 60s, during a push, finds evidence")
	}
	if t := r.Registry; t != nil && (t.Hairpin || t.Own && !t.Loopback) && len(r.Mappings) > 0 && exposed {
		way := "the registry is this machine: a push to "
		if to := r.Mappings[0].To; to != "" {
			add(way + to + " itself, or a registry with --network host, is not translated")
		} else {
			add(way + "the container's own address, or a registry with --network host, is not translated")
		}
	}
	return all
}

var colours = map[conntrack.Verdict]string{
	conntrack.Evidence: "\x1b[1;31m", conntrack.AtRisk: "\x1b[33m", conntrack.Unknown: "\x1b[35m", conntrack.Sound: "\x1b[32m",
}

// moot is a check that does not matter here.
const moot = "moot"

func verdictWord(v conntrack.Verdict, colour bool) string {
	s := fmt.Sprintf("%-8s", v)
	if c := colours[v]; colour && c != "" {
		return c + s + "\x1b[0m"
	}
	return s
}

const (
	findingsAt = 29 // column
	columns    = 80
)

// wrapped breaks text between words, so that with what stands before it no line
// is longer than the terminal. Where there is none it stays whole, for grep.
func wrapped(text string, indent int, terminal bool) string {
	if !terminal {
		return text
	}
	var b strings.Builder
	at := indent
	for i, w := range strings.Fields(text) {
		n := utf8.RuneCountInString(w)
		switch {
		case i == 0:
		case at+1+n > columns:
			fmt.Fprintf(&b, "\n%*s", indent, "")
			at = indent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(w)
		at += n
	}
	return b.String()
}

// doctorWords is the report for stdout, worst first.
func doctorWords(d *doctorDocument, verbose, colour, terminal bool) string {
	const most = 3 // details of one check
	var b strings.Builder
	headline := wrapped(clean(d.Headline), max(len(d.Verdict), 8)+2, terminal)
	fmt.Fprintf(&b, "%s  %s\n\n", verdictWord(d.Verdict, colour), headline)
	var others []string
	for _, c := range d.Checks {
		if c.Verdict == conntrack.NotApplicable && !verbose {
			others = append(others, c.Name)
			continue
		}
		word := verdictWord(c.Verdict, colour)
		if c.Verdict == conntrack.NotApplicable {
			word = fmt.Sprintf("%-8s", moot)
		}
		fmt.Fprintf(&b, "%s  %-18s %s\n", word, c.Name, wrapped(clean(c.Finding), findingsAt, terminal))
		if c.Verdict == conntrack.Sound && !verbose && c.Name != "translation" && c.Name != "window" {
			continue
		}
		for i, s := range c.Details {
			if i == most && !verbose {
				fmt.Fprintf(&b, "%*s... %d more: -v\n", findingsAt, "", len(c.Details)-most)
				break
			}
			fmt.Fprintf(&b, "%*s%s\n", findingsAt, "", wrapped(clean(s), findingsAt, terminal))
		}
		if c.Command != "" && (c.Verdict != conntrack.Sound || verbose) {
			fmt.Fprintf(&b, "%*s$ %s\n", findingsAt, "", clean(c.Command))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(&b, "%-8s  %s\n", moot, strings.Join(others, ", "))
	}
	for i, s := range d.Advice {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "-> %s\n", wrapped(clean(s), 3, terminal))
	}
	return b.String()
}

// tradeOff is what to know before a remedy is applied.
func tradeOff(m remedy.Kind) []string {
	if m == remedy.Drop {
		return []string{
			"what it costs: INVALID packets to these ports of the host itself are dropped, and the sender gets no reset",
			"a connection that is really gone hangs until its timeout; other ports and forwarded packets are not touched",
		}
	}
	return []string{
		"what it costs: window checks are off for every TCP connection that this host tracks, not only for those to the registry",
		"forged segments outside the window pass a stateful firewall; the end hosts still check. Illegal flags still draw a RST",
	}
}

func stepWords(b *strings.Builder, p *remedy.Plan) {
	for _, s := range p.Steps {
		fmt.Fprintf(b, "# %s\n", clean(s.What))
		for line := range strings.Lines(s.Command) {
			fmt.Fprintf(b, "%s\n", clean(line))
		}
	}
}

// planWords is a plan for stdout; it can be fed to a shell.
func planWords(p *remedy.Plan, o *doctorOptions) string {
	var b strings.Builder
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "# %s\n", clean(n))
	}
	for _, n := range p.Refused {
		fmt.Fprintf(&b, "# refused: %s\n", clean(n))
	}
	stepWords(&b, p)
	if len(p.Steps) > 0 && !o.apply {
		b.WriteString("# nothing was changed: --apply makes these changes\n")
	}
	return b.String()
}

func appliedWords(p *remedy.Plan, o *doctorOptions) string {
	var b strings.Builder
	for _, n := range p.Refused {
		fmt.Fprintf(&b, "refused: %s\n", clean(n))
	}
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "done: %s\n", clean(s.What))
	}
	if len(p.Steps) == 0 && o.undo && len(p.Refused) == 0 {
		for _, n := range p.Notes {
			fmt.Fprintf(&b, "%s\n", clean(n))
		}
	}
	if b.Len() > 0 && !o.undo {
		b.WriteString("\n")
	}
	return b.String()
}

// fixFailedWords says why a fix or an undo did not come about.
func fixFailedWords(err error) []string {
	lines := []string{err.Error()}
	if remedy.Forbidden(err) {
		lines = append(lines, hint("this needs root: sudo rpush doctor ..."))
	}
	return lines
}

// adminWords is a page for somebody who may never have heard of rpush.
func adminWords(reg *conntrack.Registry) string {
	port, who := "PORT", "the registry"
	if reg != nil {
		port, who = strconv.Itoa(reg.Port), net.JoinHostPort(reg.Host, strconv.Itoa(reg.Port))
	}
	return cleanLines(strings.NewReplacer("{port}", port, "{registry}", who).Replace(adminPage))
}

// cleanLines is clean for text of many lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

const adminPage = `Uploads to {registry} break with "connection reset by peer"

What happens, on the Linux host that publishes port {port} by NAT (docker run -p, DNAT):
 1. A client uploads a layer; conntrack rewrites each packet to the registry's address.
 2. A packet comes that conntrack calls INVALID: delayed (kernels before 6.1), or beyond
    the TCP window (all kernels). INVALID packets are not rewritten.
 3. So it still bears the host's own address. The host's TCP knows no such connection
    and answers with a RST, from the address and port that the client talks to.
 4. Its sequence number is the one that the client expects: the client believes it, and
    the upload is over. Neither registry nor client did anything wrong.
A drop of INVALID in FORWARD, as kube-proxy and Calico have it, does not help: the packet
is not forwarded. Nor does one behind a rule that accepts the port.

Check it, as root on that host, while somebody pushes:
  nft list ruleset | grep -n dnat; iptables-save | grep DNAT      # is port {port} there?
  sysctl net.netfilter.nf_conntrack_tcp_be_liberal                # 1: protected
  conntrack -S | grep -o ' invalid=[0-9]*'; nstat -az TcpOutRsts  # twice, some pushes apart
It is this incident if both rise, invalid by two for each RST.

Remedy 1, a narrow rule (better):
  nft add table inet rpush_manual
  nft 'add chain inet rpush_manual input { type filter hook input priority -1; }'
  nft add rule inet rpush_manual input tcp dport {port} ct state invalid counter drop
Undo: nft delete table inet rpush_manual

Remedy 2, a setting (all TCP connections lose conntrack's window check):
  sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1
Undo: sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=0
Both last until a reboot.

Or with rpush there: rpush doctor; rpush doctor --fix=drop --apply --persist; --undo --apply
`
