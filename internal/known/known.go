// Package known remembers what layers and images came to be, so that nothing is
// read or compressed twice: the digest of a layer by its diffID, and the
// config of an image by its ID. It is no secret and may be shared between
// machines; all of it may be deleted at any time.
//
// Nothing in it is proof: a registry is asked for every digest, and what it has
// is checked by whoever pulls, against the config.
package known

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	version = 1
	// expiry is how long something that nobody asks for is kept.
	expiry = 30 * 24 * time.Hour
	// maxFiles bounds the layers, and the configs.
	maxFiles = 4096
	// maxFile bounds what is read of one file.
	maxFile = 16 << 20
	// maxBlobs bounds the blobs of one layer, and maxRepositories the places of
	// one blob.
	maxBlobs, maxRepositories = 16, 8
)

// Layer is one blob that holds a layer.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
	// Key names what it was compressed with, empty where a registry had it.
	Key string `json:"key,omitempty"`
	// Repositories had it, the last one first, registry included.
	Repositories []string `json:"repositories,omitempty"`
}

type layerFile struct {
	Version int     `json:"version"`
	Layers  []Layer `json:"layers"`
}

// Cache is a directory. The nil Cache knows nothing and keeps nothing. It is
// safe for concurrent use by goroutines and processes; of two that write about
// one layer at once, one may be forgotten.
type Cache struct{ dir string }

// Open uses dir, which need not exist, and clears it of what is too old or too
// much.
func Open(dir string) *Cache {
	c := &Cache{dir: dir}
	for _, kind := range []string{layers, configs} {
		prune(filepath.Join(dir, kind), time.Now())
	}
	return c
}

const layers, configs = "layers", "configs"

func prune(dir string, now time.Time) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type aged struct {
		name string
		at   time.Time
	}
	var kept []aged
	for _, e := range all {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		if now.Sub(fi.ModTime()) > expiry {
			_ = os.Remove(filepath.Join(dir, e.Name())) // the next time
			continue
		}
		kept = append(kept, aged{e.Name(), fi.ModTime()})
	}
	slices.SortFunc(kept, func(a, b aged) int { return b.at.Compare(a.at) })
	for _, f := range kept[min(len(kept), maxFiles):] {
		_ = os.Remove(filepath.Join(dir, f.name)) // the next time
	}
}

// Layers are the blobs known to hold the layer.
func (c *Cache) Layers(diffID digest.Digest) []Layer {
	var f layerFile
	if c == nil || !c.read(layers, diffID, &f) || f.Version != version {
		return nil
	}
	return slices.DeleteFunc(f.Layers, func(l Layer) bool { return l.Digest.Validate() != nil || l.Size < 0 })
}

// AddLayer remembers a blob of the layer, and where it is.
func (c *Cache) AddLayer(diffID digest.Digest, l Layer) error {
	if c == nil {
		return nil
	}
	f := layerFile{Version: version, Layers: c.Layers(diffID)}
	i := slices.IndexFunc(f.Layers, func(o Layer) bool { return o.Digest == l.Digest })
	if i >= 0 {
		l.Key = cmp.Or(l.Key, f.Layers[i].Key)
		l.Repositories = places(l.Repositories, f.Layers[i].Repositories)
		f.Layers = slices.Delete(f.Layers, i, i+1)
	}
	f.Layers = append([]Layer{l}, f.Layers...)
	f.Layers = f.Layers[:min(len(f.Layers), maxBlobs)]
	return c.write(layers, diffID, f)
}

// Config gives the config of the image with this ID, checked against it.
func (c *Cache) Config(id digest.Digest) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	b, ok := c.load(configs, id)
	return b, ok && id.Algorithm().FromBytes(b) == id
}

// AddConfig remembers the config of an image.
func (c *Cache) AddConfig(id digest.Digest, config []byte) error {
	if c == nil {
		return nil
	}
	return c.store(configs, id, config)
}

// places joins two lists, each place once, the newest first.
func places(now, before []string) []string {
	for _, p := range before {
		if !slices.Contains(now, p) {
			now = append(now, p)
		}
	}
	return now[:min(len(now), maxRepositories)]
}

func (c *Cache) path(kind string, d digest.Digest) string {
	return filepath.Join(c.dir, kind, strings.Replace(string(d), ":", "-", 1)+".json")
}

// read is false for what is not there, or damaged.
func (c *Cache) read(kind string, d digest.Digest, into any) bool {
	b, ok := c.load(kind, d)
	return ok && json.Unmarshal(b, into) == nil
}

func (c *Cache) load(kind string, d digest.Digest) ([]byte, bool) {
	if d.Validate() != nil {
		return nil, false
	}
	path := c.path(kind, d)
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, false
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	if now := time.Now(); now.Sub(fi.ModTime()) > 24*time.Hour {
		_ = os.Chtimes(path, now, now) // it is of use
	}
	return b, true
}

func (c *Cache) write(kind string, d digest.Digest, what any) error {
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return c.store(kind, d, b)
}

// store replaces a file, so that no reader sees half of one.
func (c *Cache) store(kind string, d digest.Digest, b []byte) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if len(b) > maxFile {
		return errors.New("too large to be kept")
	}
	path := c.path(kind, d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		if e := os.Remove(f.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
