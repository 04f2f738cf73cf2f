// SPDX-License-Identifier: Apache-2.0

// Package settings reads the configuration files of rpush: the system's, which an
// administrator writes, and the user's. A key is the name of a flag.
//
//	defaults:
//	  retry-for: 30m
//	registries:
//	  registry.example:
//	    ca-file: /etc/ssl/company.pem
//	gateway:
//	  listen: 127.0.0.1:5077
//	fixed: [insecure, limit-rate]   # in the system's file only
//
// What is unknown is an error that names the line.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"go.yaml.in/yaml/v3"
)

// maxSize bounds a file.
const maxSize = 1 << 20

// Value is what a file says about a flag.
type Value struct {
	// Text has one element, or several of a list.
	Text []string
	// File and Line are where it stands.
	File string
	Line int
	// Registry is the registry whose entry it is in; empty for defaults.
	Registry string
	// Fixed: neither the user's file nor flags nor variables may say otherwise. A
	// fixed value without Text is the built-in default.
	Fixed bool
}

// Where is the place for a message, as in "/etc/rpush/config.yaml:3".
func (v Value) Where() string { return fmt.Sprintf("%s:%d", v.File, v.Line) }

// Keys says which keys a section takes. It returns an error that says why a value
// cannot be used.
type Keys func(key string, text []string) error

// Schema says what files may hold.
type Schema struct {
	// Push is for defaults and registries, Gateway for the section of that name.
	Push, Gateway Keys
	// Fixable reports whether a key may be fixed.
	Fixable func(key string) bool
}

// Settings are what the files say together. The zero value says nothing.
type Settings struct {
	files []file // the system's first
}

type file struct {
	defaults, gateway map[string]Value
	registries        map[string]map[string]Value // by registry, as name.Registry has it
	fixed             map[string]Value
}

// Load reads the system's file and the user's. An empty path, or a file that does
// not exist, says nothing. A file that other users could have written is an error.
func Load(system, user string, s Schema) (*Settings, error) {
	all := &Settings{}
	for i, path := range []string{system, user} {
		b, err := read(path, i == 0)
		switch {
		case path == "" || errors.Is(err, fs.ErrNotExist):
			all.files = append(all.files, file{})
			continue
		case err != nil:
			return nil, err
		}
		f, err := parse(path, b, s, i == 0)
		if err != nil {
			return nil, err
		}
		all.files = append(all.files, f)
	}
	return all, nil
}

func read(path string, system bool) ([]byte, error) {
	if path == "" {
		return nil, fs.ErrNotExist
	}
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := trusted(fi, system); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(b) > maxSize {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSize)
	}
	return b, err
}

func parse(path string, b []byte, s Schema, system bool) (f file, err error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return f, nil
	case err != nil:
		return f, fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return f, fmt.Errorf("%s holds more than one document", path)
	}
	p := parser{path: path}
	sections, err := p.mapping(doc.Content[0])
	if err != nil {
		return f, err
	}
	for _, sec := range sections {
		switch key := sec.key.Value; {
		case key == "defaults":
			f.defaults, err = p.values(sec.value, s.Push, "")
		case key == "gateway":
			f.gateway, err = p.values(sec.value, s.Gateway, "")
		case key == "registries":
			f.registries, err = p.registries(sec.value, s.Push)
		case key == "fixed" && system:
			f.fixed, err = p.fixed(sec.value, s.Fixable)
		case key == "fixed":
			err = p.errorf(sec.key, "fixed works in the system's file only")
		default:
			err = p.errorf(sec.key, "unknown key %q; known are defaults, registries, gateway and fixed", key)
		}
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

type parser struct{ path string }

func (p parser) errorf(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", p.path, n.Line, fmt.Errorf(format, args...))
}

type pair struct{ key, value *yaml.Node }

// mapping gives the pairs of a mapping. Nothing at all is an empty one.
func (p parser) mapping(n *yaml.Node) (all []pair, err error) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, p.errorf(n, "a mapping is needed here: KEY: VALUE")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			return nil, p.errorf(k, "a key is needed here")
		}
		if seen[k.Value] {
			return nil, p.errorf(k, "%q is here twice", k.Value)
		}
		seen[k.Value] = true
		all = append(all, pair{k, n.Content[i+1]})
	}
	return all, nil
}

func (p parser) values(n *yaml.Node, known Keys, registry string) (map[string]Value, error) {
	pairs, err := p.mapping(n)
	if err != nil {
		return nil, err
	}
	all := map[string]Value{}
	for _, kv := range pairs {
		text, err := p.texts(kv.value)
		if err != nil {
			return nil, err
		}
		if err := known(kv.key.Value, text); err != nil {
			return nil, p.errorf(kv.key, "%w", err)
		}
		all[kv.key.Value] = Value{Text: text, File: p.path, Line: kv.key.Line, Registry: registry}
	}
	return all, nil
}

// texts gives a scalar, or the scalars of a list.
func (p parser) texts(n *yaml.Node) ([]string, error) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag != "!!null":
		return []string{n.Value}, nil
	case n.Kind == yaml.SequenceNode:
		all := []string{}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				return nil, p.errorf(item, "a value is needed here")
			}
			all = append(all, item.Value)
		}
		return all, nil
	}
	return nil, p.errorf(n, "a value, or a list of values, is needed here")
}

func (p parser) registries(n *yaml.Node, known Keys) (map[string]map[string]Value, error) {
	pairs, err := p.mapping(n)
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]Value{}
	for _, kv := range pairs {
		reg, err := name.NewRegistry(kv.key.Value)
		if err != nil || kv.key.Value == "" {
			return nil, p.errorf(kv.key, "%q is no registry; one is HOST[:PORT]", kv.key.Value)
		}
		if all[reg.RegistryStr()] != nil {
			return nil, p.errorf(kv.key, "%q is here twice", kv.key.Value)
		}
		if all[reg.RegistryStr()], err = p.values(kv.value, known, kv.key.Value); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (p parser) fixed(n *yaml.Node, fixable func(string) bool) (map[string]Value, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, p.errorf(n, "fixed is a list of flags")
	}
	all := map[string]Value{}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || !fixable(item.Value) {
			return nil, p.errorf(item, "%q is no flag that can be fixed", item.Value)
		}
		all[item.Value] = Value{File: p.path, Line: item.Line, Fixed: true}
	}
	return all, nil
}

// For returns what the files say about pushes to a registry, or with an empty one
// the defaults. An entry of the registry beats a default; at the same level the
// user's file beats the system's, unless the system's fixes the key.
func (s *Settings) For(registry string) map[string]Value {
	all, system := map[string]Value{}, map[string]Value{}
	add := func(to, from map[string]Value) {
		for k, v := range from {
			to[k] = v
		}
	}
	for _, f := range s.files {
		add(all, f.defaults)
	}
	for _, f := range s.files {
		add(all, f.registries[registry])
	}
	if len(s.files) > 0 {
		first := s.files[0]
		add(system, first.defaults)
		add(system, first.registries[registry])
		fix(all, system, first.fixed)
	}
	return all
}

// Gateway is what the files say about the gateway.
func (s *Settings) Gateway() map[string]Value {
	all := s.For("")
	for _, f := range s.files {
		for k, v := range f.gateway {
			if !all[k].Fixed {
				all[k] = v
			}
		}
	}
	return all
}

// fix gives keys the system's values, or none.
func fix(all, system, fixed map[string]Value) {
	for key, at := range fixed {
		v, ok := system[key]
		if !ok {
			v = at
		}
		v.Fixed = true
		all[key] = v
	}
}

// Sorted are the keys in order.
func Sorted(all map[string]Value) []string {
	keys := make([]string, 0, len(all))
	for k := range all {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
