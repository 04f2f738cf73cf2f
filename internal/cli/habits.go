// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rpush-go/rpush/internal/source"
)

// What users of other clients type first, and what they need to know.
const (
	noCopyVerb     = "there is no command %q: rpush docker://SOURCE REFERENCE copies from one registry to another"
	localFile      = "%q is a local file: rpush ./%[1]s REFERENCE pushes it"
	localSource    = "%q is a local file or directory: write ./%[1]s as SOURCE"
	remoteSource   = "%q is no SOURCE: write docker://%[1]s for an image at a registry, or docker-daemon:%[1]s for one of the Docker engine"
	archiveEndings = ".tar .tar.gz .tgz .tar.zst .oci"
)

// otherVerb says how rpush does what a command of another client does. args are
// more than rpush takes.
func otherVerb(args []string) error {
	switch args[0] {
	case "copy", "cp", "sync":
		return fmt.Errorf(noCopyVerb, args[0])
	}
	return nil
}

// localWithoutDot finds a file or directory that was named without ./, as crane
// takes it, and a SOURCE that is a reference, as crane copy takes it.
func localWithoutDot(args []string) error {
	first := args[0]
	if source.Spelled(first) || strings.HasPrefix(first, "docker://") {
		return nil
	}
	fi, err := os.Stat(first)
	switch {
	case len(args) == 2 && err == nil:
		return fmt.Errorf(localSource, first)
	case len(args) == 2 && !strings.Contains(first, "://") && strings.Contains(first, "/"):
		if _, err := parseCall([]string{first}); err == nil {
			return fmt.Errorf(remoteSource, first)
		}
	case len(args) == 1 && err == nil && fi.IsDir():
		if _, err := os.Stat(filepath.Join(first, "oci-layout")); err == nil {
			return fmt.Errorf(localFile, first)
		}
	case len(args) == 1 && err == nil:
		for _, ending := range strings.Fields(archiveEndings) {
			if strings.HasSuffix(first, ending) {
				return fmt.Errorf(localFile, first)
			}
		}
	}
	return nil
}
