// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

const pushHelp = `Push an image to a registry. When a connection breaks, rpush continues the
upload instead of starting again.

  rpush [SOURCE] REFERENCE       push; "rpush push ..." is the same
  rpush sessions                 uploads that the next push continues
  rpush probe REPOSITORY         can this registry continue a broken upload?
  rpush gateway serve            let docker, buildkit and others resume
  rpush doctor [REFERENCE]       does this host reset pushes, and how to stop it
  rpush version                  print the version
  rpush completion SHELL         print a completion script

Without SOURCE the image comes from the Docker engine, as with docker push.
SOURCE is one of
  docker-daemon:IMAGE            another image of the engine
  docker://REF                   an image at a registry
  oci:DIR[:TAG|@DIGEST]          an OCI image layout
  oci-archive:PATH[:TAG|@DIGEST] an OCI layout in a tar file, compressed or not
  docker-archive:PATH[#REF|@N]   what docker save wrote, compressed or not
  /PATH, ./PATH, ../PATH         any of these, recognised by its content
  -                              an archive of either kind on standard input

Flags for sign-in and TLS apply to the registry of REFERENCE only. Registries
that only --tag or --cache-from names get what docker would use; --ca-file and
--authfile apply to them too. --src- flags apply to the registry of SOURCE only.
`

const helpTail = `
Every flag has a variable: RPUSH_RETRY_FOR for --retry-for. The flag wins.
stdout gets REFERENCE@DIGEST, or one JSON document; the rest goes to stderr.
Exit codes: 0 pushed; 1 failed, and trying again will not help; 2 wrong usage;
3 interrupted, the same command again sends the rest; 4 what --strict looks for
was found; 70 a bug; 129, 130, 143 ended by a signal.
`

const probeHelp = `Find out whether a registry can continue a broken upload, by breaking a small
one on purpose. The upload is cancelled afterwards; nothing is published.

  rpush probe REPOSITORY
`

const sessionsHelp = `List and drop the interrupted uploads that are kept so that the next push can
continue them. They expire after 70 hours, before registries purge them.

  rpush sessions [list] [--check]           list them
  rpush sessions forget DIGEST|REFERENCE    drop one, cancel it at the registry
  rpush sessions forget --all               drop all of them
  rpush sessions prune                      drop what has expired
`

func helpText(head string, groups []flagGroup) string {
	var b strings.Builder
	b.WriteString(head)
	for _, g := range groups {
		if !g.brief {
			fmt.Fprintf(&b, "\n%s\n%s", g.title, g.FlagUsagesWrapped(80))
			continue
		}
		fmt.Fprintf(&b, "\n%s\n", g.title)
		line := " "
		g.VisitAll(func(f *pflag.Flag) {
			if len(line)+len(f.Name) > 76 {
				b.WriteString(line + "\n")
				line = " "
			}
			line += " --" + f.Name
		})
		b.WriteString(line + "\n")
	}
	b.WriteString(helpTail)
	return b.String()
}
