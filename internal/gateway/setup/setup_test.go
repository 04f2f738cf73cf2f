// SPDX-License-Identifier: Apache-2.0

package setup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/rpush-go/rpush/internal/durable"
)

// tree is every file and directory below a root, with its mode and content.
func tree(t *testing.T, root string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		text, _ := os.ReadFile(path)
		all = append(all, strings.TrimPrefix(path, root)+" "+st.Mode().String()+": "+string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// hasty is a disk that syncs nothing.
type hasty struct{ durable.OS }

func (hasty) Write(name string, b []byte, mode fs.FileMode) error {
	return os.WriteFile(name, b, mode)
}
func (hasty) SyncDir(string) error { return nil }

// carryOut plans and applies, and refuses nothing.
func carryOut(t *testing.T, plan func(*place) (*Plan, error), o Options) *Plan {
	t.Helper()
	at, err := newPlace(o)
	if err != nil {
		t.Fatal(err)
	}
	at.disk = hasty{}
	p, err := plan(at)
	if err == nil {
		err = p.Apply()
	}
	if err != nil || len(p.Refused) > 0 {
		t.Fatalf("%v, refused %q", err, p.Refused)
	}
	return p
}

// cases are systems and what is set up there.
var cases = map[string]struct {
	files map[string]string
	o     Options
	file  string // that is written
	want  string // a part of it
}{
	"docker, new": {
		nil, Options{Client: Docker, Registry: "registry.example"},
		"etc/docker/certs.d/registry.example/hosts.toml",
		"server = \"https://registry.example\"\n\n[host.\"http://localhost:5077\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n",
	},
	"docker, with certificates": {
		map[string]string{"etc/docker/certs.d/r.example:5000/ca.crt": "CA", "etc/docker/certs.d/r.example:5000/c.cert": "C", "etc/docker/certs.d/r.example:5000/c.key": "K"},
		Options{Client: Docker, Registry: "r.example:5000"},
		"etc/docker/certs.d/r.example:5000/hosts.toml",
		"server = \"https://r.example:5000\"\nca = [\"/etc/docker/certs.d/r.example:5000/ca.crt\"]\nclient = [[\"/etc/docker/certs.d/r.example:5000/c.cert\", \"/etc/docker/certs.d/r.example:5000/c.key\"]]\n",
	},
	"containerd, Docker Hub, several": {
		map[string]string{"etc/containerd/config.toml": "version = 2\n"},
		Options{Client: Containerd, Registry: "docker.io", Several: true, Gateway: "https://gw.example:5077"},
		"etc/containerd/certs.d/docker.io/hosts.toml",
		"server = \"https://registry-1.docker.io\"\n\n[host.\"https://gw.example:5077/v2/docker.io\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n  override_path = true\n",
	},
	"buildkit, new": {
		nil, Options{Client: Buildkit}, "etc/buildkit/buildkitd.toml", "[registry.\"localhost:5077\"]\n  http = true\n",
	},
	"buildkit, of others": {
		map[string]string{"etc/buildkit/buildkitd.toml": "debug = true\n[registry.\"docker.io\"]\n  mirrors = [\"m.example\"]\n"},
		Options{Client: Buildkit}, "etc/buildkit/buildkitd.toml", "m.example\"]\n# Written by rpush gateway setup buildkit;",
	},
	"buildkit, no end of line": {
		map[string]string{"etc/buildkit/buildkitd.toml": "debug = true"},
		Options{Client: Buildkit}, "etc/buildkit/buildkitd.toml", "debug = true\n# Written",
	},
	"podman, a user's": {
		map[string]string{"home/me/.config/other": "x"},
		Options{Client: Podman, Config: "/home/me/.config"},
		"home/me/.config/containers/registries.conf.d/90-rpush-gateway.conf", "[[registry]]\nlocation = \"localhost:5077\"\ninsecure = true\n",
	},
}

func system(t *testing.T, files map[string]string, o Options) Options {
	t.Helper()
	o.Root = t.TempDir()
	if o.Config != "" {
		o.State = filepath.Join(o.Root, "state")
	}
	for _, dir := range []string{"var/lib", "etc", "state"} {
		if err := os.MkdirAll(filepath.Join(o.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(t, o.Root, name, text)
	}
	return o
}

// What is applied is valid, is complete at once, and is taken back to the byte.
func TestApplyAndUndo(t *testing.T) {
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			o := system(t, tt.files, tt.o)
			before := tree(t, o.Root)
			if _, err := Fix(o); err != nil || tree(t, o.Root) != before {
				t.Fatalf("a plan alone: %v, or it has changed something", err)
			}
			if p := carryOut(t, (*place).fix, o); len(p.Steps) != 1 || len(p.Use) < 2 {
				t.Fatalf("the plan: %+v", p)
			}
			got := read(t, o.Root, tt.file)
			if _, err := toml.Decode(got, &map[string]any{}); err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("%v: got\n%s\nwant\n%s", err, got, tt.want)
			}
			after := tree(t, o.Root)
			if p := carryOut(t, (*place).fix, o); len(p.Steps) != 0 || tree(t, o.Root) != after {
				t.Errorf("a second time there are steps: %+v", p)
			}
			// Another gateway replaces the first.
			moved := o
			moved.Gateway = "http://localhost:6000"
			carryOut(t, (*place).fix, moved)
			if got := read(t, o.Root, tt.file); !strings.Contains(got, "localhost:6000") || strings.Contains(got, "5077") {
				t.Errorf("with another gateway:\n%s", got)
			}
			carryOut(t, (*place).undo, o)
			if got := tree(t, o.Root); got != before {
				t.Errorf("after undo:\n%s\nwant\n%s", got, before)
			}
			if p := carryOut(t, (*place).undo, o); len(p.Steps) != 0 || len(p.Notes) == 0 {
				t.Errorf("a second undo: %+v", p)
			}
		})
	}
}

type killed struct{}

// cutDisk is the disk of an rpush that is killed before operation number left.
type cutDisk struct {
	hasty
	left int
}

func (d *cutDisk) step() {
	if d.left == 0 {
		panic(killed{})
	}
	d.left--
}

func (d *cutDisk) MkdirAll(dir string, mode fs.FileMode) error {
	d.step()
	return d.hasty.MkdirAll(dir, mode)
}
func (d *cutDisk) Rename(from, to string) error { d.step(); return d.hasty.Rename(from, to) }
func (d *cutDisk) Remove(name string) error     { d.step(); return d.hasty.Remove(name) }
func (d *cutDisk) SyncDir(dir string) error     { d.step(); return d.hasty.SyncDir(dir) }

// Write leaves half of a file.
func (d *cutDisk) Write(name string, b []byte, mode fs.FileMode) error {
	if d.left == 0 {
		if err := d.hasty.Write(name, b[:len(b)/2], mode); err != nil {
			return err
		}
	}
	d.step()
	return d.hasty.Write(name, b, mode)
}

// cut carries out a plan until it is killed, and reports whether it was.
func cut(t *testing.T, o Options, at int, plan func(*place) (*Plan, error)) (wasKilled bool) {
	t.Helper()
	p, err := newPlace(o)
	if err != nil {
		t.Fatal(err)
	}
	p.disk = &cutDisk{left: at}
	defer func() {
		if r := recover(); r == (killed{}) {
			wasKilled = true
		} else if r != nil {
			panic(r)
		}
	}()
	pl, err := plan(p)
	if err == nil {
		err = pl.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// Killed before any operation on the disk, whatever was being done can be undone,
// and can be done again.
func TestKilledAtAnyPoint(t *testing.T) {
	for name, tt := range cases {
		if testing.Short() && name != "docker, with certificates" && name != "buildkit, no end of line" {
			continue
		}
		for _, what := range []string{"fix", "replace", "undo"} {
			for at, more := 0, true; more; at++ {
				o := system(t, tt.files, tt.o)
				before := tree(t, o.Root)
				kill, last := (*place).fix, o
				if what != "fix" {
					carryOut(t, (*place).fix, o)
				}
				switch what {
				case "replace":
					last.Gateway = "http://localhost:6000"
				case "undo":
					kill = (*place).undo
				}
				more = cut(t, last, at, kill)
				if at%2 == 1 && what != "undo" { // once again, and whole
					carryOut(t, (*place).fix, last)
					if got := read(t, o.Root, tt.file); what == "replace" && !strings.Contains(got, "localhost:6000") {
						t.Fatalf("%s, %s killed before operation %d, and done again:\n%s", name, what, at, got)
					}
				}
				carryOut(t, (*place).undo, o)
				if got := tree(t, o.Root); got != before {
					t.Fatalf("%s, %s killed before operation %d: undo left\n%s\nwant\n%s", name, what, at, got, before)
				}
				if at > 200 {
					t.Fatal("there is no end")
				}
			}
		}
	}
}

// What somebody else made, or has changed since, stays as it is.
func TestOthersFilesAreLeftAlone(t *testing.T) {
	refused := func(t *testing.T, plan func(Options) (*Plan, error), o Options) {
		t.Helper()
		before := tree(t, o.Root)
		p, err := plan(o)
		if err == nil {
			err = p.Apply()
		}
		if err != nil || len(p.Refused) != 1 || len(p.Steps) != 0 || tree(t, o.Root) != before {
			t.Errorf("%v: %+v\n%s", err, p, tree(t, o.Root))
		}
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			o := system(t, tt.files, tt.o)
			carryOut(t, (*place).fix, o)
			got := read(t, o.Root, tt.file)
			write(t, o.Root, tt.file, strings.Replace(got, "localhost", "elsewhere", 1)+"#\n")
			if got == read(t, o.Root, tt.file) {
				t.Fatal("nothing was changed")
			}
			if strings.Contains(got, "localhost") {
				refused(t, Undo, o)
				refused(t, Fix, o)
			}
			// Gone by other hands: there is nothing to take back.
			if err := os.Remove(filepath.Join(o.Root, tt.file)); err != nil {
				t.Fatal(err)
			}
			carryOut(t, (*place).undo, o)
		})
	}
	t.Run("a hosts.toml of somebody else", func(t *testing.T) {
		refused(t, Fix, system(t, map[string]string{"etc/docker/certs.d/r.example/hosts.toml": "server = \"x\"\n"}, Options{Client: Docker, Registry: "r.example"}))
	})
	t.Run("the registry is in buildkitd.toml", func(t *testing.T) {
		refused(t, Fix, system(t, map[string]string{"etc/buildkit/buildkitd.toml": "[registry.\"localhost:5077\"]\n  http = false\n"}, Options{Client: Buildkit}))
	})
	t.Run("buildkitd.toml is broken", func(t *testing.T) {
		refused(t, Fix, system(t, map[string]string{"etc/buildkit/buildkitd.toml": "[registry\n"}, Options{Client: Buildkit}))
	})
	t.Run("a link", func(t *testing.T) {
		o := system(t, map[string]string{"etc/real.toml": "debug = true\n", "etc/buildkit/x": ""}, Options{Client: Buildkit})
		if err := os.Symlink("../real.toml", filepath.Join(o.Root, "etc/buildkit/buildkitd.toml")); err != nil {
			t.Fatal(err)
		}
		refused(t, Fix, o)
	})
}

// Lines that others add around ours stay.
func TestUndoKeepsWhatOthersAdded(t *testing.T) {
	for _, old := range []string{"debug = true\n", "debug = true", ""} {
		o := system(t, map[string]string{"etc/buildkit/buildkitd.toml": old}, Options{Client: Buildkit})
		carryOut(t, (*place).fix, o)
		const file = "etc/buildkit/buildkitd.toml"
		write(t, o.Root, file, "# above\n"+read(t, o.Root, file)+"[worker.oci]\n")
		carryOut(t, (*place).undo, o)
		want := "# above\n" + old
		if old != "" && !strings.HasSuffix(old, "\n") {
			want += "\n"
		}
		if got := read(t, o.Root, file); got != want+"[worker.oci]\n" {
			t.Errorf("%q: got %q", old, got)
		}
	}
}

// A record that names files of others deletes nothing.
func TestForgedRecord(t *testing.T) {
	for _, rec := range []string{
		`{"version":1,"changes":[{"client":"docker","file":"etc/passwd","text":"x"}]}`,
		`{"version":1,"changes":[{"client":"docker","registry":"../../..","file":"etc/docker/certs.d/../../../hosts.toml","text":"x"}]}`,
		`{"version":1,"changes":[{"client":"podman","file":"etc/containers/registries.conf.d/90-rpush-gateway.conf","text":"x","dirs":["var/lib"]}]}`,
		`{"version":1,"changes":[null]}`,
		`{"version":2}`, `{`,
	} {
		o := system(t, map[string]string{"var/lib/rpush/gateway-undo.json": rec}, Options{Client: Docker})
		if _, err := Undo(o); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", rec, err)
		}
	}
}

func TestOptionsThatMakeNoPlan(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want error
	}{
		{Options{Client: Docker}, ErrNoRegistry},
		{Options{Client: Docker, Registry: "../x"}, nil},
		{Options{Client: Docker, Registry: `a"b`}, nil},
		{Options{Client: Docker, Registry: "r.example:5000", Several: true}, ErrPortInName},
		{Options{Client: Containerd, Registry: "r.example", Config: "/home/me/.config"}, ErrRootOnly},
		{Options{Client: Podman, Gateway: "localhost:5077"}, nil},
		{Options{Client: Podman, Gateway: "http://u:p@localhost:5077"}, nil},
		{Options{Client: "helm"}, nil},
	} {
		tt.o.Root = t.TempDir()
		if _, err := Fix(tt.o); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%+v: %v, want %v", tt.o, err, tt.want)
		}
	}
}
