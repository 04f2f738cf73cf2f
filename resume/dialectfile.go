// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	dialectsVersion = 1
	// dialectsFor is how long what was learnt about a host is believed:
	// registries are upgraded, proxies reconfigured.
	dialectsFor  = 7 * 24 * time.Hour
	maxDialects  = 256
	maxHintsFile = 1 << 20
)

// FileDialects returns Dialects kept in a small JSON file, which is made with
// its directory when there is something to keep. Entries expire after a week.
// The file holds nothing secret and may be deleted at any time; one that cannot
// be read, is damaged, or is of another version is as good as none, and one
// that cannot be written is not an error either: these are hints. Several
// processes may use the same file; the last one to learn something wins.
func FileDialects(path string) Dialects { return &fileDialects{path: path} }

type fileDialects struct {
	path string
	mu   sync.Mutex
}

type dialectsFile struct {
	Version int                     `json:"version"`
	Hosts   map[string]dialectEntry `json:"hosts"`
}

type dialectEntry struct {
	Dialect
	Seen time.Time `json:"seen"`
}

func (f *fileDialects) Load(host string) (Dialect, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.read().Hosts[host]
	return e.Dialect, ok
}

func (f *fileDialects) Save(host string, d Dialect) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.read()
	all.Hosts[host] = dialectEntry{d, time.Now().UTC().Truncate(time.Second)}
	for len(all.Hosts) > maxDialects {
		oldest := ""
		for h, e := range all.Hosts {
			if oldest == "" || e.Seen.Before(all.Hosts[oldest].Seen) {
				oldest = h
			}
		}
		delete(all.Hosts, oldest)
	}
	_ = f.write(all) // a hint that is not kept is no loss
}

// read returns what is in the file and has not expired.
func (f *fileDialects) read() dialectsFile {
	all := dialectsFile{Version: dialectsVersion, Hosts: map[string]dialectEntry{}}
	r, err := os.Open(f.path)
	if err != nil {
		return all
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxHintsFile))
	if err != nil {
		return all
	}
	var got dialectsFile
	if json.Unmarshal(b, &got) != nil || got.Version != dialectsVersion {
		return all
	}
	now := time.Now()
	for h, e := range got.Hosts {
		if age := now.Sub(e.Seen); age < dialectsFor && age > -dialectsFor {
			all.Hosts[h] = e
		}
	}
	return all
}

// write replaces the file, so that a reader finds the old or the new one.
func (f *fileDialects) write(all dialectsFile) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(dir, filepath.Base(f.path)+".*")
	if err != nil {
		return err
	}
	_, werr := t.Write(append(b, '\n'))
	if err := errors.Join(werr, t.Close()); err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	if err := os.Rename(t.Name(), f.path); err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	return nil
}
