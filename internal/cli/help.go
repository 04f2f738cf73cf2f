package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

const pushHelp = `Push an image to a registry. What a broken connection leaves behind is
continued, not sent again.

  rpush [SOURCE] REFERENCE       push; "rpush push ..." is the same
  rpush sessions                 uploads that the next push continues
  rpush probe REPOSITORY         what this registry keeps of a broken upload
  rpush gateway serve            let docker, buildkit and others resume, too
  rpush doctor [REFERENCE]       does this host reset pushes, and how to mend it
  rpush version                  print the version
  rpush completion SHELL         print a completion script

Without SOURCE the image comes from the Docker engine, as with docker push.
SOURCE is one of
  docker-daemon:IMAGE            another image of the engine
  docker://REF                   an image at a registry
  oci:DIR[:TAG|@DIGEST]          an OCI image layout
  oci-archive:PATH[:TAG|@DIGEST] one in a tar file, compressed or not
  docker-archive:PATH[#REF|@N]   what docker save wrote, compressed or not
  /PATH, ./PATH, ../PATH         any of them, recognised by its content
  -                              an archive of either kind on standard input

Flags about sign-in and TLS apply to the registry of REFERENCE only. Registries
that only --tag or --cache-from names get what docker would use; --ca-file and
--authfile apply to them too. --src- flags apply to the registry of SOURCE only.
`

const helpTail = `
Every flag has a variable: RPUSH_RETRY_FOR for --retry-for. A flag wins.
stdout gets REFERENCE@DIGEST, or one JSON document; all else goes to stderr.
Exit codes: 0 pushed; 1 failed for good; 2 wrong usage; 3 interrupted, the same
command again sends the rest; 4 what --strict looks for was found; 70 a bug;
129, 130, 143 ended by a signal.
`

const probeHelp = `Find out what a registry keeps of an upload that breaks, by breaking a small
one on purpose. It is cancelled afterwards; nothing is published.

  rpush probe REPOSITORY
`

const sessionsHelp = `Look at the interrupted uploads that are kept for the next push, which
continues them where the registry stands. They expire after 70 hours, before
registries purge them.

  rpush sessions [list] [--check]           list them
  rpush sessions forget DIGEST|REFERENCE    drop one, and cancel it at the registry
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
