// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// These are set when a release is built:
//
//	-ldflags "-X github.com/rpush-go/rpush/internal/cli.Version=1.2.3"
//
// Without them, rpush says what the go command recorded.
var (
	Version string // without the v
	Commit  string // in hex
)

// versionDocument is what rpush version --output json prints.
type versionDocument struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (a *app) versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "version", Short: versionShort, Args: cobra.NoArgs}
	cmd.Flags().StringVar(&output, "output", "text", "print the version as `FORMAT`, text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		spelled, err := fromEnvironment(cmd.Flags(), a.env)
		if err != nil {
			return err
		}
		if spelled["output"] == "--output" && output != "text" && output != "json" {
			return fmt.Errorf("--output is %q, neither text nor json", output)
		}
		if output == "json" {
			enc := json.NewEncoder(a.stdout)
			enc.SetIndent("", "  ")
			err = enc.Encode(versionDocument{version(), commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH})
		} else { // also for what RPUSH_OUTPUT says of other commands
			_, err = fmt.Fprintln(a.stdout, versionLine())
		}
		a.exit = a.written(err)
		return nil
	}
	return cmd
}

// version is without the v, and fit for a User-Agent header.
func version() string {
	v := Version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	v = strings.TrimPrefix(strings.Trim(v, "()"), "v")
	if v == "" {
		return "devel"
	}
	return v
}

// commit is empty if it is unknown.
func commit() string {
	if Commit != "" {
		return Commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

func userAgent() string { return "rpush/" + version() }

func versionLine() string {
	line := "rpush " + version()
	if c := commit(); len(c) >= 12 {
		line += ", commit " + c[:12]
	}
	return fmt.Sprintf("%s, %s, %s/%s", line, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
