// SPDX-License-Identifier: Apache-2.0

package remedy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/durable"
)

// fixer changes a machine; tests have one with another root.
type fixer struct {
	machine    host.Host
	disk       disk
	run        host.Program
	find       func(name string) (string, error)
	systemd    bool
	isMachines bool // the machine's own network namespace
}

func thisFixer() *fixer {
	m := host.ThisHost()
	return &fixer{machine: m, disk: osDisk{}, run: host.Run, find: host.LookPath, systemd: m.Exists("run/systemd/system"), isMachines: m.Namespace().IsMachines}
}

// PlanFix says what a remedy takes on this machine. Without anything left to
// do the plan has no steps.
func PlanFix(ctx context.Context, remedy Kind, ports []rules.PortRange, persist bool) (*Plan, error) {
	return thisFixer().plan(ctx, remedy, ports, persist)
}

// PlanUndo says what takes back all that was done.
func PlanUndo(ctx context.Context) (*Plan, error) { return thisFixer().undo(ctx) }

func (f *fixer) plan(ctx context.Context, remedy Kind, ports []rules.PortRange, persist bool) (*Plan, error) {
	rec, err := f.load()
	if err != nil {
		return nil, err
	}
	if persist && !f.isMachines {
		return nil, ErrNamespace
	}
	switch {
	case remedy == Drop && rec.Drop != nil:
		err = f.samePlace(rec.Drop.Netns, rec.Drop.Boot)
	case remedy == Liberal && rec.Liberal != nil:
		err = f.samePlace(rec.Liberal.Netns, rec.Liberal.Boot)
	}
	if err != nil { // there is room for one record
		return nil, fmt.Errorf("%w: take it back there first, by --undo --apply", err)
	}
	p := &Plan{Steps: []Step{}, Notes: []string{}, forbidden: !f.machine.IsRoot}
	switch remedy {
	case Drop:
		err = f.planDrop(ctx, p, rec, ports, persist)
	case Liberal:
		err = f.planLiberal(p, rec, persist)
	default:
		err = fmt.Errorf("%q is no remedy", remedy)
	}
	return p, err
}

// samePlace refuses what was done in another network namespace. One that is
// gone is another as well: undo forgets it.
func (f *fixer) samePlace(netns, boot string) error {
	if netns != f.netns() && boot == f.boot() {
		return fmt.Errorf("%w (%s)", ErrOtherPlace, netns)
	}
	return nil
}

// gone reports that a network namespace has ended: no process is in it or holds
// it open, and none has it mounted. Where not all could be seen it is not gone.
func (f *fixer) gone(netns string) bool {
	if self, err := os.Readlink(filepath.Join(f.machine.Root, "proc/self/ns/pid")); err != nil || self != host.FirstPIDs {
		return false
	}
	all, err := filepath.Glob(filepath.Join(f.machine.Root, "proc/[0-9]*"))
	if err != nil || len(all) == 0 {
		return false
	}
	ended := func(err error) bool {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
	}
	for _, dir := range all {
		tasks, err := filepath.Glob(filepath.Join(dir, "task/[0-9]*"))
		if err != nil {
			return false
		}
		for _, task := range append(tasks, dir) {
			if ns, err := os.Readlink(filepath.Join(task, "ns/net")); ns == netns || err != nil && !ended(err) {
				return false
			}
		}
		if b, err := os.ReadFile(filepath.Join(dir, "mountinfo")); bytes.Contains(b, []byte(" "+netns+" ")) || err != nil && !ended(err) {
			return false
		}
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil && !ended(err) {
			return false
		}
		for _, file := range files {
			if to, err := os.Readlink(filepath.Join(dir, "fd", file.Name())); to == netns || err != nil && !ended(err) {
				return false
			}
		}
	}
	return true
}

func (f *fixer) planDrop(ctx context.Context, p *Plan, rec *record, ports []rules.PortRange, persist bool) error {
	if len(ports) == 0 {
		return ErrNoPorts
	}
	nft, err := f.find("nft")
	if err != nil {
		return fmt.Errorf("%w: install nftables, or take --fix=liberal", err)
	}
	live, err := f.table(ctx, nft)
	switch {
	case err != nil && !f.machine.IsRoot:
		p.Notes = append(p.Notes, "whether it is in place already can be read by root only")
	case err != nil:
		return err
	}
	kept := f.isMachines && f.machine.Exists(dropFile) && slices.ContainsFunc(rec.Files, func(r *fileRecord) bool { return r.Path == dropFile })
	if rec.Drop != nil && (live != "" || kept) {
		ports = rules.Union(rec.Drop.Ports, ports)
	}
	switch {
	case live == "":
	case rec.Drop == nil:
		return ErrForeign
	case !rec.Drop.isOurs(live, f.boot()):
		return fmt.Errorf("table inet %s: %w", rules.OwnTable, ErrEdited)
	}
	script, was := dropScript(ports), live
	if live == "" || live != rec.Drop.Table || !slices.Equal(ports, rec.Drop.Ports) {
		p.Steps = append(p.Steps, Step{
			What:    fmt.Sprintf("drop INVALID packets for port %s of this host, in a table of its own", rules.JoinPorts(ports)),
			Command: "nft -f - <<'EOF'\n" + script + "EOF",
			do: func(ctx context.Context) error {
				before := rec.Drop
				rec.Drop = &dropRecord{Ports: ports, Netns: f.netns(), Boot: f.boot()}
				if err := f.save(rec); err != nil {
					return err
				}
				if _, err := f.run(ctx, []byte(script), nft, "-f", "-"); err != nil {
					rec.Drop = before // nft does all of a script or nothing
					return errors.Join(err, f.save(rec))
				}
				live, err := f.table(ctx, nft)
				if err != nil { // without its listing it could not be taken back
					return errors.Join(err, f.backTo(ctx, nft, rec, before, was != ""))
				}
				rec.Drop.Table = live
				return f.save(rec)
			},
		})
	}
	if persist || kept { // what is kept over a reboot stays in step
		if !f.systemd {
			return fmt.Errorf("%w: it is not run by systemd; have the script above run at boot", ErrNoPersist)
		}
		f.file(p, rec, dropFile, script)
		f.file(p, rec, unitFile, unit(nft))
		f.enable(p, rec)
	}
	return nil
}

// backTo has the table as it was before a fix, or deletes it.
func (f *fixer) backTo(ctx context.Context, nft string, rec *record, before *dropRecord, was bool) error {
	var err error
	if was {
		_, err = f.run(ctx, []byte(dropScript(before.Ports)), nft, "-f", "-")
	} else {
		_, err = f.run(ctx, nil, nft, "delete", "table", "inet", rules.OwnTable)
	}
	if err != nil {
		return err // the record says that it was cut off
	}
	rec.Drop = before
	return f.save(rec)
}

// table lists our table, empty if there is none.
func (f *fixer) table(ctx context.Context, nft string) (string, error) {
	all, err := f.run(ctx, nil, nft, "list", "tables")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(all)) {
		if strings.TrimSpace(line) == "table inet "+rules.OwnTable {
			b, err := f.run(ctx, nil, nft, "-s", "list", "table", "inet", rules.OwnTable)
			return string(b), err
		}
	}
	return "", nil
}

// file plans to write one, unless it is there.
func (f *fixer) file(p *Plan, rec *record, path, content string) {
	at := filepath.Join(f.machine.Root, path)
	old, err := os.ReadFile(at)
	known := slices.IndexFunc(rec.Files, func(r *fileRecord) bool { return r.Path == path })
	switch {
	case err == nil && string(old) == content && known >= 0:
		return
	case err == nil && (known < 0 || !rec.Files[known].isOurs(old)):
		p.Refused = append(p.Refused, fmt.Sprintf("/%s is there, and is not as rpush doctor wrote it: it is left alone", path))
		return
	}
	p.Steps = append(p.Steps, Step{
		What:    "write /" + path,
		Command: fmt.Sprintf("cat > /%s <<'EOF'\n%sEOF", path, content),
		do: func(context.Context) error {
			if known < 0 {
				rec.Files = append(rec.Files, &fileRecord{Path: path})
				known = len(rec.Files) - 1
			}
			r := rec.Files[known]
			r.SHA256, r.Previous = durable.Hash([]byte(content)), ""
			rec.UnitEnabled = rec.UnitEnabled && path != unitFile // systemd has to read it again
			if err == nil {
				r.Previous = durable.Hash(old)
			}
			if err := f.save(rec); err != nil {
				return err
			}
			return durable.Replace(f.disk, at, []byte(content), 0o644)
		},
	})
}

func (f *fixer) enable(p *Plan, rec *record) {
	if rec.UnitEnabled && len(p.Steps) == 0 {
		return
	}
	p.Steps = append(p.Steps, Step{
		What: "have systemd do it at every start", Command: "systemctl daemon-reload && systemctl enable " + unitName,
		do: func(ctx context.Context) error {
			rec.Unit = true
			if err := f.save(rec); err != nil {
				return err
			}
			if _, err := f.run(ctx, nil, "systemctl", "daemon-reload"); err != nil {
				return err
			}
			if _, err := f.run(ctx, nil, "systemctl", "enable", unitName); err != nil {
				return err
			}
			rec.UnitEnabled = true
			return f.save(rec)
		},
	})
}

func (f *fixer) planLiberal(p *Plan, rec *record, persist bool) error {
	now, path, err := f.machine.Sysctl("tcp_be_liberal")
	if err != nil {
		return errors.New(host.Reason(err))
	}
	switch {
	case now == 1 && rec.Liberal == nil:
		p.Notes = append(p.Notes, "it is 1 already, and not by rpush doctor: --undo will leave it so")
	case now != 1:
		p.Steps = append(p.Steps, Step{
			What: fmt.Sprintf("set %s, now %d, to 1", path[strings.LastIndexByte(path, '/')+1:], now), Command: setCommand(path, 1),
			do: func(context.Context) error {
				before := rec.Liberal
				rec.Liberal = &valueRecord{Path: path, Previous: now, Netns: f.netns(), Boot: f.boot()}
				if err := f.save(rec); err != nil {
					return err
				}
				if err := f.write(path, 1); err != nil {
					rec.Liberal = before
					return errors.Join(err, f.save(rec))
				}
				return nil
			},
		})
	}
	if persist {
		if !f.machine.Exists("etc/sysctl.d") {
			return fmt.Errorf("%w: there is no /etc/sysctl.d", ErrNoPersist)
		}
		p.Notes = append(p.Notes, f.overruled()...)
		f.file(p, rec, sysctlFile, sysctlConf)
		f.file(p, rec, modulesFile, modulesConf)
	}
	return nil
}

// overruled finds settings that are read after ours at boot.
func (f *fixer) overruled() []string {
	var files []string
	for _, pattern := range []string{"etc/sysctl.d/*.conf", "run/sysctl.d/*.conf", "usr/lib/sysctl.d/*.conf", "etc/sysctl.conf", "etc/ufw/sysctl.conf"} {
		found, _ := filepath.Glob(filepath.Join(f.machine.Root, pattern))
		files = append(files, found...)
	}
	var notes []string
	for _, file := range files {
		name, _ := filepath.Rel(f.machine.Root, file)
		if name == sysctlFile || strings.Contains(name, "sysctl.d/") && filepath.Base(name) < filepath.Base(sysctlFile) {
			continue
		}
		b, err := f.machine.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			text := strings.TrimSpace(string(line))
			if !strings.HasPrefix(text, "#") && strings.Contains(text, "tcp_be_liberal") && !strings.HasSuffix(strings.TrimSpace(text), "1") {
				notes = append(notes, fmt.Sprintf("/%s says %q, and is read after ours: change it there", name, text))
			}
		}
	}
	return notes
}

func setCommand(path string, v int64) string {
	return fmt.Sprintf("sysctl -w %s=%d", strings.ReplaceAll(strings.TrimPrefix(path, "proc/sys/"), "/", "."), v)
}

func (f *fixer) write(path string, v int64) error {
	return f.disk.Set(filepath.Join(f.machine.Root, path), v)
}

func (f *fixer) netns() string {
	ns, err := os.Readlink(filepath.Join(f.machine.Root, "proc/thread-self/ns/net"))
	if err != nil {
		return "unknown"
	}
	return ns
}

func (f *fixer) boot() string {
	b, err := f.machine.ReadFile("proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// Forbidden reports that privileges are missing.
func Forbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM)
}
