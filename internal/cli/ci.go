// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// ciSystem is what the job runs in, by the variables that it sets.
type ciSystem string

const (
	noCI      ciSystem = ""
	github    ciSystem = "GitHub Actions"
	gitlab    ciSystem = "GitLab"
	buildkite ciSystem = "Buildkite"
)

func ciOf(env map[string]string) ciSystem {
	switch {
	case env["GITHUB_ACTIONS"] == "true":
		return github
	case env["GITLAB_CI"] == "true":
		return gitlab
	case env["BUILDKITE"] == "true":
		return buildkite
	}
	return noCI
}

// openSection and closeSection mark the lines of a push, which the system can fold.
func (c ciSystem) openSection(title string, now time.Time) string {
	title = clean(title)
	switch c {
	case github:
		return "::group::" + workflowData(title) + "\n"
	case gitlab:
		return fmt.Sprintf("\x1b[0Ksection_start:%d:rpush_push[collapsed=true]\r\x1b[0K%s\n", now.Unix(), title)
	case buildkite:
		return "--- " + title + "\n"
	}
	return ""
}

func (c ciSystem) closeSection(failed bool, now time.Time) string {
	switch {
	case c == github:
		return "::endgroup::\n"
	case c == gitlab:
		return fmt.Sprintf("\x1b[0Ksection_end:%d:rpush_push\r\x1b[0K\n", now.Unix())
	case c == buildkite && failed:
		return "^^^ +++\n" // unfolds it
	}
	return ""
}

// annotation is one line that the system shows outside of the log, or at least in
// colour. Buildkite takes it from its agent: see annotate.
func (c ciSystem) annotation(failed bool, text string) string {
	text = clean(text)
	switch c {
	case github:
		level := "warning"
		if failed {
			level = "error"
		}
		return fmt.Sprintf("::%s title=rpush::%s\n", level, workflowData(text))
	case gitlab:
		colour := 33 // yellow
		if failed {
			colour = 31
		}
		return fmt.Sprintf("\x1b[%d;1m%s%s\x1b[0m\n", colour, prefix, text)
	}
	return ""
}

// workflowData escapes the data of a workflow command of GitHub:
// https://docs.github.com/actions/reference/workflow-commands-for-github-actions.
func workflowData(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s)
}

// annotateFor is how long Buildkite's agent may take.
const annotateFor = 10 * time.Second

// summarize gives the summary, in Markdown, to the system. What the system does not
// take is no failure of the push.
func (c ciSystem) summarize(ctx context.Context, env map[string]string, style, markdown string) error {
	switch {
	case c == github && env["GITHUB_STEP_SUMMARY"] != "":
		f, err := os.OpenFile(env["GITHUB_STEP_SUMMARY"], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // GitHub reads it
		if err != nil {
			return err
		}
		_, err = f.WriteString(markdown)
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	case c == buildkite:
		agent, err := exec.LookPath("buildkite-agent")
		if err != nil {
			return nil // not every step has it
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), annotateFor)
		defer cancel()
		cmd := exec.CommandContext(ctx, agent, "annotate", "--style", style, "--context", "rpush", "--append")
		cmd.Stdin = strings.NewReader(markdown)
		return cmd.Run()
	}
	return nil
}

// summaryMarkdown is what a job's page shows of a push.
func summaryMarkdown(doc *document) string {
	var b strings.Builder
	fmt.Fprintf(&b, "### rpush: %s\n\n", doc.Status)
	if doc.Error != nil {
		fmt.Fprintf(&b, "%s\n\n", markdown(doc.Error.Message))
	}
	if len(doc.Pushes) > 0 {
		b.WriteString("| reference | digest | size | sent | time |\n| --- | --- | --- | --- | --- |\n")
	}
	for _, p := range doc.Pushes {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", markdown(p.Reference), markdown(string(p.Digest)), bytesWords(p.Size), bytesWords(p.Sent),
			durationWords(time.Duration(p.Seconds*float64(time.Second))))
	}
	if doc.BreakCount == 0 {
		return b.String() + "\n"
	}
	fmt.Fprintf(&b, "\n%s, %s started again. `rpush doctor` on the registry's host finds the usual cause.\n", plural(doc.BreakCount, "break"), plural(doc.Restarts, "layer"))
	b.WriteString("\n| time | blob | offset | connection | cause |\n| --- | --- | --- | --- | --- |\n")
	for i, br := range doc.Breaks {
		if i == summaryBreaks {
			fmt.Fprintf(&b, "\nand %d more\n", doc.BreakCount-i)
			break
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", br.Time.Format(time.RFC3339), markdown(shortDigest(br.Digest)), bytesWords(br.Offset),
			markdown(br.Local+" → "+br.Peer), markdown(br.Cause))
	}
	return b.String() + "\n"
}

// summaryBreaks is how many breaks a summary lists.
const summaryBreaks = 10

// markdown makes text safe in a table of Markdown.
func markdown(s string) string {
	return strings.NewReplacer("\\", "\\\\", "|", "\\|", "`", "\\`", "*", "\\*", "_", "\\_", "[", "\\[", "<", "&lt;", ">", "&gt;", "&", "&amp;").Replace(clean(s))
}
