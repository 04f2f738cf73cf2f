// SPDX-License-Identifier: Apache-2.0

package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/rpush-go/rpush/internal/durable"
)

// record is what was changed and not taken back yet.
type record struct {
	Version int       `json:"version"`
	Changes []*change `json:"changes"`
}

const recordVersion = 1

// change is one change to a file. A file that only rpush writes is a change of the
// whole file; in a file of others it is a block of lines.
type change struct {
	Client   Client `json:"client"`
	Registry string `json:"registry,omitempty"`
	File     string `json:"file"` // relative to the root
	// Text is what the file, or the block in it, holds. Before is what it held
	// before the last change, in case rpush was killed in between.
	Text   string `json:"text"`
	Before string `json:"before,omitempty"`
	Block  bool   `json:"block,omitempty"`
	// Made says that there was no file before.
	Made bool `json:"made,omitempty"`
	// Dirs are the directories that were made for the file, the innermost first.
	Dirs []string `json:"dirs,omitempty"`
}

// find returns where our text is in a file, and which of the two it is.
func (c *change) find(content string) (at int, text string, ok bool) {
	for _, text := range []string{c.Text, c.Before} {
		switch {
		case text == "":
		case !c.Block && content == text:
			return 0, text, true
		case c.Block && strings.Count(content, text) == 1:
			return strings.Index(content, text), text, true
		}
	}
	return 0, "", false
}

// without is content without our text. The text begins with the end of the line
// before it if that line had none; lines that follow still need it.
func without(content string, at int, text string) string {
	before, after := content[:at], content[at+len(text):]
	if strings.HasPrefix(text, "\n") && after != "" {
		before += "\n"
	}
	return before + after
}

func (p *place) load() (*record, error) {
	b, err := os.ReadFile(p.record())
	if errors.Is(err, fs.ErrNotExist) {
		return &record{Version: recordVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return p.parseRecord(b)
}

// parseRecord refuses files that a record of ours never names: what it names is
// written and deleted, by root as a rule.
func (p *place) parseRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRecord, p.record(), err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: %s is of version %d", ErrRecord, p.record(), r.Version)
	}
	for _, c := range r.Changes {
		if c == nil || !slices.Contains(Clients, c.Client) || c.Text == "" {
			return nil, fmt.Errorf("%w: %s is damaged", ErrRecord, p.record())
		}
		if c.Registry != "" {
			if known, err := registryName(c.Registry); err != nil || known != c.Registry {
				return nil, fmt.Errorf("%w: %s names no registry", ErrRecord, p.record())
			}
		}
		ours := c.File == p.file(c.Client, c.Registry)
		for _, d := range c.Dirs {
			ours = ours && d != "" && strings.HasPrefix(c.File, d+"/") && filepath.Clean(d) == d
		}
		if !ours {
			return nil, fmt.Errorf("%w: %s names a file that is not ours", ErrRecord, p.record())
		}
	}
	return &r, nil
}

// save writes the record, or deletes it when nothing is left in it.
func (p *place) save(r *record) error {
	at := p.record()
	if len(r.Changes) == 0 {
		for _, name := range []string{at, durable.TempName(at)} { // a kill may have left the second
			if err := p.disk.Remove(name); err != nil {
				return err
			}
		}
		if err := p.disk.SyncDir(filepath.Dir(at)); err != nil {
			return err
		}
		if p.o.Config == "" {
			_ = p.disk.Remove(filepath.Dir(at)) // ours, if it is empty
		}
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := p.disk.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	return durable.Replace(p.disk, at, append(b, '\n'), 0o600)
}

// read returns a file's content. It refuses what rpush could not put back as it
// was: a link, or a file of another user.
func (p *place) read(file string) (content string, mode fs.FileMode, err error) {
	st, err := os.Lstat(p.path(file))
	if err != nil {
		return "", 0, err
	}
	switch {
	case !st.Mode().IsRegular():
		return "", 0, errors.New("it is not a regular file")
	case !ownedHere(st):
		return "", 0, errors.New("it belongs to another user or group")
	}
	b, err := os.ReadFile(p.path(file))
	return string(b), st.Mode().Perm(), err
}

// known returns the change of this client in a file, nil if there is none.
func (r *record) known(file string) *change {
	for _, c := range r.Changes {
		if c.File == file {
			return c
		}
	}
	return nil
}

// whole plans to write a file of our own.
func (p *place) whole(plan *Plan, rec *record, registry, text string) error {
	file := p.file(p.o.Client, registry)
	old, _, err := p.read(file)
	c := rec.known(file)
	absent := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !absent:
		plan.Refused = append(plan.Refused, fmt.Sprintf("/%s: %v", file, err))
		return nil
	case !absent && c == nil:
		plan.Refused = append(plan.Refused, fmt.Sprintf("/%s is there already, and rpush did not write it: add by hand\n%s", file, text))
		return nil
	case !absent:
		if _, _, ok := c.find(old); !ok {
			plan.Refused = append(plan.Refused, fmt.Sprintf("/%s was changed since rpush wrote it: it is left alone", file))
			return nil
		}
		if old == text {
			return nil
		}
	}
	next := change{Client: p.o.Client, Registry: registry, File: file, Text: text, Made: true}
	p.put(plan, rec, c, next, old, text, "", 0o644)
	return nil
}

// block plans to append a block to a file that is not ours alone.
func (p *place) block(plan *Plan, rec *record, lines string) error {
	file := p.file(p.o.Client, "")
	old, mode, err := p.read(file)
	absent := errors.Is(err, fs.ErrNotExist)
	if absent {
		mode = 0o644
	} else if err != nil {
		plan.Refused = append(plan.Refused, fmt.Sprintf("/%s: %v", file, err))
		return nil
	}
	text := fmt.Sprintf("# %s\n%s# End of what rpush wrote.\n", p.mark(), lines)
	c := rec.known(file)
	rest := old
	next := change{Client: p.o.Client, File: file, Text: text, Block: true, Made: absent}
	var before string
	if c != nil && !absent {
		next.Made = c.Made
		at, was, ok := c.find(old)
		switch {
		case ok:
			rest, before = without(old, at, was), was
			if strings.TrimPrefix(was, "\n") == text {
				return nil
			}
		case strings.Contains(old, p.mark()):
			plan.Refused = append(plan.Refused, fmt.Sprintf("/%s was changed since rpush wrote it: it is left alone", file))
			return nil
		}
	}
	if rest != "" && !strings.HasSuffix(rest, "\n") {
		next.Text = "\n" + text
	}
	content := rest + next.Text
	// What others wrote may have the table already, or be no TOML at all.
	for _, try := range []string{rest, content} {
		if _, err := toml.Decode(try, &map[string]any{}); err != nil {
			plan.Refused = append(plan.Refused, fmt.Sprintf("/%s cannot take these lines (%v):\n%s", file, err, lines))
			return nil
		}
	}
	p.put(plan, rec, c, next, old, content, before, mode)
	return nil
}

// put adds the step that writes content to a file.
func (p *place) put(plan *Plan, rec *record, c *change, next change, old, content, before string, mode fs.FileMode) {
	command := fmt.Sprintf("mkdir -p /%s && cat > /%s <<'EOF'\n%sEOF", filepath.Dir(next.File), next.File, content)
	if next.Block && before == "" {
		command = fmt.Sprintf("cat >> /%s <<'EOF'\n%sEOF", next.File, next.Text)
	}
	plan.Steps = append(plan.Steps, Step{What: "write /" + next.File, Command: command, do: func() error {
		next.Before = before
		if !next.Block {
			next.Before = old
		}
		if c == nil {
			c = &change{}
			rec.Changes = append(rec.Changes, c)
		} else {
			next.Dirs = c.Dirs
		}
		for d := filepath.Dir(next.File); d != "." && !exists(p.path(d)); d = filepath.Dir(d) {
			if !slices.Contains(next.Dirs, d) {
				next.Dirs = append(next.Dirs, d)
			}
		}
		*c = next
		if err := p.save(rec); err != nil {
			return err
		}
		return durable.Replace(p.disk, p.path(next.File), []byte(content), mode)
	}})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (p *place) undo() (*Plan, error) {
	rec, err := p.load()
	if err != nil {
		return nil, err
	}
	plan := &Plan{Steps: []Step{}, Notes: []string{}, save: func() error { return p.save(rec) }}
	for _, c := range slices.Clone(rec.Changes) {
		if c.Client == p.o.Client && (p.registry == "" || c.Registry == "" || c.Registry == p.registry) {
			p.takeBack(plan, rec, c)
		}
	}
	if len(plan.Steps) == 0 && len(plan.Refused) == 0 {
		plan.Notes = append(plan.Notes, fmt.Sprintf("nothing is set up for %s, or all of it was taken back", p.o.Client))
	}
	return plan, nil
}

func (p *place) takeBack(plan *Plan, rec *record, c *change) {
	at := p.path(c.File)
	forget := func() error {
		if err := p.disk.Remove(durable.TempName(at)); err != nil { // a kill may have left it
			return err
		}
		for _, d := range c.Dirs {
			_ = p.disk.Remove(p.path(d)) // stays if somebody else uses it
		}
		rec.Changes = slices.DeleteFunc(rec.Changes, func(o *change) bool { return o == c })
		return p.save(rec)
	}
	content, mode, err := p.read(c.File)
	where, text, ours := c.find(content)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		plan.Steps = append(plan.Steps, Step{What: "forget /" + c.File + ", which is gone", do: forget})
	case err != nil:
		plan.Refused = append(plan.Refused, fmt.Sprintf("/%s: %v: it is left alone", c.File, err))
	case !ours && c.Block && !strings.Contains(content, p.mark()):
		plan.Steps = append(plan.Steps, Step{What: "forget the lines in /" + c.File + ", which are gone", do: forget})
	case !ours:
		plan.Refused = append(plan.Refused, fmt.Sprintf("/%s was changed since rpush wrote it: it is left alone", c.File))
	case c.Made && len(text) == len(content):
		plan.Steps = append(plan.Steps, Step{What: "delete /" + c.File, Command: "rm /" + c.File, do: func() error {
			if err := p.disk.Remove(at); err != nil {
				return err
			}
			if err := p.disk.SyncDir(filepath.Dir(at)); err != nil {
				return err
			}
			return forget()
		}})
	default:
		rest := without(content, where, text)
		plan.Steps = append(plan.Steps, Step{What: "take the lines of rpush out of /" + c.File, Command: "editor /" + c.File, do: func() error {
			if err := durable.Replace(p.disk, at, []byte(rest), mode); err != nil {
				return err
			}
			return forget()
		}})
	}
}
