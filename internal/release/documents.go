// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/rpush-go/rpush/internal/cli"
)

func (r *release) manDir() string        { return filepath.Join(r.work, "man") }
func (r *release) completionDir() string { return filepath.Join(r.work, "completions") }

// documents makes the man pages and completions from the definitions of the flags.
func (r *release) documents() error {
	for _, dir := range []string{r.manDir(), r.completionDir()} {
		if err := os.Mkdir(dir, 0o777); err != nil {
			return err
		}
	}
	root := cli.Command()
	in := func(name string) string { return filepath.Join(r.completionDir(), name) }
	for _, write := range []func() error{
		func() error { return root.GenBashCompletionFileV2(in("rpush.bash"), true) },
		func() error { return root.GenZshCompletionFile(in("_rpush")) },
		func() error { return root.GenFishCompletionFile(in("rpush.fish"), true) },
		func() error { return root.GenPowerShellCompletionFileWithDesc(in("rpush.ps1")) },
	} {
		if err := write(); err != nil {
			return err
		}
	}
	literal(root)
	root.DisableAutoGenTag = true
	at := r.time
	return doc.GenManTree(root, &doc.GenManHeader{
		Title: "RPUSH", Section: "1", Date: &at, Source: "rpush " + r.version, Manual: "User Commands",
	}, r.manDir())
}

// literal marks the tables of help texts, which are indented by two columns, as
// Markdown marks text whose lines stay as they are.
func literal(c *cobra.Command) {
	lines := strings.Split(c.Long, "\n")
	for i, l := range lines {
		if !strings.HasPrefix(l, "  ") {
			continue
		}
		lines[i] = "    " + l
		if i > 0 && lines[i-1] != "" && !strings.HasPrefix(lines[i-1], "      ") {
			lines[i] = "\n" + lines[i]
		}
	}
	c.Long = strings.Join(lines, "\n")
	for _, sub := range c.Commands() {
		literal(sub)
	}
}
