// SPDX-License-Identifier: Apache-2.0

package realreg

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rpush-go/rpush/internal/testgear/require"
)

// TB is what this package needs of a testing.TB. A program that only uses Run
// does not link package testing.
type TB interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

const module = "module github.com/rpush-go/rpush"

// Tool finds a program the tests drive: in $RPUSH_TOOLS, in .tools/bin of the
// module, on the PATH, in /usr/sbin. Without it the test is skipped, or with
// RPUSH_TEST_REQUIRE=1, as CI sets it, fails.
func Tool(t TB, name string) string {
	t.Helper()
	if path, ok := Find(name); ok {
		return path
	}
	cure := "make tools"
	if p, ok := packages[name]; ok {
		cure = "apt-get install " + p
	}
	require.Missing(t, "%s is missing: %s", name, cure)
	return ""
}

// packages of Debian that hold a tool; make tools installs the others.
var packages = map[string]string{
	"docker":          "docker.io",
	"dockerd":         "docker.io",
	"podman":          "podman",
	"docker-registry": "docker-registry",
	"nginx":           "nginx",
	"haproxy":         "haproxy",
	"redis-server":    "redis-server",
	"promtool":        "prometheus",
	"skopeo":          "skopeo",
	"ip":              "iproute2",
	"iptables-legacy": "iptables",
	"iptables-nft":    "iptables",
	"nft":             "nftables",
	"setpriv":         "util-linux",
	"buildah":         "buildah",
}

// Find is Tool without a test.
func Find(name string) (path string, ok bool) {
	dirs := []string{os.Getenv("RPUSH_TOOLS")}
	if root, ok := moduleRoot(); ok {
		dirs = append(dirs, filepath.Join(root, ".tools", "bin"))
	}
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		// LookPath of a path with a slash checks that it can be executed.
		if p, err := filepath.Abs(filepath.Join(dir, name)); err == nil {
			if p, err = exec.LookPath(p); err == nil {
				return p, true
			}
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, true
	}
	// Debian's nginx, which is not on the PATH of an ordinary user.
	p, err := exec.LookPath("/usr/sbin/" + name)
	return p, err == nil
}

// moduleRoot is the directory of our go.mod at or above the working directory.
func moduleRoot() (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		if firstLine(filepath.Join(dir, "go.mod")) == module {
			return dir, true
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", false
		}
		dir = up
	}
}

func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	return strings.TrimSpace(s.Text())
}
