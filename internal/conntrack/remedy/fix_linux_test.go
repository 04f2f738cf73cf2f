// SPDX-License-Identifier: Apache-2.0

package remedy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/durable"
)

// bench is a fixer of a made-up machine: its files are real, its programs are
// not. The lab has the real nft.
type bench struct {
	fixer
	table string   // as nft lists it
	calls []string // of programs
	fail  string   // the call that fails

	enabled bool // the unit
}

func newBench(t *testing.T, files map[string]string) *bench {
	t.Helper()
	all := map[string]string{
		"proc/sys/kernel/random/boot_id":                     "boot-1\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal": "0\n",
		"etc/sysctl.d/10-other.conf":                         "net.ipv4.ip_forward = 1\n",
	}
	for name, text := range files {
		all[name] = text
	}
	root := t.TempDir()
	for name, text := range all {
		write(t, filepath.Join(root, name), []byte(text))
	}
	for _, dir := range []string{"etc/modules-load.d", "etc/systemd/system", "var/lib", "proc/thread-self/ns", "proc/self/ns"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{fixer: fixer{machine: host.Host{Root: root, IsRoot: true}, disk: osDisk{}, systemd: true, isMachines: true}}
	b.enter(t, "net:[1]")
	if err := os.Symlink(host.FirstPIDs, filepath.Join(root, "proc/self/ns/pid")); err != nil {
		t.Fatal(err)
	}
	b.find = func(name string) (string, error) { return "/usr/sbin/" + name, nil }
	b.run = func(_ context.Context, in []byte, path string, args ...string) ([]byte, error) {
		call := filepath.Base(path) + " " + strings.Join(args, " ")
		b.calls = append(b.calls, call)
		switch {
		case b.fail != "" && strings.HasPrefix(call, b.fail):
			return nil, errors.New("it failed")
		case call == "nft list tables" && b.table != "":
			return []byte("table ip nat\ntable inet rpush\n"), nil
		case strings.HasPrefix(call, "nft -s list table"):
			return []byte(b.table), nil
		case call == "nft -f -":
			b.table = listing(string(in))
		case strings.HasPrefix(call, "systemctl enable"):
			b.enabled = true
		case strings.HasPrefix(call, "systemctl disable"):
			b.enabled = false
		case strings.HasPrefix(call, "nft delete"):
			b.table = ""
		}
		return nil, nil
	}
	return b
}

// listing is how nft lists the table that a script makes.
func listing(script string) string {
	at := strings.LastIndex(script, "table inet "+rules.OwnTable+" {")
	if at < 0 {
		return script
	}
	return script[at:]
}

// reboot keeps the files, and does at the start what they say.
func (b *bench) reboot(t *testing.T) {
	t.Helper()
	write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-2\n"))
	value := "0\n"
	if b.machine.Exists(sysctlFile) {
		value = "1\n"
	}
	write(t, filepath.Join(b.machine.Root, "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"), []byte(value))
	b.table = ""
	if script, err := os.ReadFile(filepath.Join(b.machine.Root, dropFile)); err == nil && b.enabled && b.machine.Exists(unitFile) {
		b.table = listing(string(script))
	}
}

// enter goes to another network namespace.
func (b *bench) enter(t *testing.T, netns string) {
	t.Helper()
	link := filepath.Join(b.machine.Root, "proc/thread-self/ns/net")
	_ = os.Remove(link)
	if err := os.Symlink(netns, link); err != nil {
		t.Fatal(err)
	}
}

// tree is every file and directory below a root, with what is in it.
func (b *bench) tree(t *testing.T) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(b.machine.Root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			text, _ := os.ReadFile(path)
			name, _ := filepath.Rel(b.machine.Root, path)
			all = append(all, name+": "+string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func (b *bench) fix(t *testing.T, remedy Kind, persist bool, ports ...int) *Plan {
	t.Helper()
	var ranges []rules.PortRange
	for _, p := range ports {
		ranges = append(ranges, rules.PortRange{First: p, Last: p})
	}
	p, err := b.plan(t.Context(), remedy, ranges, persist)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func apply(t *testing.T, p *Plan) {
	t.Helper()
	if err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) takeBack(t *testing.T) *Plan {
	t.Helper()
	p, err := b.undo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	apply(t, p)
	return p
}

func TestFixAndUndo(t *testing.T) {
	for _, remedy := range []Kind{Drop, Liberal} {
		for _, persist := range []bool{false, true} {
			b := newBench(t, nil)
			before := b.tree(t)
			p := b.fix(t, remedy, persist, 5000)
			if got := b.tree(t); got != before || len(p.Steps) == 0 {
				t.Errorf("%s: planning changed something:\n%s", remedy, got)
			}
			apply(t, p)
			after := b.tree(t)
			if again := b.fix(t, remedy, persist, 5000); len(again.Steps) != 0 {
				t.Errorf("%s, %t: a second time there are steps: %+v", remedy, persist, again.Steps)
			}
			if persist != strings.Contains(after, "--persist") {
				t.Errorf("%s, %t: got\n%s", remedy, persist, after)
			}
			if enabled := slices.Contains(b.calls, "systemctl enable rpush-conntrack.service"); enabled != (persist && remedy == Drop) {
				t.Errorf("%s, %t: systemctl: %v", remedy, persist, b.calls)
			}
			if p := b.takeBack(t); len(p.Refused) != 0 {
				t.Errorf("%s: refused %q", remedy, p.Refused)
			}
			if got := b.tree(t); got != before || b.table != "" {
				t.Errorf("%s, %t: after undo\n%s\n%s\nwant\n%s", remedy, persist, got, b.table, before)
			}
			if p := b.takeBack(t); len(p.Steps) != 0 {
				t.Errorf("a second undo has steps: %+v", p.Steps)
			}
		}
	}
}

// killed is what an operation panics with when rpush doctor is killed there.
type killed struct{}

// cutDisk is a disk, and programs, of an rpush doctor that is killed before
// operation number at. It also checks that nothing is changed as long as the
// record of it could be lost with the power.
type cutDisk struct {
	osDisk
	t      *testing.T
	record string // its path
	at, n  int
	// loose has the directories in which names changed since their last sync.
	loose map[string]bool
}

func (d *cutDisk) step() bool {
	d.n++
	return d.n == d.at
}

func (d *cutDisk) operation() {
	if d.step() {
		panic(killed{})
	}
}

// change is an operation that the record has to be safe before.
func (d *cutDisk) change(name string) {
	d.operation()
	if d.loose[filepath.Dir(d.record)] && filepath.Dir(name) != filepath.Dir(d.record) {
		d.t.Errorf("%s is changed before its record is durable", name)
	}
}

func (d *cutDisk) MkdirAll(dir string, mode fs.FileMode) error {
	d.operation()
	return d.osDisk.MkdirAll(dir, mode)
}

func (d *cutDisk) Write(name string, b []byte, mode fs.FileMode) error {
	if d.step() {
		write(d.t, name, b[:len(b)/2])
		panic(killed{})
	}
	return os.WriteFile(name, b, mode)
}

func (d *cutDisk) Rename(from, to string) error {
	d.change(to)
	d.loose[filepath.Dir(to)] = true
	return d.osDisk.Rename(from, to)
}

func (d *cutDisk) Remove(name string) error {
	d.operation()
	return d.osDisk.Remove(name)
}

func (d *cutDisk) SyncDir(dir string) error {
	d.operation()
	delete(d.loose, dir)
	return nil
}

func (d *cutDisk) Set(name string, v int64) error {
	d.change(name)
	return d.osDisk.Set(name, v)
}

// killAt runs do with a bench that is killed before operation number at, and
// reports whether do ended before that.
func (b *bench) killAt(t *testing.T, at int, do func()) (ended bool) {
	t.Helper()
	d := &cutDisk{t: t, record: filepath.Join(b.machine.Root, recordFile), at: at, loose: map[string]bool{}}
	disk, run := b.disk, b.run
	defer func() {
		b.disk, b.run = disk, run
		if r := recover(); r != nil && r != (killed{}) {
			panic(r)
		}
	}()
	b.disk = d
	b.run = func(ctx context.Context, in []byte, path string, args ...string) ([]byte, error) {
		d.change(path)
		return run(ctx, in, path, args...)
	}
	do()
	return true
}

// TestKilledAndUndone kills a fix, or an undo, before each of its operations, and
// undoes it in a new process. The machine is then as before the fix, and as it
// would be if it had rebooted.
func TestKilledAndUndone(t *testing.T) {
	const never, first, later = "never", "before undo", "before the second undo"
	for _, remedy := range []Kind{Drop, Liberal} {
		for _, kill := range []string{"fix", "grown fix", "undo"} {
			for _, persist := range []bool{false, true} {
				for _, reboot := range []string{never, first, later} {
					if kill != "undo" && reboot == later || testing.Short() && reboot != never && !persist {
						continue // an undo that is not killed leaves nothing for a second
					}
					name := fmt.Sprintf("%s, persist %t, %s killed, reboot %s", remedy, persist, kill, reboot)
					for at, ended := 1, false; !ended; at++ {
						b := newBench(t, nil)
						b.disk = &cutDisk{t: t, loose: map[string]bool{}} // never cut, and does not wait for a real disk
						if reboot != never {
							b.reboot(t) // for the tree
						}
						before := b.tree(t)
						write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-1\n"))
						if kill != "fix" {
							apply(t, b.fix(t, remedy, persist, 5000))
						}
						if kill == "undo" {
							if reboot == first {
								b.reboot(t)
							}
							ended = b.killAt(t, at, func() { b.takeBack(t) })
						} else {
							ended = b.killAt(t, at, func() { apply(t, b.fix(t, remedy, persist, 5001)) })
							if reboot == first {
								b.reboot(t)
							}
						}
						if reboot == later {
							b.reboot(t)
						}
						for range 2 { // undo itself may be run again
							if p := b.takeBack(t); len(p.Refused) != 0 {
								t.Errorf("%s before operation %d: undo refused %q", name, at, p.Refused)
							}
						}
						if got := b.tree(t); got != before || b.table != "" || b.enabled {
							t.Fatalf("%s before operation %d: undo left (enabled %t)\n%s\n%s\nwant\n%s", name, at, b.enabled, got, b.table, before)
						}
						if ended && remedy == Drop && kill == "fix" && at < 10 {
							t.Errorf("%s: only %d operations", name, at-1)
						}
					}
				}
			}
		}
	}
}

// TestKilledAndRunAgain kills a fix before each of its operations, and runs it
// again in a new process. It is then as complete as one that was not killed, and
// can be undone.
func TestKilledAndRunAgain(t *testing.T) {
	// state is all but the record, which says how it came about, and what a kill
	// left of a new record.
	state := func(b *bench) string {
		record := filepath.Join(b.machine.Root, recordFile)
		for _, path := range []string{record, durable.TempName(record)} {
			if err := (osDisk{}).Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		return fmt.Sprintf("%s\n%s\nenabled: %t", b.tree(t), b.table, b.enabled)
	}
	for _, tt := range []struct {
		remedy Kind
		grown  bool
	}{{Drop, false}, {Drop, true}, {Liberal, false}} {
		name := fmt.Sprintf("%s, grown %t", tt.remedy, tt.grown)
		begin := func() *bench {
			b := newBench(t, nil)
			b.disk = &cutDisk{t: t, loose: map[string]bool{}}
			if tt.grown {
				apply(t, b.fix(t, tt.remedy, true, 5000))
			}
			return b
		}
		before := newBench(t, nil).tree(t)
		done := begin()
		apply(t, done.fix(t, tt.remedy, true, 5001))
		want := state(done)
		for at, ended := 1, false; !ended; at++ {
			b := begin()
			ended = b.killAt(t, at, func() { apply(t, b.fix(t, tt.remedy, true, 5001)) })
			apply(t, b.fix(t, tt.remedy, true, 5001))
			if p := b.fix(t, tt.remedy, true, 5001); len(p.Steps) != 0 {
				t.Errorf("%s, killed before operation %d: a third time there are steps: %+v", name, at, p.Steps)
			}
			record, err := os.ReadFile(filepath.Join(b.machine.Root, recordFile))
			if err != nil {
				t.Fatal(err)
			}
			if got := state(b); got != want {
				t.Fatalf("%s, killed before operation %d and run again: got\n%s\nwant\n%s", name, at, got, want)
			}
			write(t, filepath.Join(b.machine.Root, recordFile), record)
			if p := b.takeBack(t); len(p.Refused) != 0 || b.tree(t) != before || b.table != "" || b.enabled {
				t.Fatalf("%s, killed before operation %d: undo refused %q, and left (enabled %t)\n%s\n%s", name, at, p.Refused, b.enabled, b.tree(t), b.table)
			}
		}
	}
}

// TestUndoLeavesAForeignTable kills a fix before it makes its table. Then someone
// makes a table of the same name.
func TestUndoLeavesAForeignTable(t *testing.T) {
	b := newBench(t, nil)
	if err := b.save(&record{Version: recordVersion, Drop: &dropRecord{Ports: []rules.PortRange{{First: 5000, Last: 5000}}, Netns: b.netns(), Boot: b.boot()}}); err != nil {
		t.Fatal(err)
	}
	for _, theirs := range []string{
		"table inet rpush {\n\tchain mine {\n\t}\n}\n",
		strings.Replace(listing(dropScript([]rules.PortRange{{First: 5000, Last: 5000}})), "\t}\n", "\t\tudp dport 53 accept\n\t}\n", 1),
	} {
		b.table = theirs
		if p := b.takeBack(t); len(p.Refused) != 1 || b.table != theirs {
			t.Errorf("refused %q, and left %q of\n%s", p.Refused, b.table, theirs)
		}
	}
}

// TestFixKilledBeforeAFileIsReplaced stands for a kill between the record and
// the file: the record has the new hash, the file the old content.
func TestFixKilledBeforeAFileIsReplaced(t *testing.T) {
	b := newBench(t, nil)
	before := b.tree(t)
	apply(t, b.fix(t, Drop, true, 5000))
	at := filepath.Join(b.machine.Root, dropFile)
	old, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, b.fix(t, Drop, true, 5001))
	write(t, at, old)
	if p := b.takeBack(t); len(p.Refused) != 0 {
		t.Errorf("undo refused %q", p.Refused)
	}
	if got := b.tree(t); got != before {
		t.Errorf("undo left\n%s\nwant\n%s", got, before)
	}
}

// Persisting what is in place, another port, and both remedies at once.
func TestFixGrows(t *testing.T) {
	b := newBench(t, nil)
	before := b.tree(t)
	apply(t, b.fix(t, Drop, false, 5000))
	apply(t, b.fix(t, Drop, false, 5001))
	if !strings.Contains(b.table, "tcp dport { 5000, 5001 } ct state invalid") {
		t.Errorf("got %s", b.table)
	}
	if p := b.fix(t, Drop, true, 5001); len(p.Steps) != 3 {
		t.Errorf("to persist: got %+v", p.Steps)
	} else {
		apply(t, p)
	}
	apply(t, b.fix(t, Liberal, true))
	b.takeBack(t)
	if got := b.tree(t); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
}

func TestUndoRefuses(t *testing.T) {
	at := func(b *bench, path string) string { return filepath.Join(b.machine.Root, path) }
	for _, c := range []struct {
		name   string
		remedy Kind
		edit   func(*bench)
		left   string // what must still be there
	}{
		{"a file that was edited", Liberal, func(b *bench) { write(t, at(b, sysctlFile), []byte("mine")) }, "mine"},
		{"a setting that was changed", Liberal, func(b *bench) {
			write(t, at(b, "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"), []byte("2"))
		}, "be_liberal: 2"},
		{"a table that was edited", Drop, func(b *bench) { b.table += "# more" }, ""},
	} {
		b := newBench(t, nil)
		apply(t, b.fix(t, c.remedy, true, 5000))
		c.edit(b)
		p := b.takeBack(t)
		if len(p.Refused) != 1 || !strings.Contains(b.tree(t), c.left) || c.remedy == Drop && b.table == "" {
			t.Errorf("%s: got %q\n%s", c.name, p.Refused, b.tree(t))
		}
		// It is remembered until it can be taken back.
		if !b.machine.Exists(recordFile) {
			t.Errorf("%s: the record is gone", c.name)
		}
	}
}

// What was set back, deleted or lost in a reboot by somebody else is forgotten.
func TestUndoOfWhatIsGone(t *testing.T) {
	b := newBench(t, nil)
	before := b.tree(t)
	apply(t, b.fix(t, Drop, true, 5000))
	b.table = ""
	for _, f := range []string{dropFile, unitFile} {
		if err := os.Remove(filepath.Join(b.machine.Root, f)); err != nil {
			t.Fatal(err)
		}
	}
	b.takeBack(t)
	if got := b.tree(t); got != before {
		t.Errorf("got\n%s", got)
	}

	b = newBench(t, nil)
	apply(t, b.fix(t, Liberal, false))
	write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-2"))
	b.takeBack(t) // 1 is somebody else's now
	if v, _ := b.machine.ReadNumber("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"); v != 1 {
		t.Errorf("a setting of after the reboot was changed to %d", v)
	}
}

func TestFixFails(t *testing.T) {
	b := newBench(t, nil)
	b.fail = "nft -f"
	before := b.tree(t)
	if err := b.fix(t, Drop, true, 5000).Apply(t.Context()); err == nil {
		t.Error("a failure was not reported")
	}
	if got := b.tree(t); got != before {
		t.Errorf("something is left:\n%s", got)
	}
	// Half done is taken back.
	b.fail = "systemctl enable"
	if err := b.fix(t, Drop, true, 5000).Apply(t.Context()); err == nil {
		t.Error("a failure was not reported")
	}
	b.fail = ""
	b.takeBack(t)
	if got := b.tree(t); got != before || b.table != "" {
		t.Errorf("something is left:\n%s\n%s", got, b.table)
	}
}

func TestFixRefuses(t *testing.T) {
	one := []rules.PortRange{{First: 5000, Last: 5000}}
	for _, c := range []struct {
		name    string
		change  func(*bench)
		remedy  Kind
		ports   []rules.PortRange
		persist bool
		want    error
	}{
		{"no port", nil, Drop, nil, false, ErrNoPorts},
		{"a table that is not ours", func(b *bench) { b.table = "theirs" }, Drop, one, false, ErrForeign},
		{"no systemd", func(b *bench) { b.systemd = false }, Drop, one, true, ErrNoPersist},
		{"a namespace", func(b *bench) { b.isMachines = false }, Liberal, one, true, ErrNamespace},
		{"a torn record", func(b *bench) { write(t, filepath.Join(b.machine.Root, recordFile), []byte("{")) }, Liberal, one, false, ErrRecord},
		{"a record of the future", func(b *bench) { write(t, filepath.Join(b.machine.Root, recordFile), []byte(`{"version":2}`)) }, Liberal, one, false, ErrRecord},
		{"a record that names others' files", func(b *bench) {
			write(t, filepath.Join(b.machine.Root, recordFile), []byte(`{"version":1,"files":[{"path":"etc/passwd"}]}`))
		}, Liberal, one, false, ErrRecord},
		{"a record that names others' settings", func(b *bench) {
			write(t, filepath.Join(b.machine.Root, recordFile), []byte(`{"version":1,"liberal":{"path":"proc/sysrq-trigger"}}`))
		}, Liberal, one, false, ErrRecord},
	} {
		b := newBench(t, nil)
		if c.change != nil {
			c.change(b)
		}
		if _, err := b.plan(t.Context(), c.remedy, c.ports, c.persist); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	// A file that somebody else wrote stays.
	b := newBench(t, map[string]string{sysctlFile: "theirs"})
	if p := b.fix(t, Liberal, true); len(p.Refused) != 1 {
		t.Errorf("got %+v", p)
	}
	b = newBench(t, map[string]string{"etc/ufw/sysctl.conf": "net/netfilter/nf_conntrack_tcp_be_liberal=0\n"})
	if p := b.fix(t, Liberal, true); !strings.Contains(strings.Join(p.Notes, "\n"), "/etc/ufw/sysctl.conf") {
		t.Errorf("a setting that overrules is not said: %q", p.Notes)
	}
}

// A second network namespace does not write over the record of the first.
func TestFixInAnotherNamespace(t *testing.T) {
	for _, remedy := range []Kind{Drop, Liberal} {
		b := newBench(t, nil)
		apply(t, b.fix(t, remedy, false, 5000))
		record := b.tree(t)
		b.enter(t, "net:[2]")
		b.table = ""
		one := []rules.PortRange{{First: 6000, Last: 6000}}
		if _, err := b.plan(t.Context(), remedy, one, false); !errors.Is(err, ErrOtherPlace) {
			t.Errorf("%s: got %v", remedy, err)
		}
		proc := func(pid, netns string) {
			dir := filepath.Join(b.machine.Root, "proc", pid)
			if err := errors.Join(os.MkdirAll(dir+"/ns", 0o755), os.MkdirAll(dir+"/fd", 0o755), os.Symlink(netns, dir+"/ns/net")); err != nil {
				t.Fatal(err)
			}
			write(t, dir+"/mountinfo", []byte("100 99 0:4 net:[7] /run/netns/x rw - nsfs nsfs rw\n"))
		}
		proc("41", "net:[2]")
		proc("42", "net:[1]")
		if p := b.takeBack(t); len(p.Refused) != 1 || len(p.Steps) != 0 {
			t.Errorf("%s: a namespace that is there: got %+v", remedy, p)
		}
		if b.gone("net:[7]") {
			t.Error("one that is mounted counts as gone")
		}
		// The first is gone, and can be forgotten.
		if err := os.RemoveAll(filepath.Join(b.machine.Root, "proc/42")); err != nil {
			t.Fatal(err)
		}
		if p := b.takeBack(t); len(p.Refused) != 0 || len(p.Steps) != 1 {
			t.Errorf("%s: a namespace that is gone: got %+v", remedy, p)
		}
		if b.machine.Exists(recordFile) {
			t.Errorf("%s: the record is left, was\n%s", remedy, record)
		}
		apply(t, b.fix(t, Drop, false, 6000))
		if strings.Contains(b.table, "5000") {
			t.Errorf("%s: got %s", remedy, b.table)
		}
	}
}

// The ports of a table that a reboot has taken are not made again.
func TestPortsOfAnEarlierBoot(t *testing.T) {
	b := newBench(t, nil)
	apply(t, b.fix(t, Drop, false, 5000))
	write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-2\n"))
	b.table = ""
	b.enter(t, "net:[2]") // the numbers begin again as well
	apply(t, b.fix(t, Drop, false, 6000))
	if !strings.Contains(b.table, "dport { 6000 }") {
		t.Errorf("got %s", b.table)
	}
}

// A second fix that fails leaves the first, and its record.
func TestFailedFixKeepsTheFirst(t *testing.T) {
	for _, fail := range []string{"nft -f -", "nft -s list"} {
		b := newBench(t, nil)
		before := b.tree(t)
		apply(t, b.fix(t, Drop, false, 5000))
		first := b.tree(t)
		p := b.fix(t, Drop, false, 5001)
		b.fail = fail
		if err := p.Apply(t.Context()); err == nil {
			t.Errorf("%s: it did not fail", fail)
		}
		b.fail = ""
		if got := b.tree(t); got != first {
			t.Errorf("%s: got\n%s\nwant\n%s", fail, got, first)
		}
		if p := b.fix(t, Drop, false, 5000); len(p.Steps) != 0 {
			t.Errorf("%s: the table is not as it was:\n%s", fail, b.table)
		}
		b.takeBack(t)
		if got := b.tree(t); got != before || b.table != "" {
			t.Errorf("%s: got\n%s\n%s", fail, got, b.table)
		}
	}
	// The first, when it cannot be listed.
	b := newBench(t, nil)
	before := b.tree(t)
	p := b.fix(t, Drop, false, 5000)
	b.fail = "nft -s list"
	b.calls = nil
	if err := p.Apply(t.Context()); err == nil || b.table != "" || b.tree(t) != before {
		t.Errorf("got %v\n%s\n%s", err, b.table, b.tree(t))
	}
}

// What is kept over a reboot is what is in place.
func TestPersistedFileStaysInStep(t *testing.T) {
	b := newBench(t, nil)
	before := b.tree(t)
	apply(t, b.fix(t, Drop, true, 5000))
	apply(t, b.fix(t, Drop, false, 5001))
	file, err := os.ReadFile(filepath.Join(b.machine.Root, dropFile))
	if err != nil || listing(string(file)) != b.table {
		t.Errorf("got %v\n%s\nwant\n%s", err, file, b.table)
	}
	write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-2\n"))
	if p := b.fix(t, Drop, false, 5000); len(p.Steps) != 0 {
		t.Errorf("after a reboot: got %+v", p.Steps)
	}
	b.takeBack(t)
	write(t, filepath.Join(b.machine.Root, "proc/sys/kernel/random/boot_id"), []byte("boot-1\n"))
	if got := b.tree(t); got != before || b.table != "" {
		t.Errorf("got\n%s\n%s", got, b.table)
	}
}

// Why the record cannot be read is told by type.
func TestRecordThatCannotBeRead(t *testing.T) {
	b := newBench(t, nil)
	if err := os.MkdirAll(filepath.Join(b.machine.Root, recordFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.undo(t.Context()); !errors.Is(err, ErrRecord) || !errors.Is(err, unix.EISDIR) {
		t.Errorf("got %v", err)
	}
}

func TestApplyNeedsRoot(t *testing.T) {
	b := newBench(t, nil)
	b.machine.IsRoot = false
	before := b.tree(t)
	if err := b.fix(t, Liberal, false).Apply(t.Context()); !Forbidden(err) || b.tree(t) != before {
		t.Errorf("got %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"drop":{"ports":["5000","6000-6010"]},"files":[{"path":"etc/rpush/conntrack-drop.nft"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		for _, file := range r.Files {
			if !slices.Contains([]string{dropFile, unitFile, sysctlFile, modulesFile}, file.Path) {
				t.Errorf("it may write %q", file.Path)
			}
		}
	})
}

func TestDropScript(t *testing.T) {
	if got := dropScript([]rules.PortRange{{First: 5000, Last: 5010}}); !strings.Contains(got, "tcp dport { 5000-5010 } ct") {
		t.Errorf("got %s", got)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
