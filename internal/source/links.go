// SPDX-License-Identifier: Apache-2.0

package source

import (
	"os"
	"path/filepath"
)

// linked is a directory into which the links of a layout may lead.
type linked struct {
	path string // without links of its own
	root *os.Root
}

func openLinked(path string) (l linked, err error) {
	if l.path, err = filepath.EvalSymlinks(path); err == nil {
		l.path, err = filepath.Abs(l.path)
	}
	if err == nil {
		l.root, err = os.OpenRoot(l.path)
	}
	if err != nil {
		return l, bad("a directory that links may lead to: %w", err)
	}
	return l, nil
}

// place is where a file of the layout is: in the layout, or where its links lead
// to, if they may lead there. The file is opened in that directory, so that a link
// that changes meanwhile leads to its own files or nowhere.
func (d dir) place(name string) (root *os.Root, file string) {
	if len(d.links) == 0 {
		return d.root, name
	}
	real, err := filepath.EvalSymlinks(filepath.Join(d.name, filepath.FromSlash(name)))
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return d.root, name // opening it says what is wrong
	}
	own, err := filepath.EvalSymlinks(d.name)
	if err == nil {
		own, err = filepath.Abs(own)
	}
	if err != nil {
		return d.root, name
	}
	for _, l := range append([]linked{{own, d.root}}, d.links...) {
		if rel, err := filepath.Rel(l.path, real); err == nil && filepath.IsLocal(rel) {
			return l.root, rel
		}
	}
	return d.root, name // refused there
}
