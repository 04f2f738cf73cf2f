// SPDX-License-Identifier: Apache-2.0

package remedy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rpush-go/rpush/internal/conntrack/host"
	"github.com/rpush-go/rpush/internal/conntrack/rules"
	"github.com/rpush-go/rpush/internal/durable"
)

// record is what was done, so that it can be taken back.
type record struct {
	Version int           `json:"version"`
	Drop    *dropRecord   `json:"drop,omitempty"`
	Liberal *valueRecord  `json:"liberal,omitempty"`
	Files   []*fileRecord `json:"files,omitempty"`
	// Unit is set before the unit is enabled, UnitEnabled after that: if only Unit
	// is set, a fix was killed in between or the unit was written again.
	Unit        bool `json:"unit,omitempty"`
	UnitEnabled bool `json:"unitEnabled,omitempty"`
}

type dropRecord struct {
	Ports []rules.PortRange `json:"ports"`
	Netns string            `json:"netns"`
	Boot  string            `json:"boot"`
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
		case line == "", line == "}", line == "chain input {", line == "table inet "+rules.OwnTable+" {":
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
	h := durable.Hash(content)
	return h == r.SHA256 || h == r.Previous
}

const recordVersion = 1

func (r *record) empty() bool {
	return r.Drop == nil && r.Liberal == nil && len(r.Files) == 0 && !r.Unit
}

func (f *fixer) load() (*record, error) {
	b, err := f.machine.ReadFile(recordFile)
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
	if r.Liberal != nil && r.Liberal.Path != host.Sysctls+"nf_conntrack_tcp_be_liberal" && r.Liberal.Path != host.OldSysctls+"tcp_be_liberal" {
		return nil, fmt.Errorf("%w: /%s names a setting that is not ours", ErrRecord, recordFile)
	}
	return &r, nil
}

// save writes the record, or deletes it when nothing is left in it.
func (f *fixer) save(r *record) error {
	at := filepath.Join(f.machine.Root, recordFile)
	if r.empty() {
		for _, name := range []string{at, durable.TempName(at)} { // a kill may have left the second
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
	return durable.Replace(f.disk, at, append(b, '\n'), 0o600)
}
