package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is set when a release is built:
//
//	-ldflags "-X github.com/rpush-go/rpush/internal/cli.Version=1.2.3"
//
// Without it, what the go command recorded is taken.
var Version string

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

func userAgent() string { return "rpush/" + version() }

func versionLine() string {
	line := "rpush " + version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				line += ", commit " + s.Value[:12]
			}
		}
	}
	return fmt.Sprintf("%s, %s, %s/%s", line, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
