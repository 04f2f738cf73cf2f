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

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/durable"
)

func (f *fixer) undo(ctx context.Context) (*Plan, error) {
	rec, err := f.load()
	if err != nil {
		return nil, err
	}
	p := &Plan{Steps: []Step{}, Notes: []string{}, forbidden: !f.machine.IsRoot, save: func() error { return f.save(rec) }}
	if rec.empty() {
		p.Notes = append(p.Notes, "nothing was done by rpush doctor on this machine, or all of it was taken back")
		return p, nil
	}
	if rec.Unit {
		p.Steps = append(p.Steps, Step{
			What: "have systemd forget it", Command: "systemctl disable " + unitName,
			do: func(ctx context.Context) error {
				if f.machine.Exists(unitFile) {
					if _, err := f.run(ctx, nil, "systemctl", "disable", unitName); err != nil {
						return err
					}
				}
				rec.Unit, rec.UnitEnabled = false, false
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
	at := filepath.Join(f.machine.Root, file.Path)
	b, err := os.ReadFile(at)
	forget := func() error {
		if err := f.disk.Remove(durable.TempName(at)); err != nil { // a kill may have left it
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
		f.elsewhere(p, "table inet "+rules.OwnTable, rec.Drop.Netns, err, func() error {
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
		command := []string{"delete", "table", "inet", rules.OwnTable}
		p.Steps = append(p.Steps, Step{
			What: "delete the table inet " + rules.OwnTable, Command: "nft " + strings.Join(command, " "),
			do: func(ctx context.Context) error {
				if _, err := f.run(ctx, nil, nft, command...); err != nil {
					return err
				}
				return forget()
			},
		})
	default:
		p.Refused = append(p.Refused, fmt.Sprintf("table inet %s: %v: it is left alone; nft delete table inet %[1]s would remove it", rules.OwnTable, ErrEdited))
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
	now, err := f.machine.ReadNumber(v.Path)
	switch {
	case err != nil:
		p.Refused = append(p.Refused, name+": "+host.Reason(err))
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
