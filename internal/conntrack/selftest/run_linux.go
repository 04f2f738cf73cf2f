// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/stray"
)

const selfTestTime = 30 * time.Second

// Run rebuilds the incident. It calls this program again, with Command, in a network namespace of its own, which takes no privileges
// where the kernel lets users have one. Nothing is left of it.
func Run(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, selfTestTime)
	defer cancel()
	t, err := selfTest(ctx, false)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EPERM) {
		t, err = selfTest(ctx, true)
	}
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		t.Error = "this system gives users no network namespaces (" + err.Error() + "): run it as root"
	case err != nil:
		t.Error = err.Error()
	}
	return t
}

// selfTest runs the program, in a user namespace of its own if asked.
func selfTest(ctx context.Context, user bool) (t Result, err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", Command)
	cmd.Args[0] = os.Args[0]
	outside, err := os.Readlink(ownNetns)
	if err != nil {
		return t, err
	}
	cmd.Env = append(os.Environ(), outsideVariable+"="+outside)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if user {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	var out host.Output
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	// Pdeathsig is about the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if ctx.Err() != nil {
		return t, fmt.Errorf("the self-test did not end: %w", context.Cause(ctx))
	}
	if len(out.Bytes()) == 0 && err != nil {
		return t, err
	}
	if err := json.Unmarshal(out.Bytes(), &t); err != nil {
		return Result{}, fmt.Errorf("the self-test said nothing that can be read: %w", err)
	}
	return t, nil
}

const (
	ownNetns = "/proc/self/ns/net"
	// outsideVariable tells the self-test which network namespace it must not
	// be in.
	outsideVariable = "RPUSH_SELFTEST_OUTSIDE"
)

// Main is the self-test from within. It prints the result. Called by
// anybody but Run it fails: it would change the namespace that it is in.
func Main(ctx context.Context, out io.Writer) error {
	inside, err := os.Readlink(ownNetns)
	if outside := os.Getenv(outsideVariable); err != nil || outside == "" || outside == inside {
		return errors.New("the self-test is called by rpush doctor --selftest only")
	}
	var t Result
	if err := t.run(ctx); err != nil {
		t.Error = "the incident could not be rebuilt: " + err.Error()
	}
	return json.NewEncoder(out).Encode(t)
}

// The scene: client - host, which translates - registry.
const (
	scenePort = 5000
	sceneWait = 1500 * time.Millisecond
)

var (
	sceneClient   = netip.MustParsePrefix("10.77.1.2/24")
	sceneOuter    = netip.MustParsePrefix("10.77.1.1/24")
	sceneInner    = netip.MustParsePrefix("10.77.2.1/24")
	sceneRegistry = netip.MustParsePrefix("10.77.2.2/24")
)

func (t *Result) run(ctx context.Context) error {
	client, err := newSide()
	if err != nil {
		return err
	}
	defer client.close()
	registry, err := newSide()
	if err != nil {
		return err
	}
	defer registry.close()
	if err := connect(client, "up", sceneOuter, sceneClient); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	if err := connect(registry, "down", sceneInner, sceneRegistry); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	if err := translateScene(); err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	var ln net.Listener
	if err := registry.do(func() (err error) {
		ln, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", sceneRegistry.Addr(), scenePort))
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	before, err := host.ThisHost().Counters()
	if err != nil {
		return err
	}
	if t.Delayed, err = upload(ctx, client, ln, stray.Delayed); err != nil {
		return err
	}
	if t.Beyond, err = upload(ctx, client, ln, stray.Beyond); err != nil {
		return err
	}
	after, err := host.ThisHost().Counters()
	d := after.Since(before)
	t.Invalid, t.OutRsts = d.Invalid, d.OutRsts
	return err
}

// upload sends until it is reset, or has survived its stray segments for long
// enough.
func upload(ctx context.Context, client *side, ln net.Listener, kind stray.Kind) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	injected := make(chan error, 1)
	go func() {
		injected <- client.do(func() error {
			n, err := stray.Strays{Interface: "up1", Port: scenePort, Kind: kind, After: 1 << 20, Count: 3, Connections: 1}.Run(ctx)
			if err == nil && n == 0 {
				err = errors.New("no segment was sent")
			}
			return err
		})
	}()
	var received atomic.Int64
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(counting{&received}, c)
	}()
	var c net.Conn
	if err := client.do(func() (err error) {
		c, err = net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", sceneOuter.Addr(), scenePort), 5*time.Second)
		return err
	}); err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	piece := make([]byte, 64<<10)
	var sent time.Time // the strays
	var held int64     // by the registry then
	for {
		_, err := c.Write(piece)
		switch {
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			return WasReset, nil
		case err != nil:
			return "", err
		case !sent.IsZero() && time.Since(sent) > sceneWait && received.Load() > held:
			return Survived, nil
		case sent.IsZero():
			select {
			case err := <-injected:
				if err != nil {
					return "", err
				}
				sent, held = time.Now(), received.Load()
			default:
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
}

type counting struct{ n *atomic.Int64 }

func (c counting) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// side is a network namespace.
type side struct{ fd int }

func newSide() (*side, error) {
	s := &side{}
	ready := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- err
	}()
	return s, <-ready
}

// do runs f in the namespace, on a thread that ends with it.
func (s *side) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *side) close() { unix.Close(s.fd) }

// connect joins this namespace and another by a pair of interfaces, name0 here
// and name1 there.
func connect(s *side, name string, here, there netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name + "1"}
	pair.Name = name + "0"
	pair.PeerNamespace = netlink.NsFd(s.fd)
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("interfaces: %w", err)
	}
	if err := address(pair.Name, here); err != nil {
		return err
	}
	return s.do(func() error {
		if err := address(pair.PeerName, there); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: here.Addr().AsSlice()})
	})
}

func address(name string, a netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// translateScene sends the port on to the registry.
func translateScene() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	port := binaryutil.BigEndian.PutUint16(scenePort)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: port},
		&expr.Immediate{Register: 1, Data: sceneRegistry.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: port},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}})
	return c.Flush()
}
