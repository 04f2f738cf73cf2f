// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"slices"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/selftest"
)

// Verdict of one check, or of all.
type Verdict string

// The verdicts.
const (
	Sound         Verdict = "sound"
	AtRisk        Verdict = "at risk"
	Evidence      Verdict = "evidence"
	Unknown       Verdict = "unknown" // the finding says why
	NotApplicable Verdict = "not applicable"
)

// Check is one thing that was looked at.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Finding is what was seen, or why nothing was, in one line.
	Finding string `json:"finding"`
	// Details are further lines.
	Details []string `json:"details,omitempty"`
	// Command shows the same by hand.
	Command string `json:"command,omitempty"`
}

// Where says whether this is the host to look at.
type Where string

// The places to be.
const (
	// Here: this machine translates the registry's port, or some port where no
	// registry was named.
	Here Where = "here"
	// Elsewhere: the registry is at another machine, and this one does not
	// translate it.
	Elsewhere Where = "elsewhere"
	// Untranslated: the registry is at this machine, or none was named, and no
	// port is translated.
	Untranslated Where = "untranslated"
	// Undecided: what would tell could not be read, or this is a container.
	Undecided Where = "undecided"
	// NotLinux: NAT is done by the Linux host or VM that publishes the port.
	NotLinux Where = "not linux"
)

// Registry is an endpoint to look for.
type Registry struct {
	Host string // name or address
	Port int
}

// Target is a Registry as it was found.
type Target struct {
	Host      string       `json:"host"`
	Port      int          `json:"port"`
	Addresses []netip.Addr `json:"addresses"`
	// Own is set where one of them is an address of this machine.
	Own bool `json:"own"`
	// Loopback is set where all of them are.
	Loopback bool `json:"loopback,omitempty"`
	// Hairpin is set where a connection to it leaves this machine, comes back
	// in, and is translated here: the registry is this machine under its
	// external name.
	Hairpin bool `json:"hairpin,omitempty"`
	// Error says why the name could not be resolved.
	Error string `json:"error,omitempty"`
}

// Proxy is a program that carries a published port in user space.
type Proxy struct {
	Program string `json:"program"`
	PID     int    `json:"pid"`
	Address string `json:"address"` // where it listens
	To      string `json:"to"`
}

// Report is what an examination came to.
type Report struct {
	Verdict  Verdict         `json:"verdict"`
	Where    Where           `json:"where"`
	Registry *Target         `json:"registry,omitempty"`
	System   string          `json:"system"` // linux, darwin ...
	Kernel   string          `json:"kernel,omitempty"`
	Mappings []rules.Mapping `json:"mappings"`
	Proxies  []Proxy         `json:"proxies"`
	Guards   []rules.Guard   `json:"guards"`
	// Protection is what keeps the host from answering: a rule, be_liberal, or
	// nothing.
	Protection []string         `json:"protection"`
	Checks     []Check          `json:"checks"`
	Window     *Window          `json:"window,omitempty"`
	SelfTest   *selftest.Result `json:"selfTest,omitempty"`
	// Container is the kind of container this runs in, if it does.
	Container string `json:"container,omitempty"`

	old     bool // the kernel, by its version
	liberal bool
	exposed bool // a translated port without a drop
	unread  bool // rules could not be read
	endless bool // or not be followed to their end
	why     error

	unwatched string // why there is no Window
}

// Unread is why rules could not be read, or nil.
func (r *Report) Unread() error { return r.why }

// Old reports a kernel whose version says that delayed segments are INVALID.
// A self-test on it knows better.
func (r *Report) Old() bool {
	if r.SelfTest != nil && r.SelfTest.Delayed != "" {
		return r.SelfTest.Delayed == selftest.WasReset
	}
	return r.old
}

// Ports are those translated here, for a rule as narrow as can be. Without any
// it is the port of the registry that was named.
func (r *Report) Ports() []rules.PortRange {
	var ports []rules.PortRange
	for _, m := range r.Mappings {
		if m.Port == 0 && r.Registry != nil {
			m.Port = r.Registry.Port
		}
		if m.Port != 0 {
			ports = append(ports, m.Range())
		}
	}
	if len(ports) == 0 && r.Registry != nil {
		ports = append(ports, rules.PortRange{First: r.Registry.Port, Last: r.Registry.Port})
	}
	return rules.Union(ports)
}

// Watched adds a measurement and draws the conclusions again.
func (r *Report) Watched(w Window) {
	r.Window = &w
	r.conclude()
}

// NotWatched says why a measurement was not made.
func (r *Report) NotWatched(why string) {
	r.unwatched = why
	r.conclude()
}

// Tested adds a self-test and draws the conclusions again.
func (r *Report) Tested(t selftest.Result) {
	r.SelfTest = &t
	r.conclude()
}

// worst is the order in which checks are shown.
func (v Verdict) worst() int {
	return slices.Index([]Verdict{Evidence, AtRisk, Unknown, Sound, NotApplicable}, v)
}

// conclude weighs the checks. What protects makes up for what would be a risk.
func (r *Report) conclude() {
	r.Checks = slices.DeleteFunc(r.Checks, func(c Check) bool { return c.Name == "window" || c.Name == "self-test" })
	if r.unwatched != "" {
		r.Checks = append(r.Checks, Check{Name: "window", Verdict: Unknown, Finding: r.unwatched, Command: windowCommand})
	}
	if r.Window != nil {
		c := windowCheck(*r.Window)
		if c.Verdict == Evidence && !r.mayTranslate() {
			c.Verdict, c.Finding = Unknown, "RSTs answered INVALID packets, but nothing is translated here: scans and late FINs look the same"
		}
		r.Checks = append(r.Checks, c)
	}
	if r.SelfTest != nil {
		r.Checks = append(r.Checks, r.selfTestCheck())
	}
	slices.SortStableFunc(r.Checks, func(a, b Check) int { return a.Verdict.worst() - b.Verdict.worst() })

	worst := Sound
	for _, c := range r.Checks {
		if r.immune() && c.Verdict == AtRisk && (c.Name == "rules" || c.Name == "be_liberal" || c.Name == "kernel") {
			continue
		}
		if c.Verdict.worst() < worst.worst() && c.Verdict != Unknown {
			worst = c.Verdict
		}
	}
	switch {
	case worst == Evidence:
		r.Verdict = Evidence
	case r.Where == NotLinux, r.Where == Elsewhere, r.Where == Untranslated:
		r.Verdict = NotApplicable
	case r.Where == Undecided:
		r.Verdict = Unknown
	case (r.endless || r.unread && r.exposed) && !r.liberal && !r.immune():
		r.Verdict = Unknown
	default:
		r.Verdict = worst
	}
}

// mayTranslate holds where an answer to an INVALID packet can be the incident.
func (r *Report) mayTranslate() bool {
	return r.Where == Here || r.Where == Undecided && r.unread
}

// immune reports a kernel that was seen to reset nothing.
func (r *Report) immune() bool {
	return r.SelfTest != nil && r.SelfTest.Delayed == selftest.Survived && r.SelfTest.Beyond == selftest.Survived
}
