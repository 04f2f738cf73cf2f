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
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is where an examination reads; tests have others.
type machine struct {
	root      string
	nft       func() (*nfDump, error)
	legacy    func(ctx context.Context, v6 bool) ([]byte, error)
	resolve   func(ctx context.Context, host string) ([]netip.Addr, error)
	addresses func() ([]netip.Addr, error)
	trace     func(ctx context.Context, to netip.AddrPort, own []netip.Addr) (traced, error)
	root0     bool // runs as root
}

func thisMachine() *machine {
	return &machine{
		root: "/", nft: readNFT, legacy: saveLegacy, addresses: ownAddresses, trace: trace, root0: os.Geteuid() == 0,
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
	c, err := readCounters("/")
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
	for _, g := range guardsOf(set, r.Mappings, r.Registry).guards {
		if g.Packets != nil && (g.Effect == Protects || g.Effect == Partly) {
			sum += *g.Packets
			s.dropped = &sum
		}
	}
	return s, nil
}

// saveLegacy prints the rules of legacy xtables. Only called where the kernel
// has such tables: the program would make them.
func saveLegacy(ctx context.Context, v6 bool) ([]byte, error) {
	return saveLegacyWith(ctx, v6, lookPath, run)
}

func saveLegacyWith(ctx context.Context, v6 bool, find func(string) (string, error), run program) ([]byte, error) {
	name := "iptables-legacy-save"
	if v6 {
		name = "ip6tables-legacy-save"
	}
	path, missing := find(name)
	if missing == nil {
		return run(ctx, nil, path, "-c")
	}
	// Before 1.8 there was but one. Since then one of that name may print the
	// rules of nft, and none of the legacy ones.
	path, err := find(strings.Replace(name, "-legacy", "", 1))
	if err != nil {
		return nil, missing
	}
	version, err := run(ctx, nil, path, "--version")
	if err != nil || bytes.Contains(version, []byte("nf_tables")) {
		return nil, missing
	}
	return run(ctx, nil, path, "-c")
}

// lookPath finds a program, also where an ordinary user has no PATH to it.
func lookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

const programTime = 20 * time.Second

// program is run.
type program func(ctx context.Context, in []byte, path string, args ...string) ([]byte, error)

// bounded keeps so much of what is written to it.
type bounded struct {
	b    bytes.Buffer
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.b.Len()+len(p) > maxDump {
		b.over = true
		return 0, errors.New("too much output")
	}
	return b.b.Write(p)
}

func run(ctx context.Context, in []byte, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out bounded
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n")
		return out.b.Bytes(), fmt.Errorf("%s: %w: %s", filepath.Base(path), err, said)
	}
	return out.b.Bytes(), nil
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
func (m *machine) rules(ctx context.Context) (*ruleset, error) {
	set := &ruleset{}
	d, err := m.nft()
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("the rules can be read by root only: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		// A kernel without nf_tables has none of its rules.
	case err != nil:
		return nil, fmt.Errorf("nf_tables: %w", err)
	default:
		if err := nftRules(d, set); err != nil {
			return nil, err
		}
	}
	for _, v6 := range []bool{false, true} {
		names := "proc/net/ip_tables_names"
		if v6 {
			names = "proc/net/ip6_tables_names"
		}
		tables, err := readFile(m.root, names)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(tables)) == 0 {
			continue
		}
		if err != nil {
			return set, fmt.Errorf("legacy xtables: %s", readable(err))
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
		if err := xtRules(dump, v6, set); err != nil {
			return nil, fmt.Errorf("legacy xtables: %w", err)
		}
	}
	return set, nil
}

var errEndless = errors.New("there are too many rules to follow, or they go in circles")

func (m *machine) examine(ctx context.Context, reg *Registry) *Report {
	r := &Report{System: "linux", Mappings: []Mapping{}, Proxies: []Proxy{}, Guards: []Guard{}, Protection: []string{}}
	if b, err := readFile(m.root, "proc/sys/kernel/osrelease"); err == nil {
		r.Kernel = strings.TrimSpace(string(b))
	}
	own, _ := m.addresses()
	if reg != nil {
		r.Registry = m.target(ctx, *reg, own)
	}
	r.Proxies = append(r.Proxies, m.proxies(reg)...)

	netns := m.namespace(r)
	set, err := m.rules(ctx)
	r.unread, r.why = err != nil, err
	if set != nil {
		all, cut := mappings(set, r.Registry, own)
		r.Mappings = append(r.Mappings, all...)
		if r.endless = cut; cut && err == nil {
			err = errEndless
			r.unread, r.why = true, err
		}
	}
	m.where(ctx, r, set, own, netns)

	liberal := m.beLiberal(r)
	var found judgement
	if set != nil {
		found = guardsOf(set, r.Mappings, r.Registry)
		r.Guards = append(r.Guards, found.guards...)
		r.exposed = len(found.open) > 0
		found.endless = found.endless || r.endless
		r.endless = found.endless
		r.unread = r.unread || found.endless
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
func packets(t *Target, own []netip.Addr) []packet {
	if t == nil {
		return []packet{{local: yes, outside: true}, {v6: true, local: yes, outside: true}}
	}
	port := uint16(t.Port) //nolint:gosec // checked by the caller
	var all []packet
	for _, a := range t.Addresses {
		p := packet{v6: a.Is6(), port: port, to: a, local: known(slices.Contains(own, a))}
		if a.IsLoopback() { // others get there by another address
			p.to, p.local = netip.Addr{}, yes
		}
		all = append(all, p)
	}
	return all
}

// mappings lists the ports that are translated. cut reports that there may be
// more.
func mappings(set *ruleset, t *Target, own []netip.Addr) (all []Mapping, cut bool) {
	for _, p := range packets(t, own) {
		found, more := set.translations(p)
		cut = cut || more
		for _, m := range found {
			same := func(o Mapping) bool { return o.Port == m.Port && o.Last == m.Last && o.V6 == m.V6 && o.To == m.To }
			if !slices.ContainsFunc(all, same) {
				all = append(all, m)
			}
		}
	}
	return all, cut
}

// guardsOf judges each port that is translated.
func guardsOf(set *ruleset, mappings []Mapping, t *Target) judgement {
	var out judgement
	bounds, _ := set.ports()
	for _, m := range mappings {
		open := false
		for _, port := range judged(m, bounds) {
			s := set.judge(packet{v6: m.V6, port: uint16(port), local: yes, to: t.only(m.V6)}) //nolint:gosec // it was read as one
			out.endless = out.endless || s.endless
			open = open || s.effect() != Protects
			for _, g := range s.guards {
				out.add(g, m.Port)
			}
		}
		if open {
			out.open = append(out.open, m)
		}
	}
	return out
}

// judged are the ports of a mapping that rules may treat differently.
func judged(m Mapping, bounds []int) []int {
	first := max(m.Port, 1)
	ports := []int{first}
	for _, b := range bounds {
		if b != first && m.covers(b) {
			ports = append(ports, b)
		}
	}
	return ports
}

func (s *judgement) add(g Guard, port int) {
	i := slices.IndexFunc(s.guards, func(o Guard) bool {
		return o.Chain == g.Chain && o.Rule == g.Rule && o.Effect == g.Effect
	})
	if i < 0 {
		i = len(s.guards)
		s.guards = append(s.guards, g)
	}
	if !slices.Contains(s.guards[i].Ports, port) {
		s.guards[i].Ports = append(s.guards[i].Ports, port)
	}
}

// where decides whether this is the host to look at.
func (m *machine) where(ctx context.Context, r *Report, set *ruleset, own []netip.Addr, netns Check) {
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
	case m.noConntrack() && !apart:
		r.Where = Untranslated
	default:
		r.Where = Undecided
	}
	if r.Where == Elsewhere && apart {
		r.Where = Undecided
	}
}

// noConntrack holds where this network namespace has none, and so no NAT.
func (m *machine) noConntrack() bool {
	_, err := os.Stat(filepath.Join(m.root, "proc/sys/net/netfilter"))
	_, old := os.Stat(filepath.Join(m.root, "proc/sys/net/ipv4/netfilter"))
	return errors.Is(err, fs.ErrNotExist) && errors.Is(old, fs.ErrNotExist)
}

// hairpin finds out whether the registry's address, which is none of this
// machine's, leads back to it: the port is translated here for its own
// addresses, and a connection made from here comes in again.
func (m *machine) hairpin(ctx context.Context, r *Report, set *ruleset, own []netip.Addr) {
	t := r.Registry
	port := uint16(t.Port) //nolint:gosec // checked by the caller
	local := []Mapping{}
	for _, v6 := range []bool{false, true} {
		found, _ := set.translations(packet{v6: v6, port: port, local: yes})
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

// firstPIDs is the machine's own namespace of process ids.
const firstPIDs = "pid:[4026531836]"

// namespace tells whether this is the machine's own network namespace.
func (m *machine) namespace(r *Report) Check {
	c := Check{Name: "namespace", Verdict: Sound, Command: "ls -l /proc/self/ns/net /proc/1/ns/net"}
	for _, f := range []struct{ file, kind string }{{".dockerenv", "Docker"}, {"run/.containerenv", "Podman"}} {
		if _, err := os.Stat(filepath.Join(m.root, f.file)); err == nil {
			r.Container = f.kind
		}
	}
	if ns, err := os.Readlink(filepath.Join(m.root, "proc/self/ns/pid")); err == nil && ns != firstPIDs && r.Container == "" {
		r.Container = "unknown kind"
	}
	// The size of the table can be written in the first namespace only.
	if fi, err := os.Stat(filepath.Join(m.root, "proc/sys/net/netfilter/nf_conntrack_max")); err == nil {
		if fi.Mode().Perm()&0o200 != 0 {
			c.Finding = "the machine's own network namespace"
			return c
		}
		c.Verdict, c.Finding = Unknown, "a network namespace of its own: it says nothing of the machine's rules and settings"
	} else {
		self, err := os.Readlink(filepath.Join(m.root, "proc/self/ns/net"))
		first, err1 := os.Readlink(filepath.Join(m.root, "proc/1/ns/net"))
		switch {
		case err == nil && err1 == nil && self == first && r.Container == "":
			c.Finding = "the machine's own network namespace"
			return c
		case err == nil && err1 == nil && self != first:
			c.Verdict, c.Finding = Unknown, "a network namespace of its own: it says nothing of the machine's rules and settings"
		case r.Container == "":
			c.Finding = "no sign of a container"
			return c
		default:
			c.Verdict, c.Finding = Unknown, "whether this is the machine's own network namespace cannot be told"
		}
	}
	if r.Container != "" {
		c.Finding += ", in a container (" + r.Container + ")"
	}
	return c
}

// proxies finds the programs that carry published ports in user space.
func (m *machine) proxies(reg *Registry) []Proxy {
	dir, err := os.Open(filepath.Join(m.root, "proc"))
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
		b, err := readFile(m.root, filepath.Join("proc", n, "cmdline"))
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
