// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Counters are what the kernel counts since this network namespace began.
type Counters struct {
	// Of nf_conntrack. Invalid counts the stray packet and, again, the RST that
	// this host answers with.
	Invalid, InsertFailed, Drop, EarlyDrop uint64
	// Of TCP.
	OutRsts, EstabResets, InCsumErrors, RetransSegs uint64
	// ChallengeACK counts RSTs, and others, that were not believed.
	ChallengeACK uint64

	// Tracked is false where conntrack does not count here.
	Tracked bool
}

// Since is how much the counters grew. One that shrank, because a CPU went away
// or it began again, did not grow.
func (c Counters) Since(o Counters) Counters {
	less := func(a, b uint64) uint64 {
		if a < b { // a CPU went away, or the counter began again
			return 0
		}
		return a - b
	}
	return Counters{
		Invalid: less(c.Invalid, o.Invalid), InsertFailed: less(c.InsertFailed, o.InsertFailed),
		Drop: less(c.Drop, o.Drop), EarlyDrop: less(c.EarlyDrop, o.EarlyDrop),
		OutRsts: less(c.OutRsts, o.OutRsts), EstabResets: less(c.EstabResets, o.EstabResets),
		InCsumErrors: less(c.InCsumErrors, o.InCsumErrors), RetransSegs: less(c.RetransSegs, o.RetransSegs),
		ChallengeACK: less(c.ChallengeACK, o.ChallengeACK), Tracked: c.Tracked && o.Tracked,
	}
}

// The files that hold the counters. /proc/net would be those of the process's first
// thread.
const (
	StatFile    = "proc/thread-self/net/stat/nf_conntrack"
	SNMPFile    = "proc/thread-self/net/snmp"
	NetstatFile = "proc/thread-self/net/netstat"
)

// Counters reads all counters. Without conntrack Tracked is false.
func (h Host) Counters() (Counters, error) {
	var c Counters
	b, err := h.ReadFile(StatFile)
	switch {
	case err == nil:
		if err := parseStat(b, &c); err != nil {
			return c, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return c, err
	}
	if b, err = h.ReadFile(SNMPFile); err != nil {
		return c, err
	}
	tcp, err := parsePairs(b, "Tcp:")
	if err != nil {
		return c, err
	}
	c.OutRsts, c.EstabResets, c.RetransSegs, c.InCsumErrors = tcp["OutRsts"], tcp["EstabResets"], tcp["RetransSegs"], tcp["InCsumErrors"]
	if b, err = h.ReadFile(NetstatFile); err == nil { // gVisor and others have none
		if ext, err := parsePairs(b, "TcpExt:"); err == nil {
			c.ChallengeACK = ext["TCPChallengeACK"]
		}
	}
	return c, nil
}

var errTable = errors.New("a table of /proc that makes no sense")

// parseStat sums /proc/net/stat/nf_conntrack over the CPUs: a line of names,
// and one of hexadecimal numbers for each CPU. Kernels differ in the columns.
func parseStat(b []byte, c *Counters) error {
	head, rest, _ := bytes.Cut(b, []byte{'\n'})
	names := strings.Fields(string(head))
	to := map[string]*uint64{
		"invalid": &c.Invalid, "insert_failed": &c.InsertFailed, "drop": &c.Drop, "early_drop": &c.EarlyDrop,
	}
	found := false
	for _, n := range names {
		found = found || n == "invalid"
	}
	if !found {
		return fmt.Errorf("%w: no column invalid", errTable)
	}
	rows := 0
	for line := range bytes.Lines(rest) {
		values := strings.Fields(string(line))
		if len(values) == 0 {
			continue
		}
		if len(values) != len(names) {
			return fmt.Errorf("%w: %d values for %d names", errTable, len(values), len(names))
		}
		for i, v := range values {
			n, err := strconv.ParseUint(v, 16, 64)
			if err != nil {
				return fmt.Errorf("%w: %q", errTable, v)
			}
			if p := to[names[i]]; p != nil {
				*p += n
			}
		}
		rows++
	}
	if rows == 0 {
		return fmt.Errorf("%w: no CPU", errTable)
	}
	c.Tracked = true
	return nil
}

// parsePairs reads the two lines of a prefix in /proc/net/snmp or netstat: the
// names, then the numbers.
func parsePairs(b []byte, prefix string) (map[string]uint64, error) {
	var names []string
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != prefix {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if len(f) != len(names) {
			return nil, fmt.Errorf("%w: %d values for %d names of %s", errTable, len(f), len(names), prefix)
		}
		all := map[string]uint64{}
		for i := 1; i < len(f); i++ {
			if strings.HasPrefix(f[i], "-") { // MaxConn is -1
				continue
			}
			n, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%w: %q", errTable, f[i])
			}
			all[names[i]] = n
		}
		return all, nil
	}
	return nil, fmt.Errorf("%w: no %s", errTable, prefix)
}

// Release is the version of a kernel, as 6.1.
type Release struct{ Major, Minor int }

// ParseRelease reads 5.10.0-28-amd64, 6.18.44 and the like.
func ParseRelease(s string) (r Release, ok bool) {
	n, err := fmt.Sscanf(s, "%d.%d", &r.Major, &r.Minor)
	return r, err == nil && n == 2 && r.Major >= 0 && r.Minor >= 0
}

// Before orders releases.
func (r Release) Before(o Release) bool {
	return r.Major < o.Major || r.Major == o.Major && r.Minor < o.Minor
}
