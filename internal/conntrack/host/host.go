// SPDX-License-Identifier: Apache-2.0

// Package host reads this machine: files of /proc and /etc, the settings and
// counters of conntrack, and what programs print. It changes nothing.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Host is a machine as its files show it.
type Host struct {
	// Root is where its file system begins: "/", or a directory in a test.
	Root   string
	IsRoot bool // this process runs as root
}

// ThisHost is the machine that this process runs on.
func ThisHost() Host { return Host{Root: "/", IsRoot: os.Geteuid() == 0} }

// ErrNotLinux is what changing or measuring a host comes to on other systems.
var ErrNotLinux = errors.New("not applicable here: look at the Linux host or VM that publishes the registry's port")

// maxFile bounds what is read of a file of /proc or /etc.
const maxFile = 4 << 20

// ReadFile reads a file below the root. A file of more than 4 MiB is an error.
func (h Host) ReadFile(path string) ([]byte, error) {
	f, err := os.Open(filepath.Join(h.Root, path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return b, err
}

// ReadNumber reads a file that holds one number, such as a sysctl.
func (h Host) ReadNumber(path string) (int64, error) {
	b, err := h.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
}

// Exists reports whether there is a file or directory below the root.
func (h Host) Exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.Root, path))
	return err == nil
}

// Reason is why a file could not be read, in short.
func Reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Path + ": " + p.Err.Error()
	}
	return err.Error()
}

// Where the settings of conntrack are.
const (
	Sysctls    = "proc/sys/net/netfilter/"
	OldSysctls = "proc/sys/net/ipv4/netfilter/ip_conntrack_" // kept by old kernels
)

// Sysctl reads nf_conntrack_NAME, or ip_conntrack_NAME on old kernels.
func (h Host) Sysctl(name string) (value int64, path string, err error) {
	path = Sysctls + "nf_conntrack_" + name
	value, err = h.ReadNumber(path)
	if errors.Is(err, fs.ErrNotExist) {
		if v, e := h.ReadNumber(OldSysctls + name); e == nil {
			return v, OldSysctls + name, nil
		}
	}
	return value, path, err
}

// HasConntrack is false if this network namespace has no conntrack, and so no NAT.
func (h Host) HasConntrack() bool {
	_, err := os.Stat(filepath.Join(h.Root, "proc/sys/net/netfilter"))
	_, old := os.Stat(filepath.Join(h.Root, "proc/sys/net/ipv4/netfilter"))
	return !errors.Is(err, fs.ErrNotExist) || !errors.Is(old, fs.ErrNotExist)
}

// FirstPIDs is the machine's own namespace of process ids.
const FirstPIDs = "pid:[4026531836]"

// Namespace is what is known of the network namespace of this process.
type Namespace struct {
	// IsMachines says that it is the machine's own, as far as can be told.
	IsMachines bool
	// Finding says how that was told.
	Finding string
	// Container is the kind of container that this process runs in, if any.
	Container string
}

// Namespace tells whether this is the machine's own network namespace.
func (h Host) Namespace() Namespace {
	var ns Namespace
	for _, f := range []struct{ file, kind string }{{".dockerenv", "Docker"}, {"run/.containerenv", "Podman"}} {
		if h.Exists(f.file) {
			ns.Container = f.kind
		}
	}
	if pids, err := os.Readlink(filepath.Join(h.Root, "proc/self/ns/pid")); err == nil && pids != FirstPIDs && ns.Container == "" {
		ns.Container = "unknown kind"
	}
	const apart = "a network namespace of its own: it says nothing of the machine's rules and settings"
	// The size of the table can be written in the first namespace only.
	if fi, err := os.Stat(filepath.Join(h.Root, Sysctls+"nf_conntrack_max")); err == nil {
		if ns.IsMachines = fi.Mode().Perm()&0o200 != 0; ns.IsMachines {
			ns.Finding = "the machine's own network namespace"
			return ns
		}
		ns.Finding = apart
	} else {
		self, err := os.Readlink(filepath.Join(h.Root, "proc/self/ns/net"))
		first, err1 := os.Readlink(filepath.Join(h.Root, "proc/1/ns/net"))
		switch {
		case err == nil && err1 == nil && self == first && ns.Container == "":
			ns.IsMachines, ns.Finding = true, "the machine's own network namespace"
			return ns
		case err == nil && err1 == nil && self != first:
			ns.Finding = apart
		case ns.Container == "":
			ns.IsMachines, ns.Finding = true, "no sign of a container"
			return ns
		default:
			ns.Finding = "whether this is the machine's own network namespace cannot be told"
		}
	}
	if ns.Container != "" {
		ns.Finding += ", in a container (" + ns.Container + ")"
	}
	return ns
}
