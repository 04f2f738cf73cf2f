// SPDX-License-Identifier: Apache-2.0

// Package architecture holds the tests of how the packages fit together.
package architecture

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/rpush-go/rpush"

// arrows says which packages of the project each package may import. Bytes go
// down: source -> pusher -> resume -> wire. What is not in the table fails.
var arrows = map[string][]string{
	"cmd/rpush": {"internal/cli"},
	"internal/cli": {
		"internal/certificates", "internal/credentials", "internal/figures", "internal/gateway", "internal/metrics", "internal/gateway/setup", "internal/settings", "internal/intercept", "internal/protocol", "internal/source", "pusher", "resume", "resume/redisstore",
		"internal/compress", "internal/engine", "internal/known", "internal/owndir", "internal/stream",
		"internal/conntrack", "internal/conntrack/remedy", "internal/conntrack/rules", "internal/conntrack/selftest",
	},
	"internal/conntrack": {
		"internal/conntrack/host", "internal/conntrack/nft", "internal/conntrack/rules", "internal/conntrack/selftest", "internal/conntrack/xtables",
	},
	"internal/conntrack/host":     {},
	"internal/conntrack/rules":    {},
	"internal/conntrack/nft":      {"internal/conntrack/rules", "internal/conntrack/xtables"}, // a rule of iptables-nft has parts of xtables
	"internal/conntrack/xtables":  {"internal/conntrack/host", "internal/conntrack/rules"},
	"internal/conntrack/remedy":   {"internal/conntrack/host", "internal/conntrack/rules", "internal/durable"},
	"internal/conntrack/selftest": {"internal/conntrack/host", "internal/stray"}, // it sends what does the harm

	"internal/stray":        {},
	"internal/certificates": {},
	"internal/settings":     {},
	"internal/credentials":  {},
	"internal/manifest":     {},
	"internal/source":       {"internal/manifest", "internal/owndir", "internal/saved", "internal/tempfile", "pusher", "resume"}, // resume for the kinds of failure
	"internal/saved":        {"internal/manifest", "resume"},
	"internal/compress":     {},
	"internal/owndir":       {},
	"internal/durable":      {},
	"internal/spool":        {"internal/owndir", "internal/saved", "internal/tempfile"},
	"internal/tempfile":     {"internal/owndir"},
	"internal/known":        {"internal/owndir"},
	"internal/engine":       {"resume"},
	"internal/stream": {
		"internal/compress", "internal/known", "internal/manifest", "internal/saved", "internal/spool", "pusher", "resume",
	},
	"pusher":                 {"internal/manifest", "internal/protocol", "internal/signin", "internal/tempfile", "internal/wire", "resume"},
	"internal/signin":        {"internal/protocol", "internal/wire"},
	"resume":                 {"internal/owndir", "internal/protocol", "internal/retry", "internal/tempfile", "internal/wire"},
	"resume/slogger":         {},
	"resume/storetest":       {"resume"},
	"resume/redisstore":      {"resume"},
	"internal/intercept":     {},
	"internal/gateway/setup": {"internal/durable"},
	"internal/gateway":       {"internal/owndir", "internal/tempfile", "internal/protocol", "internal/retry", "internal/signin", "internal/wire", "resume"},
	"internal/figures":       {"internal/protocol", "resume"},
	"internal/metrics":       {"internal/figures", "resume"},
	"internal/retry":         {"internal/protocol"},
	"internal/protocol":      {"internal/wire"},
	"internal/wire":          {},

	// Test gear knows nothing of what it tests.
	"internal/testgear/binary":    {},
	"internal/testgear/docker":    {},
	"internal/testgear/memnet":    {},
	"internal/testgear/memory":    {},
	"internal/testgear/haproxy":   {},
	"internal/testgear/nginx":     {},
	"internal/testgear/ocilayout": {},
	"internal/testgear/process":   {},
	"internal/testgear/proxy":     {},
	"internal/testgear/realreg":   {},
	"internal/testgear/recorded":  {},
	"internal/testgear/require":   {},
	"internal/testgear/scripted":  {},
	"internal/testgear/tokens":    {},

	// Programs and tests around it all.
	"internal/release":      {"internal/cli"},
	"internal/architecture": {},
	"internal/conntracklab": {},
	"internal/e2e":          {},
	"internal/enginetest":   {},
	"internal/matrix":       {},
	"internal/simulator":    {},
	"internal/demo":         {"internal/testgear/ocilayout", "internal/testgear/proxy", "internal/testgear/realreg"},
	"internal/enginebench":  {"internal/testgear/docker", "internal/testgear/proxy", "internal/testgear/realreg"},
	"internal/bench":        {"internal/testgear/ocilayout", "internal/testgear/proxy", "internal/testgear/realreg", "resume"},
}

// light are the modules that a program which imports resume or pusher gets, and
// no more: heavy things stay in the command.
var light = map[string][]string{
	"resume": {
		"github.com/cenkalti/backoff/v4",
		"github.com/docker/cli", // go-containerregistry reads docker's config with it
		"github.com/docker/docker-credential-helpers",
		"github.com/gofrs/flock", // the locks of a FileStore
		"github.com/google/go-containerregistry",
		"github.com/opencontainers/go-digest",
		"github.com/sirupsen/logrus",
		"golang.org/x/sys",
	},
	"pusher": {
		"github.com/klauspost/compress", // go-containerregistry
		"github.com/opencontainers/image-spec",
		"golang.org/x/sync",
	},
}

type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
	Deps                               []string
	Module                             *struct{ Path string }
}

func list(t *testing.T, args ...string) (all []pkg) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps,Module"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsPointDown(t *testing.T) {
	seen := 0
	for _, p := range list(t, module+"/...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, ok := arrows[name]
		if !ok {
			t.Errorf("%s is not in the table: where does it stand?", name)
			continue
		}
		seen++
		imports := p.Imports
		if strings.HasPrefix(name, "internal/testgear/") {
			imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
		}
		for _, i := range imports {
			to, ours := strings.CutPrefix(i, module+"/")
			gear := strings.HasPrefix(name, "internal/testgear/") && strings.HasPrefix(to, "internal/testgear/")
			if ours && to != name && !gear && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s", name, to)
			}
		}
	}
	if seen != len(arrows) {
		t.Errorf("%d packages, the table has %d", seen, len(arrows))
	}
}

func TestLibrariesStayLight(t *testing.T) {
	allowed := []string{module}
	for _, name := range []string{"resume", "pusher"} {
		allowed = append(allowed, light[name]...)
		for _, p := range list(t, "-deps", module+"/"+name) {
			if p.Module != nil && !slices.Contains(allowed, p.Module.Path) {
				t.Errorf("%s pulls in %s, by %s", name, p.Module.Path, p.ImportPath)
			}
		}
	}
}
