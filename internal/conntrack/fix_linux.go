package conntrack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// record is what was done, so that it can be taken back.
type record struct {
	Version int           `json:"version"`
	Drop    *dropRecord   `json:"drop,omitempty"`
	Liberal *valueRecord  `json:"liberal,omitempty"`
	Files   []*fileRecord `json:"files,omitempty"`
	Unit    bool          `json:"unit,omitempty"` // enabled
}

type dropRecord struct {
	Ports []PortRange `json:"ports"`
	Netns string      `json:"netns"`
	Boot  string      `json:"boot"`
	// Table is how nft lists it. It is empty from before the table is made until
	// it has been listed; see isOurs for a kill in between.
	Table string `json:"table"`
}

// isOurs reports whether live, a listing of nft, is the table as this record
// left it. If the table was not listed since it was made, by a fix that was
// killed or by the unit at another boot, its content has to show that rpush
// doctor made it: someone else may have made a table of this name since.
func (r *dropRecord) isOurs(live, boot string) bool {
	if live == r.Table {
		return true
	}
	if r.Table != "" && r.Boot == boot {
		return false
	}
	for line := range strings.Lines(live) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", line == "}", line == "chain input {", line == "table inet "+tableName+" {":
		case strings.HasPrefix(line, "type filter hook input "):
		case strings.HasPrefix(line, "tcp dport ") && strings.HasSuffix(line, ` drop comment "`+comment+`"`):
		default:
			return false
		}
	}
	return true
}

type valueRecord struct {
	Path     string `json:"path"`
	Previous int64  `json:"previous"`
	Netns    string `json:"netns"`
	Boot     string `json:"boot"`
}

type fileRecord struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	// Previous is the hash of what the file held before, in case rpush doctor is
	// killed before it replaces the file. Empty means that there was no file.
	Previous string `json:"previous,omitempty"`
}

// isOurs reports whether content is what rpush doctor wrote to the file.
func (r *fileRecord) isOurs(content []byte) bool {
	h := hash(content)
	return h == r.SHA256 || h == r.Previous
}

const recordVersion = 1

func (r *record) empty() bool {
	return r.Drop == nil && r.Liberal == nil && len(r.Files) == 0 && !r.Unit
}

// fixer changes a machine; tests have one with another root.
type fixer struct {
	m       *machine
	disk    disk
	run     program
	find    func(name string) (string, error)
	systemd bool
	host    bool // the machine's own network namespace
}

func thisFixer() *fixer {
	m := thisMachine()
	var r Report
	return &fixer{m: m, disk: osDisk{}, run: run, find: lookPath, systemd: m.exists("run/systemd/system"), host: m.namespace(&r).Verdict == Sound}
}

func (m *machine) exists(path string) bool {
	_, err := os.Stat(filepath.Join(m.root, path))
	return err == nil
}

// PlanFix says what a remedy takes on this machine. Without anything left to
// do the plan has no steps.
func PlanFix(ctx context.Context, remedy Remedy, r *Report, persist bool) (*Plan, error) {
	return thisFixer().plan(ctx, remedy, r, persist)
}

// PlanUndo says what takes back all that was done.
func PlanUndo(ctx context.Context) (*Plan, error) { return thisFixer().undo(ctx) }

func (f *fixer) plan(ctx context.Context, remedy Remedy, r *Report, persist bool) (*Plan, error) {
	rec, err := f.load()
	if err != nil {
		return nil, err
	}
	if persist && !f.host {
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
	p := &Plan{Steps: []Step{}, Notes: []string{}, forbidden: !f.m.root0}
	switch remedy {
	case Drop:
		err = f.planDrop(ctx, p, rec, r.Ports(), persist)
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
	if self, err := os.Readlink(filepath.Join(f.m.root, "proc/self/ns/pid")); err != nil || self != firstPIDs {
		return false
	}
	all, err := filepath.Glob(filepath.Join(f.m.root, "proc/[0-9]*"))
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

func (f *fixer) planDrop(ctx context.Context, p *Plan, rec *record, ports []PortRange, persist bool) error {
	if len(ports) == 0 {
		return ErrNoPorts
	}
	nft, err := f.find("nft")
	if err != nil {
		return fmt.Errorf("%w: install nftables, or take --fix=liberal", err)
	}
	live, err := f.table(ctx, nft)
	switch {
	case err != nil && !f.m.root0:
		p.Notes = append(p.Notes, "whether it is in place already can be read by root only")
	case err != nil:
		return err
	}
	kept := f.host && f.m.exists(dropFile) && slices.ContainsFunc(rec.Files, func(r *fileRecord) bool { return r.Path == dropFile })
	if rec.Drop != nil && (live != "" || kept) {
		ports = union(rec.Drop.Ports, ports)
	}
	switch {
	case live == "":
	case rec.Drop == nil:
		return ErrForeign
	case !rec.Drop.isOurs(live, f.boot()):
		return fmt.Errorf("table inet %s: %w", tableName, ErrEdited)
	}
	script, was := dropScript(ports), live
	if live == "" || live != rec.Drop.Table || !slices.Equal(ports, rec.Drop.Ports) {
		p.Steps = append(p.Steps, Step{
			What:    fmt.Sprintf("drop INVALID packets for port %s of this host, in a table of its own", joinPorts(ports)),
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
		_, err = f.run(ctx, nil, nft, "delete", "table", "inet", tableName)
	}
	if err != nil {
		return err // the record says that it was cut off
	}
	rec.Drop = before
	return f.save(rec)
}

// table lists our table, empty where there is none.
func (f *fixer) table(ctx context.Context, nft string) (string, error) {
	all, err := f.run(ctx, nil, nft, "list", "tables")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(all)) {
		if strings.TrimSpace(line) == "table inet "+tableName {
			b, err := f.run(ctx, nil, nft, "-s", "list", "table", "inet", tableName)
			return string(b), err
		}
	}
	return "", nil
}

// file plans to write one, unless it is there.
func (f *fixer) file(p *Plan, rec *record, path, content string) {
	at := filepath.Join(f.m.root, path)
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
			r.SHA256, r.Previous = hash([]byte(content)), ""
			if err == nil {
				r.Previous = hash(old)
			}
			if err := f.save(rec); err != nil {
				return err
			}
			return replace(f.disk, at, []byte(content), 0o644)
		},
	})
}

func (f *fixer) enable(p *Plan, rec *record) {
	if rec.Unit && len(p.Steps) == 0 {
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
			_, err := f.run(ctx, nil, "systemctl", "enable", unitName)
			return err
		},
	})
}

func (f *fixer) planLiberal(p *Plan, rec *record, persist bool) error {
	now, path, err := f.m.sysctl("tcp_be_liberal")
	if err != nil {
		return errors.New(readable(err))
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
		if !f.m.exists("etc/sysctl.d") {
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
		found, _ := filepath.Glob(filepath.Join(f.m.root, pattern))
		files = append(files, found...)
	}
	var notes []string
	for _, file := range files {
		name, _ := filepath.Rel(f.m.root, file)
		if name == sysctlFile || strings.Contains(name, "sysctl.d/") && filepath.Base(name) < filepath.Base(sysctlFile) {
			continue
		}
		b, err := readFile(f.m.root, name)
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
	return f.disk.Set(filepath.Join(f.m.root, path), v)
}

func (f *fixer) undo(ctx context.Context) (*Plan, error) {
	rec, err := f.load()
	if err != nil {
		return nil, err
	}
	p := &Plan{Steps: []Step{}, Notes: []string{}, forbidden: !f.m.root0, save: func() error { return f.save(rec) }}
	if rec.empty() {
		p.Notes = append(p.Notes, "nothing was done by rpush doctor on this machine, or all of it was taken back")
		return p, nil
	}
	if rec.Unit {
		p.Steps = append(p.Steps, Step{
			What: "have systemd forget it", Command: "systemctl disable " + unitName,
			do: func(ctx context.Context) error {
				if f.m.exists(unitFile) {
					if _, err := f.run(ctx, nil, "systemctl", "disable", unitName); err != nil {
						return err
					}
				}
				rec.Unit = false
				return f.save(rec)
			},
		})
	}
	for _, file := range slices.Clone(rec.Files) {
		f.undoFile(p, rec, file)
	}
	if rec.Unit {
		p.Steps = append(p.Steps, Step{What: "have systemd look again", Command: "systemctl daemon-reload", do: func(ctx context.Context) error {
			_, err := f.run(ctx, nil, "systemctl", "daemon-reload")
			return err
		}})
	}
	if rec.Drop != nil {
		if err := f.undoDrop(ctx, p, rec); err != nil {
			return nil, err
		}
	}
	if rec.Liberal != nil {
		f.undoLiberal(p, rec)
	}
	return p, nil
}

func (f *fixer) undoFile(p *Plan, rec *record, file *fileRecord) {
	at := filepath.Join(f.m.root, file.Path)
	b, err := os.ReadFile(at)
	forget := func() error {
		if err := f.disk.Remove(tempName(at)); err != nil { // a kill may have left it
			return err
		}
		if file.Path == dropFile {
			_ = f.disk.Remove(filepath.Dir(at)) // ours, if it is empty
		}
		if v := rec.Liberal; file.Path == sysctlFile && v != nil && v.Boot != f.boot() {
			// The file has set the value at this boot. Without the file only the
			// record tells the next undo so.
			v.Boot, v.Netns = f.boot(), f.netns()
		}
		rec.Files = slices.DeleteFunc(rec.Files, func(r *fileRecord) bool { return r == file })
		return f.save(rec)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Steps = append(p.Steps, Step{What: "forget /" + file.Path + ", which is gone", do: func(context.Context) error { return forget() }})
	case err != nil || !file.isOurs(b):
		p.Refused = append(p.Refused, fmt.Sprintf("/%s: %v: it is left alone", file.Path, ErrEdited))
	default:
		p.Steps = append(p.Steps, Step{What: "delete /" + file.Path, Command: "rm /" + file.Path, do: func(context.Context) error {
			if err := f.disk.Remove(at); err != nil {
				return err
			}
			if err := f.disk.SyncDir(filepath.Dir(at)); err != nil {
				return err
			}
			return forget()
		}})
	}
}

func (f *fixer) undoDrop(ctx context.Context, p *Plan, rec *record) error {
	if err := f.samePlace(rec.Drop.Netns, rec.Drop.Boot); err != nil {
		f.elsewhere(p, "table inet "+tableName, rec.Drop.Netns, err, func() error {
			rec.Drop = nil
			return f.save(rec)
		})
		return nil
	}
	nft, err := f.find("nft")
	if err != nil {
		return err
	}
	live, err := f.table(ctx, nft)
	if err != nil {
		return err
	}
	forget := func() error {
		rec.Drop = nil
		return f.save(rec)
	}
	switch {
	case live == "":
		p.Steps = append(p.Steps, Step{What: "forget the table, which is gone", do: func(context.Context) error { return forget() }})
	case rec.Drop.isOurs(live, f.boot()):
		command := []string{"delete", "table", "inet", tableName}
		p.Steps = append(p.Steps, Step{
			What: "delete the table inet " + tableName, Command: "nft " + strings.Join(command, " "),
			do: func(ctx context.Context) error {
				if _, err := f.run(ctx, nil, nft, command...); err != nil {
					return err
				}
				return forget()
			},
		})
	default:
		p.Refused = append(p.Refused, fmt.Sprintf("table inet %s: %v: it is left alone; nft delete table inet %[1]s would remove it", tableName, ErrEdited))
	}
	return nil
}

// elsewhere is what undo does with the record of another network namespace.
func (f *fixer) elsewhere(p *Plan, what, netns string, err error, forget func() error) {
	if f.gone(netns) {
		p.Steps = append(p.Steps, Step{
			What: fmt.Sprintf("forget %s of the network namespace %s, which is gone", what, netns),
			do:   func(context.Context) error { return forget() },
		})
		return
	}
	p.Refused = append(p.Refused, fmt.Sprintf("%s: %v", what, err))
}

func (f *fixer) undoLiberal(p *Plan, rec *record) {
	v := rec.Liberal
	name := v.Path[strings.LastIndexByte(v.Path, '/')+1:]
	forget := func(context.Context) error {
		rec.Liberal = nil
		return f.save(rec)
	}
	rebooted := v.Boot != f.boot()
	if err := f.samePlace(v.Netns, v.Boot); err != nil {
		f.elsewhere(p, name, v.Netns, err, func() error { return forget(context.Background()) })
		return
	}
	kept := slices.ContainsFunc(rec.Files, func(r *fileRecord) bool { return r.Path == sysctlFile })
	now, err := readNumber(f.m.root, v.Path)
	switch {
	case err != nil:
		p.Refused = append(p.Refused, name+": "+readable(err))
	case now == v.Previous:
		p.Steps = append(p.Steps, Step{What: fmt.Sprintf("forget %s, which is %d again", name, now), do: forget})
	case rebooted && !kept:
		p.Steps = append(p.Steps, Step{What: "forget " + name + ", which somebody else has set since the machine was started", do: forget})
	case now != 1:
		p.Refused = append(p.Refused, fmt.Sprintf("%s is %d: %v", name, now, ErrEdited))
	default:
		p.Steps = append(p.Steps, Step{
			What: fmt.Sprintf("set %s back to %d", name, v.Previous), Command: setCommand(v.Path, v.Previous),
			do: func(ctx context.Context) error {
				if err := f.write(v.Path, v.Previous); err != nil {
					return err
				}
				return forget(ctx)
			},
		})
	}
}

func (f *fixer) netns() string {
	ns, err := os.Readlink(filepath.Join(f.m.root, "proc/thread-self/ns/net"))
	if err != nil {
		return "unknown"
	}
	return ns
}

func (f *fixer) boot() string {
	b, err := readFile(f.m.root, "proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func (f *fixer) load() (*record, error) {
	b, err := readFile(f.m.root, recordFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &record{Version: recordVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return parseRecord(b)
}

// parseRecord refuses paths that a record of ours never has: what it names is
// written and deleted by root.
func parseRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: /%s: %w", ErrRecord, recordFile, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: /%s is of version %d", ErrRecord, recordFile, r.Version)
	}
	for _, f := range r.Files {
		if f == nil || !slices.Contains([]string{dropFile, unitFile, sysctlFile, modulesFile}, f.Path) {
			return nil, fmt.Errorf("%w: /%s names a file that is not ours", ErrRecord, recordFile)
		}
	}
	if r.Liberal != nil && r.Liberal.Path != sysctls+"nf_conntrack_tcp_be_liberal" && r.Liberal.Path != oldSysctls+"tcp_be_liberal" {
		return nil, fmt.Errorf("%w: /%s names a setting that is not ours", ErrRecord, recordFile)
	}
	return &r, nil
}

// save writes the record, or deletes it when nothing is left in it.
func (f *fixer) save(r *record) error {
	at := filepath.Join(f.m.root, recordFile)
	if r.empty() {
		for _, name := range []string{at, tempName(at)} { // a kill may have left the second
			if err := f.disk.Remove(name); err != nil {
				return err
			}
		}
		if err := f.disk.SyncDir(filepath.Dir(at)); err != nil {
			return err
		}
		_ = f.disk.Remove(filepath.Dir(at)) // ours, if it is empty
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := f.disk.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	return replace(f.disk, at, append(b, '\n'), 0o600)
}

// disk changes files, one operation per method. Tests stop between two.
type disk interface {
	MkdirAll(dir string, mode fs.FileMode) error
	// Write makes a file that is not there, and syncs it.
	Write(name string, b []byte, mode fs.FileMode) error
	Rename(from, to string) error
	// Remove is nil if there is no such file.
	Remove(name string) error
	// SyncDir makes the names in a directory durable. It is nil if there is no
	// such directory.
	SyncDir(dir string) error
	// Set writes a number to a sysctl.
	Set(name string, v int64) error
}

// tempName is where the new content of a file is written before the rename. It
// is always the same, so that undo finds what a kill left there. systemd reads
// no such name in the directories of its configuration.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// replace writes a file whole or not at all, and durably: a record must be on
// the disk before what it is about is changed.
func replace(d disk, path string, b []byte, mode fs.FileMode) error {
	dir, temp := filepath.Dir(path), tempName(path)
	if err := d.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := d.Remove(temp); err != nil {
		return err
	}
	err := d.Write(temp, b, mode)
	if err == nil {
		err = d.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	// The directory itself may be new.
	return errors.Join(d.SyncDir(dir), d.SyncDir(filepath.Dir(dir)))
}

type osDisk struct{}

func (osDisk) MkdirAll(dir string, mode fs.FileMode) error { return os.MkdirAll(dir, mode) }
func (osDisk) Rename(from, to string) error                { return os.Rename(from, to) }
func (osDisk) Remove(name string) error                    { return present(os.Remove(name)) }

func (osDisk) Write(name string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

func (osDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return present(err)
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) { // this file system cannot
		err = nil
	}
	return errors.Join(err, d.Close())
}

func (osDisk) Set(name string, v int64) error {
	return os.WriteFile(name, fmt.Appendf(nil, "%d\n", v), 0)
}

// present is err, but nil for what is not there.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Forbidden reports that privileges are missing.
func Forbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM)
}
