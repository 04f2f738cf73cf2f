// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docs/reference.md says what the code says.
func TestReference(t *testing.T) {
	file := filepath.Join("..", "..", "docs", "reference.md")
	want := Reference()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/reference.md is stale: make docs")
	}
}

// Every command and every flag says what it is for: man pages and completions
// show it.
func TestEveryFlagIsDescribed(t *testing.T) {
	n := 0
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" && !c.Hidden {
			t.Errorf("%s has no short description", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			n++
			if f.Usage == "" {
				t.Errorf("%s --%s has no description", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(Command())
	if n < 100 {
		t.Errorf("only %d flags were looked at", n)
	}
}

func TestVersionAsJSON(t *testing.T) {
	r := newRig(t, nil)
	if code := r.main([]string{"version", "--output", "json"}); code != exitOK {
		t.Fatalf("exit %d: %s", code, r.stderr.String())
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(r.stdout.String()), &got); err != nil {
		t.Fatal(err)
	}
	if got["version"] != version() || got["go"] != runtime.Version() || got["os"] != runtime.GOOS || got["arch"] != runtime.GOARCH {
		t.Errorf("got %v", got)
	}
	r = newRig(t, nil)
	if code := r.main([]string{"version", "--output", "yaml"}); code != exitUsage || !strings.Contains(r.stderr.String(), `--output is "yaml"`) {
		t.Errorf("exit %d: %s", code, r.stderr.String())
	}
}
