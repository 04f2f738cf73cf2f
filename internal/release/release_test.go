// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

const mib = 1 << 20

// TestRelease builds a release for Linux, or takes the one in RPUSH_DIST, and
// tries what is in it.
func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles rpush for three processors")
	}
	d := os.Getenv("RPUSH_DIST")
	if d == "" {
		d = buildRelease(t)
	}
	dist := &published{dir: d, sums: readSums(t, d)}
	t.Run("sums", dist.checkSums)
	t.Run("materials", dist.checkMaterials)
	t.Run("deb", dist.installDeb)
	t.Run("image", dist.pushImage)
	t.Run("binaries", dist.pushByEach)
}

func buildRelease(t *testing.T) string {
	r := &release{
		version: "1.2.3-rc.1", commit: strings.Repeat("ab", 20), time: time.Unix(1700000000, 0).UTC(),
		out: filepath.Join(t.TempDir(), "dist"), nfpm: realreg.Tool(t, "nfpm"),
	}
	var err error
	if r.targets, err = pick("linux/amd64,linux/arm64,linux/arm"); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root(t))
	for range 2 { // the second time what was compiled is cached
		before, _ := os.ReadFile(filepath.Join(r.out, marker))
		if err := r.build(); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(filepath.Join(r.out, marker))
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && !bytes.Equal(before, after) {
			t.Errorf("two builds differ:\n%s\n%s", before, after)
		}
	}
	return r.out
}

// published is a directory with a release.
type published struct {
	dir  string
	sums map[string]string // by name of the file
}

func readSums(t *testing.T, dir string) map[string]string {
	b, err := os.ReadFile(filepath.Join(dir, marker))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		sum, name, _ := strings.Cut(s.Text(), "  ")
		sums[name] = sum
	}
	return sums
}

// file is the one with this ending, empty if there is none.
func (p *published) file(ending string) string {
	for name := range p.sums {
		if strings.HasSuffix(name, ending) {
			return filepath.Join(p.dir, name)
		}
	}
	return ""
}

func (p *published) checkSums(t *testing.T) {
	cmd := exec.Command("sha256sum", "--check", "--strict", marker)
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, ending := range []string{"_amd64.deb", "_arm64.deb", "_arm.deb", "_amd64.rpm", "_arm.apk", "_linux_amd64.tar.gz", "_oci.tar.gz", ".spdx.json"} {
		if p.file(ending) == "" {
			t.Errorf("no file ends in %s: %v", ending, p.sums)
		}
	}
}

// The bill of materials names all modules that the go command finds in the binary.
func (p *published) checkMaterials(t *testing.T) {
	b, err := os.ReadFile(p.file(".spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, p := range doc.Packages {
		has[p.Name+"@"+p.Version] = true
	}
	out, err := exec.Command("go", "version", "-m", p.unpack(t, "linux", "amd64")).Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "dep" {
			n++
			if !has[f[1]+"@"+f[2]] {
				t.Errorf("%s %s is missing", f[1], f[2])
			}
		}
	}
	if n < 20 || len(doc.Relationships) != len(doc.Packages) {
		t.Errorf("%d modules, %d packages, %d relationships", n, len(doc.Packages), len(doc.Relationships))
	}
}

// unpack returns the path of the program for a system.
func (p *published) unpack(t *testing.T, system, arch string) string {
	t.Helper()
	dir := t.TempDir()
	if system == "windows" {
		run(t, "", "unzip", "-q", p.file("_windows_"+arch+".zip"), "rpush.exe", "-d", dir)
		return filepath.Join(dir, "rpush.exe")
	}
	run(t, "", "tar", "-xzf", p.file("_"+system+"_"+arch+".tar.gz"), "-C", dir)
	return filepath.Join(dir, "rpush")
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The deb goes into a root that has nothing: the program is static.
func (p *published) installDeb(t *testing.T) {
	if os.Geteuid() != 0 {
		require.Missing(t, "it takes root")
	}
	for _, tool := range []string{"dpkg", "chroot", "man"} {
		if _, err := exec.LookPath(tool); err != nil {
			require.Missing(t, "%s is missing", tool)
		}
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the deb for amd64 is tried")
	}
	fresh := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "tmp"} {
		if err := os.MkdirAll(filepath.Join(fresh, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(fresh, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "", "dpkg", "--root="+fresh, "--force-not-root", "-i", p.file("_linux_amd64.deb"))
	var v struct{ Version, Commit string }
	if err := json.Unmarshal([]byte(run(t, "", "chroot", fresh, "/usr/bin/rpush", "version", "--output", "json")), &v); err != nil || v.Version == "" || len(v.Commit) != 40 {
		t.Errorf("version %+v, %v", v, err)
	}
	page := run(t, "", "man", "-l", filepath.Join(fresh, "usr/share/man/man1/rpush.1.gz"))
	if !strings.Contains(page, "--retry-for") || !strings.Contains(page, "  docker-daemon:IMAGE            another image of the engine") {
		t.Errorf("the man page:\n%.3000s", page)
	}
	completion := filepath.Join(fresh, "usr/share/bash-completion/completions/rpush")
	got := run(t, "", "bash", "-c", `PATH=`+fresh+`/usr/bin:$PATH
		_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
		. `+completion+` && COMP_WORDS=(rpush --retry-) COMP_CWORD=1 COMP_LINE="rpush --retry-" COMP_POINT=14 COMP_TYPE=9 && __start_rpush && printf '%s\n' "${COMPREPLY[@]}"`)
	if !strings.Contains(got, "--retry-for") || !strings.Contains(got, "--retry-times") {
		t.Errorf("bash completes --retry- to %q", got)
	}
	run(t, "", "dpkg", "--root="+fresh, "--force-not-root", "-r", "rpush")
	if _, err := os.Stat(filepath.Join(fresh, "usr/bin/rpush")); err == nil {
		t.Error("the program is still there after the package was removed")
	}
}

// rpush pushes its own image, and what the registry then has runs.
func (p *published) pushImage(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	rpush := p.unpack(t, "linux", runtime.GOARCH)
	ref := reg.Addr + "/rpush/rpush:1"
	out := run(t, "", rpush, p.file("_oci.tar.gz"), ref)
	if !strings.Contains(out, ref+"@sha256:") {
		t.Errorf("got %s", out)
	}
	crane := realreg.Tool(t, "crane")
	rootfs := t.TempDir()
	run(t, "", "sh", "-c", crane+" export --platform linux/"+runtime.GOARCH+" "+ref+" - | tar -x -C "+rootfs)
	if got := run(t, "", filepath.Join(rootfs, "usr/bin/rpush"), "version"); !strings.HasPrefix(got, "rpush ") {
		t.Errorf("got %q", got)
	}
	roots, err := os.ReadFile(filepath.Join(rootfs, "etc/ssl/certs/ca-certificates.crt"))
	if n := bytes.Count(roots, []byte("BEGIN CERTIFICATE")); err != nil || n < 100 {
		t.Errorf("%d authorities, %v", n, err)
	}
}

// Each binary that runs here pushes through a connection that is reset every
// 4 MiB.
func (p *published) pushByEach(t *testing.T) {
	for _, one := range []struct {
		os, arch string
		through  string
	}{
		{"linux", "amd64", "qemu-x86_64-static"},
		{"linux", "arm64", "qemu-aarch64-static"},
		{"linux", "arm", "qemu-arm-static"},
		{"windows", "amd64", "wine64"},
	} {
		t.Run(one.os+"_"+one.arch, func(t *testing.T) {
			if p.file("_"+one.os+"_"+one.arch+".tar.gz")+p.file("_"+one.os+"_"+one.arch+".zip") == "" {
				t.Skip("this release has no binary for it")
			}
			command := []string{p.unpack(t, one.os, one.arch)}
			if one.os != runtime.GOOS || one.arch != runtime.GOARCH {
				path, err := exec.LookPath(one.through)
				if err != nil {
					require.Missing(t, "%s is missing", one.through)
				}
				command = append([]string{path}, command...)
			}
			reg := realreg.Start(t, realreg.Options{})
			img := binary.Layout(t, 7, 24*mib)
			through := binary.Through(t, reg.Addr, proxy.Options{Plan: proxy.Every(4*mib, proxy.Fault{Kind: proxy.ResetClient})})
			source := "oci:" + img.Dir
			if one.os == "windows" {
				source = "oci:Z:" + img.Dir
			}
			cmd := exec.Command(command[0], append(command[1:], "--output", "json", source, through.Addr()+"/team/app:1")...)
			home := t.TempDir()
			cmd.Env = append(binary.Environ(t), "WINEDEBUG=-all", "WINEPREFIX="+home)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			s := through.Stats()
			t.Logf("%v, %d resets, %.4f x the image", err, s.Faults, float64(s.Up)/float64(img.Total))
			if err != nil {
				t.Fatalf("%s\n%s", stdout.String(), stderr.String())
			}
			if s.Faults < 3 {
				t.Errorf("only %d resets", s.Faults)
			}
			pulled := filepath.Join(t.TempDir(), "pulled")
			run(t, "", realreg.Tool(t, "crane"), "pull", "--format=oci", reg.Addr+"/team/app:1", pulled)
			if err := ocilayout.Compare(img.Dir, pulled); err != nil {
				t.Error(err)
			}
		})
	}
}
