// SPDX-License-Identifier: Apache-2.0

// Package known remembers which blobs hold which layers, and the configs of
// images, so that nothing is read, compressed or verified twice: the digest of a
// layer by its diffID, and the config of an image by its ID. All of it may be
// deleted at any time.
//
// What it says about a layer is proof: rpush compressed the layer itself, or
// decompressed the blob and compared the diffID. So that nobody else can say it,
// each such statement is signed with a secret of this user that is not kept in
// the cache; one with another signature counts for nothing.
package known

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/owndir"
)

const (
	version = 2
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
	// Key names what rpush compressed it with, empty if someone else did.
	Key string `json:"key,omitempty"`
	// Repositories had it, the last one first, registry included.
	Repositories []string `json:"repositories,omitempty"`
}

type layerFile struct {
	Version int           `json:"version"`
	Layers  []signedLayer `json:"layers"`
}

// signedLayer is a Layer with the signature of all but its repositories: where
// a blob is said to be harms nobody.
type signedLayer struct {
	Layer
	Signature []byte `json:"signature"`
}

// Cache is a directory, and what this process added to it. The nil Cache knows
// nothing and keeps nothing. It is safe for concurrent use by goroutines and
// processes; of two that write about one layer at once, one may be forgotten.
type Cache struct {
	dir string // of its own; empty: the cache is in memory alone
	err error  // why nothing is read from dir or written to it
	key []byte

	mu    sync.Mutex
	added map[digest.Digest][]Layer
}

// Open makes a cache in dir, in a directory of its own that is private to this
// user, and deletes entries of it that are too old or too many. Other files
// stay, whoever created them. If the directory cannot be used, the cache
// remembers what is added to it, and AddLayer and AddConfig say why it keeps
// nothing. Without a dir, the cache is this process's alone.
func Open(dir string) *Cache {
	c := &Cache{key: newKey()}
	if dir == "" {
		return c
	}
	if c.dir, c.err = owndir.Make(dir, owndir.Known); c.err != nil {
		return c
	}
	for _, kind := range []string{layers, configs} {
		path, err := owndir.Make(c.dir, kind)
		if err != nil {
			c.err = err
			return c
		}
		prune(path, time.Now())
	}
	return c
}

const (
	layers, configs = "layers", "configs" // directories
	ext             = ".json"
)

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
		if err != nil || !fi.Mode().IsRegular() || !isEntry(e.Name()) && !owndir.IsTemp(e.Name()) {
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

// isEntry reports whether path gives this file name to some entry.
func isEntry(file string) bool {
	d, ok := strings.CutSuffix(file, ext)
	return ok && digest.Digest(strings.Replace(d, "-", ":", 1)).Validate() == nil
}

// SignWith has the cache sign with a key of ReadKey, and believe what was signed
// with it. Without it, the cache believes what was added to this Cache alone.
// It is called before anything else.
func (c *Cache) SignWith(key []byte) { c.key = key }

// sign gives the signature of a layer.
func (c *Cache) sign(diffID digest.Digest, l Layer) []byte {
	h := hmac.New(sha256.New, c.key)
	// JSON keeps the fields apart.
	b, err := json.Marshal([]any{version, diffID, l.Digest, l.Size, l.MediaType, l.Key})
	if err != nil {
		return nil // impossible, and no signature is valid
	}
	_, _ = h.Write(b) // a hash takes it
	return h.Sum(nil)
}

// Layers are the blobs known to hold the layer, those that rpush compressed
// first.
func (c *Cache) Layers(diffID digest.Digest) []Layer {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.known(diffID)
	slices.SortStableFunc(all, func(a, b Layer) int { return -cmp.Compare(min(len(a.Key), 1), min(len(b.Key), 1)) })
	return all
}

// known are the layers of the file and those added, the last one first. The
// caller holds mu.
func (c *Cache) known(diffID digest.Digest) []Layer {
	all := slices.Clone(c.added[diffID])
	var f layerFile
	if c.dir == "" || !c.read(layers, diffID, &f) || f.Version != version {
		return all
	}
	for _, l := range f.Layers {
		same := func(o Layer) bool { return o.Digest == l.Digest }
		if l.Digest.Validate() == nil && l.Size >= 0 && hmac.Equal(l.Signature, c.sign(diffID, l.Layer)) && !slices.ContainsFunc(all, same) {
			all = append(all, l.Layer)
		}
	}
	return all
}

// AddLayer remembers a blob of the layer, and where it is. The caller has
// compressed the layer, or verified the blob.
func (c *Cache) AddLayer(diffID digest.Digest, l Layer) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.known(diffID)
	i := slices.IndexFunc(all, func(o Layer) bool { return o.Digest == l.Digest })
	if i >= 0 {
		l.Key = cmp.Or(l.Key, all[i].Key)
		l.Repositories = places(l.Repositories, all[i].Repositories)
		all = slices.Delete(all, i, i+1)
	}
	all = append([]Layer{l}, all...)
	all = all[:min(len(all), maxBlobs)]
	if c.added == nil {
		c.added = map[digest.Digest][]Layer{}
	}
	c.added[diffID] = all
	if c.dir == "" {
		return nil
	}
	f := layerFile{Version: version}
	for _, l := range all {
		f.Layers = append(f.Layers, signedLayer{l, c.sign(diffID, l)})
	}
	return c.write(layers, diffID, f)
}

// Config gives the config of the image with this ID, checked against it.
func (c *Cache) Config(id digest.Digest) ([]byte, bool) {
	if c == nil || c.dir == "" {
		return nil, false
	}
	b, ok := c.load(configs, id)
	return b, ok && id.Algorithm().FromBytes(b) == id
}

// AddConfig remembers the config of an image.
func (c *Cache) AddConfig(id digest.Digest, config []byte) error {
	if c == nil || c.dir == "" {
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
	return filepath.Join(c.dir, kind, strings.Replace(string(d), ":", "-", 1)+ext)
}

// read is false for what is not there, or damaged.
func (c *Cache) read(kind string, d digest.Digest, into any) bool {
	b, ok := c.load(kind, d)
	return ok && json.Unmarshal(b, into) == nil
}

func (c *Cache) load(kind string, d digest.Digest) ([]byte, bool) {
	if c.err != nil || d.Validate() != nil {
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
	if err := cmp.Or(c.err, d.Validate()); err != nil {
		return err
	}
	if len(b) > maxFile {
		return errors.New("too large to be kept")
	}
	path := c.path(kind, d)
	f, err := owndir.CreateTemp(filepath.Dir(path))
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
