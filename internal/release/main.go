// SPDX-License-Identifier: Apache-2.0

// Command release builds what is published of a version of rpush. The same
// commit gives the same bytes, wherever and whenever it is built.
//
//	go run ./internal/release -version 1.2.3 -commit HEX -time UNIX -out dist
//	go run ./internal/release -reference docs/reference.md
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rpush-go/rpush/internal/cli"
)

func main() {
	var r release
	reference := flag.String("reference", "", "write the reference of flags to `FILE`, and nothing else")
	flag.StringVar(&r.version, "version", "", "the version, without the v")
	flag.StringVar(&r.commit, "commit", "", "the commit that is built")
	seconds := flag.Int64("time", 0, "the time of the commit, in seconds since 1970")
	flag.StringVar(&r.out, "out", "dist", "the directory to write to; it is replaced")
	flag.StringVar(&r.nfpm, "nfpm", "", "the program that makes deb, rpm and apk; without it there are none")
	only := flag.String("only", "", "build for these `TARGETS` only, as in linux/amd64,windows/amd64")
	flag.Parse()

	err := func() error {
		if *reference != "" {
			return os.WriteFile(*reference, []byte(cli.Reference()), 0o666)
		}
		if r.version == "" || strings.HasPrefix(r.version, "v") {
			return fmt.Errorf("-version is %q: it is needed, without a v", r.version)
		}
		r.time = time.Unix(*seconds, 0).UTC()
		var err error
		if r.out, err = filepath.Abs(r.out); err != nil {
			return err
		}
		if r.targets, err = pick(*only); err != nil {
			return err
		}
		return r.build()
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// target is a system that a binary is built for.
type target struct {
	os, arch, arm string
}

var targets = []target{
	{"linux", "amd64", ""}, {"linux", "arm64", ""}, {"linux", "arm", "7"},
	{"darwin", "amd64", ""}, {"darwin", "arm64", ""},
	{"windows", "amd64", ""}, {"windows", "arm64", ""},
}

func (t target) String() string { return t.os + "/" + t.arch }

// name is how files call it.
func (t target) name() string { return t.os + "_" + t.arch }

func (t target) binary() string {
	if t.os == "windows" {
		return "rpush.exe"
	}
	return "rpush"
}

func pick(only string) ([]target, error) {
	if only == "" {
		return targets, nil
	}
	var picked []target
	for _, name := range strings.Split(only, ",") {
		found := false
		for _, t := range targets {
			if t.String() == name {
				picked, found = append(picked, t), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q is none of %v", name, targets)
		}
	}
	return picked, nil
}
