// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exitCodes say what each exit code means, for the reference.
var exitCodes = []struct {
	code    string
	meaning string
}{
	{fmt.Sprint(exitOK), "pushed: the manifest is there"},
	{fmt.Sprint(exitPermanent), "failed, and running it again will not help without a change"},
	{fmt.Sprint(exitUsage), "wrong usage"},
	{fmt.Sprint(exitInterrupted), "interrupted: no progress for `--retry-for`, the deadline, or a bad link; the same command sends what is missing"},
	{fmt.Sprint(exitFault), "`rpush doctor`: this host resets pushes, or with `--strict` might; `rpush probe --strict`: the registry cannot continue an upload"},
	{fmt.Sprint(exitBug), "a bug in rpush"},
	{"129, 130, 143", "ended by SIGHUP, SIGINT, SIGTERM"},
}

// Command returns the tree of rpush's commands with their flags and help texts.
// It is for generating man pages, completions and reference tables; executing it
// does nothing useful.
func Command() *cobra.Command {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, out: &printer{w: io.Discard}, env: map[string]string{}}
	root := a.command()
	root.Short = pushShort + " with uploads that continue after a broken connection"
	for path, text := range map[string]string{
		"":              pushHelp + helpTail,
		"push":          pushHelp,
		"probe":         probeHelp,
		"sessions":      sessionsHelp,
		"doctor":        doctorHelp,
		"gateway":       gatewayHelp,
		"gateway run":   runHelp,
		"gateway serve": serveHelp,
	} {
		c, _, err := root.Find(strings.Fields(path))
		if err != nil {
			panic(err) // the table above is wrong
		}
		c.Long = text
	}
	return root
}

// Reference is docs/reference.md: all flags and exit codes.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	root := Command()
	referenceOf(&b, "rpush [push] [SOURCE] REFERENCE", "Pushes an image.", (&options{}).pushFlags())
	var rest func(c *cobra.Command)
	rest = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Hidden || c == root && sub.Name() == "push" {
				continue
			}
			if sub.HasAvailableLocalFlags() {
				own := newGroup("")
				own.AddFlagSet(sub.Flags())
				short := strings.ToUpper(sub.Short[:1]) + sub.Short[1:] + "."
				referenceOf(&b, strings.TrimSuffix(sub.UseLine(), " [flags]"), short, []flagGroup{own})
			}
			rest(sub)
		}
	}
	rest(root)
	b.WriteString("## Exit codes\n\n| exit | meaning |\n| --- | --- |\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "| %s | %s |\n", e.code, e.meaning)
	}
	return b.String()
}

const referenceHead = `# Flags and exit codes

<!-- Generated from the code: make docs -->

Each flag has an environment variable: ` + "`RPUSH_RETRY_FOR` for `--retry-for`" + `. A flag overrides its variable, and any other
variable that contradicts the flag. An empty variable counts as not set.

`

// referenceOf writes the flags of one command, a table for each group.
func referenceOf(b *strings.Builder, use, short string, groups []flagGroup) {
	fmt.Fprintf(b, "## `%s`\n\n%s\n\n", use, short)
	for _, g := range groups {
		if g.title != "" {
			fmt.Fprintf(b, "### %s\n\n", g.title)
		}
		b.WriteString("| flag | default | meaning |\n| --- | --- | --- |\n")
		g.VisitAll(func(f *pflag.Flag) {
			if f.Hidden || f.Name == "help" {
				return
			}
			value, usage := pflag.UnquoteUsage(f)
			flag := "--" + f.Name
			if f.Shorthand != "" {
				flag = "-" + f.Shorthand + "`, `" + flag
			}
			if value = strings.TrimSpace(value); value != "" && f.Value.Type() != "bool" {
				flag += " " + value
			}
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", flag, defaultWords(f), cell(usage))
		})
		b.WriteString("\n")
	}
}

// defaultWords is the default of a flag, empty where that says nothing.
func defaultWords(f *pflag.Flag) string {
	switch f.DefValue {
	case "false", "[]", "-1":
		return ""
	}
	d := strings.TrimSuffix(strings.TrimSuffix(f.DefValue, "0s"), "0m")
	return cell(cmp.Or(d, f.DefValue))
}

// cell is text as a table of Markdown takes it.
func cell(s string) string { return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`).Replace(s) }
