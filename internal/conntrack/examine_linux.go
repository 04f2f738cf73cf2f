// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/nft"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/conntrack/xtables"
)

// machine is where an examination reads; tests have others.
type machine struct {
	host.Host
	nft       func() (*nft.Dump, error)
	legacy    func(ctx context.Context, v6 bool) ([]byte, error)
	resolve   func(ctx context.Context, host string) ([]netip.Addr, error)
	addresses func() ([]netip.Addr, error)
	trace     func(ctx context.Context, to netip.AddrPort, own []netip.Addr) (traced, error)
}

func thisMachine() *machine {
	return &machine{
		Host: host.ThisHost(), nft: nft.Read, legacy: xtables.Save, addresses: ownAddresses, trace: trace,
		resolve: func(ctx context.Context, host string) ([]netip.Addr, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}
}

// Examine looks at this machine and changes nothing. reg may be nil: then every
// translated port counts. A name is resolved, and where the machine may be the
// registry under an external name, one connection is made to it.
func Examine(ctx context.Context, reg *Registry) *Report {
	return thisMachine().examine(ctx, reg)
}

// Now samples the counters of this network namespace.
func Now() (Sample, error) {
	c, err := host.ThisHost().Counters()
	return Sample{At: time.Now(), Counters: c}, err
}

// NowWithRules is Now, and reads how much the rules that drop INVALID dropped.
// That takes privileges, and is left out without them.
func NowWithRules(ctx context.Context, r *Report) (Sample, error) {
	s, err := Now()
	if err != nil {
		return s, err
	}
	set, err := thisMachine().rules(ctx)
	if err != nil {
		return s, nil //nolint:nilerr // the sample is good without
	}
	var sum uint64
	for _, g := range set.JudgeMappings(r.Mappings, r.Registry.only).Guards {
		if g.Packets != nil && (g.Effect == rules.Protects || g.Effect == rules.Partly) {
			sum += *g.Packets
			s.dropped = &sum
		}
	}
	return s, nil
}

func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, nil
}

// rules reads every rule there is. An error says which could not be read; what
// could be is returned all the same, and is nil where nothing could.
func (m *machine) rules(ctx context.Context) (*rules.Set, error) {
	set := &rules.Set{}
	d, err := m.nft()
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("the rules can be read by root only: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		// A kernel without nf_tables has none of its rules.
	case err != nil:
		return nil, fmt.Errorf("nf_tables: %w", err)
	default:
		if err := nft.Parse(d, set); err != nil {
			return nil, err
		}
	}
	for _, v6 := range []bool{false, true} {
		names := "proc/net/ip_tables_names"
		if v6 {
			names = "proc/net/ip6_tables_names"
		}
		tables, err := m.ReadFile(names)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(tables)) == 0 {
			continue
		}
		if err != nil {
			return set, fmt.Errorf("legacy xtables: %s", host.Reason(err))
		}
		dump, err := m.legacy(ctx, v6)
		if err != nil {
			return set, fmt.Errorf("legacy xtables: %w", err)
		}
		for _, table := range strings.Fields(string(tables)) {
			if !bytes.Contains(append([]byte("\n"), dump...), []byte("\n*"+table+"\n")) {
				return set, fmt.Errorf("legacy xtables: the kernel has a table %q, which was not printed", table)
			}
		}
		if err := xtables.Parse(dump, v6, set); err != nil {
			return nil, fmt.Errorf("legacy xtables: %w", err)
		}
	}
	return set, nil
}

var errEndless = errors.New("there are too many rules to follow, or they go in circles")

func (m *machine) examine(ctx context.Context, reg *Registry) *Report {
	r := &Report{System: "linux", Mappings: []rules.Mapping{}, Proxies: []Proxy{}, Guards: []rules.Guard{}, Protection: []string{}}
	if b, err := m.ReadFile("proc/sys/kernel/osrelease"); err == nil {
		r.Kernel = strings.TrimSpace(string(b))
	}
	own, _ := m.addresses()
	if reg != nil {
		r.Registry = m.target(ctx, *reg, own)
	}
	r.Proxies = append(r.Proxies, m.proxies(reg)...)

	ns := m.Namespace()
	r.Container = ns.Container
	netns := namespaceCheck(ns)
	set, err := m.rules(ctx)
	r.unread, r.why = err != nil, err
	if set != nil {
		all, cut := set.Mappings(packets(r.Registry, own))
		r.Mappings = append(r.Mappings, all...)
		if r.endless = cut; cut && err == nil {
			err = errEndless
			r.unread, r.why = true, err
		}
	}
	m.where(ctx, r, set, own, netns)

	liberal := m.beLiberal(r)
	var found rules.Judgement
	if set != nil {
		found = set.JudgeMappings(r.Mappings, r.Registry.only)
		r.Guards = append(r.Guards, found.Guards...)
		r.exposed = len(found.Open) > 0
		found.IsEndless = found.IsEndless || r.endless
		r.endless = found.IsEndless
		r.unread = r.unread || found.IsEndless
	}
	r.protections(found)
	if r.Where == Here && netns.Verdict == Unknown {
		netns.Verdict, netns.Finding = Sound, "a network namespace of its own, which is where the translation is done"
	}
	r.Checks = append(r.Checks, m.natCheck(r, err), m.rulesCheck(r, set, found, err), m.liberalCheck(r, liberal), m.kernelCheck(r))
	r.Checks = append(r.Checks, m.sysctlChecks()...)
	r.Checks = append(r.Checks, m.tableCheck(), m.timeoutCheck(), netns, m.privilegeCheck(err), m.historyCheck())
	if r.Where != Here { // what would be a risk on the right host is none here
		for i := range r.Checks {
			if r.Checks[i].Verdict == AtRisk {
				r.Checks[i].Verdict = NotApplicable
			}
		}
	}
	r.conclude()
	return r
}

func (m *machine) target(ctx context.Context, reg Registry, own []netip.Addr) *Target {
	t := &Target{Host: reg.Host, Port: reg.Port, Addresses: []netip.Addr{}}
	if a, err := netip.ParseAddr(reg.Host); err == nil {
		t.Addresses = append(t.Addresses, a.Unmap())
	} else {
		found, err := m.resolve(ctx, reg.Host)
		if err != nil {
			t.Error = err.Error()
			return t
		}
		for _, a := range found {
			if a = a.Unmap(); !slices.Contains(t.Addresses, a) && len(t.Addresses) < 16 {
				t.Addresses = append(t.Addresses, a)
			}
		}
	}
	t.Loopback = len(t.Addresses) > 0
	for _, a := range t.Addresses {
		t.Own = t.Own || a.IsLoopback() || slices.Contains(own, a)
		t.Loopback = t.Loopback && a.IsLoopback()
	}
	return t
}

// only is the address of a family, if the target is this machine and has no
// other of that family.
func (t *Target) only(v6 bool) (a netip.Addr) {
	if t == nil || !t.Own || t.Loopback {
		return a
	}
	for _, o := range t.Addresses {
		switch {
		case o.Is6() != v6:
		case a.IsValid():
			return netip.Addr{}
		default:
			a = o
		}
	}
	return a
}

// packets are the kinds that matter for a registry, or for any.
func packets(t *Target, own []netip.Addr) []rules.Packet {
	if t == nil {
		return []rules.Packet{{IsLocal: rules.Yes, IsFromOutside: true}, {IsV6: true, IsLocal: rules.Yes, IsFromOutside: true}}
	}
	port := uint16(t.Port) //nolint:gosec // checked by the caller
	var all []rules.Packet
	for _, a := range t.Addresses {
		p := rules.Packet{IsV6: a.Is6(), Port: port, To: a, IsLocal: rules.Known(slices.Contains(own, a))}
		if a.IsLoopback() { // others get there by another address
			p.To, p.IsLocal = netip.Addr{}, rules.Yes
		}
		all = append(all, p)
	}
	return all
}

// where decides whether this is the host to look at.
func (m *machine) where(ctx context.Context, r *Report, set *rules.Set, own []netip.Addr, netns Check) {
	t := r.Registry
	apart := netns.Verdict == Unknown // a container's namespace, or not known to be the host's
	switch {
	case len(r.Mappings) > 0:
		r.Where = Here
	case t != nil && t.Error != "":
		r.Where = Undecided
	case t != nil && !t.Own && !r.unread:
		r.Where = Elsewhere
		m.hairpin(ctx, r, set, own)
	case !r.unread && !apart:
		r.Where = Untranslated
	case !m.HasConntrack() && !apart:
		r.Where = Untranslated
	default:
		r.Where = Undecided
	}
	if r.Where == Elsewhere && apart {
		r.Where = Undecided
	}
}

// hairpin finds out whether the registry's address, which is none of this
// machine's, leads back to it: the port is translated here for its own
// addresses, and a connection made from here comes in again.
func (m *machine) hairpin(ctx context.Context, r *Report, set *rules.Set, own []netip.Addr) {
	t := r.Registry
	port := uint16(t.Port) //nolint:gosec // checked by the caller
	local := []rules.Mapping{}
	for _, v6 := range []bool{false, true} {
		found, _ := set.Translations(rules.Packet{IsV6: v6, Port: port, IsLocal: rules.Yes})
		local = append(local, found...)
	}
	if len(local) == 0 {
		return
	}
	r.Where = Undecided
	for _, a := range t.Addresses {
		got, err := m.trace(ctx, netip.AddrPortFrom(a, port), own)
		switch {
		case err != nil:
		case got.back:
			t.Hairpin, r.Where, r.Mappings = true, Here, local
			return
		default:
			r.Where = Elsewhere
		}
	}
}

// proxies finds the programs that carry published ports in user space.
func (m *machine) proxies(reg *Registry) []Proxy {
	dir, err := os.Open(filepath.Join(m.Root, "proc"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1 << 16)
	if err != nil {
		return nil
	}
	var all []Proxy
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		b, err := m.ReadFile(filepath.Join("proc", n, "cmdline"))
		if err != nil {
			continue
		}
		if p, port, ok := parseProxy(b); ok && (reg == nil || reg.Port == port) && len(all) < 64 {
			p.PID = pid
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Proxy) int { return a.PID - b.PID })
	return all
}

const dockerProxy = "docker-proxy"

// parseProxy reads the command line of docker-proxy.
func parseProxy(cmdline []byte) (Proxy, int, bool) {
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if filepath.Base(args[0]) != dockerProxy {
		return Proxy{}, 0, false
	}
	v := map[string]string{}
	for i := 1; i < len(args); i++ {
		name, value, ok := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !ok && i+1 < len(args) {
			i++
			value = args[i]
		}
		v[name] = value
	}
	port, err := strconv.Atoi(v["host-port"])
	if err != nil || port < 1 || port > 65535 || v["proto"] != "tcp" {
		return Proxy{}, 0, false
	}
	return Proxy{
		Program: dockerProxy, Address: net.JoinHostPort(v["host-ip"], v["host-port"]),
		To: net.JoinHostPort(v["container-ip"], v["container-port"]),
	}, port, true
}
